"""The list of recorded sources: album stems, voicebanks, speech and game music, with their terms of use."""

import gzip
import re
import zipfile
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import soundfile

from training.corpus.recorded.sources import ARCHIVE_MARK, SAMPLE_RATE, Source, read_tsv

AUDIO_SUFFIXES = (".ogg", ".oga", ".mp3", ".opus", ".flac", ".wav")
NOT_MUSIC = re.compile(r"^(voices?|sfx|soundfx|ambien\w*|speech|weapons|announcer|player|effects?)$", re.I)
MUSIC_FOLDER = re.compile(r"/(musics?|music\.ocg|bgm|cdtracks|soundtrack)/", re.I)  # beside it lie effects
HAS_VOICE = re.compile(r"voic|vocal|choir|chorus|sing(er|ing)?\b|lyric|[_-]fast$", re.I)

# What a row of the vocals pool says of its voice: sung in a song, sung note by note or set to melodies from
# such notes, spoken and set to melodies, spoken. How often each is heard is training/mixing/mixer.py's to decide.
VOICE_KINDS = ("song", "singing", "sung speech", "speech")

ALBUM = ("CC0-1.0", "permissive", "c9299620cbc6")
GROOVES = {"MarkBoas": ("CC0-1.0", "permissive", "b52c6e33c547")}  # MDN's multitrack demo
# Whose stems are heard in other songs, too. Two songs have their bass in `other`, a third's is full of lows.
ALBUM_PARTS = {
    "drums": ("Caesium", "Francium", "Lithium", "Potassium", "Rubidium"),
    "bass": ("Lithium", "Potassium", "Rubidium"),
    "other": ("Lithium", "Rubidium"),
}

# name: files, licence, class, commit (the data card of the raw material holds the terms in full)
VOICEBANKS = {
    "alys": ("alys-db-001-ja-*", "GPL-3.0", "copyleft", "bfcc78a29a75"),
    "dorodoro": ("dorodoro-ja", "Dorodoro user terms", "own-terms", "a726f3e3a268"),
    "iona": ("iona-beta", "MIT", "permissive", "8f02cf53e52b"),
    "erithacus": ("erithacus", "CC-BY-4.0", "attribution", "b2c9e370c162"),
    "yuki": ("yuki", "public domain waiver", "permissive", "5e5c8493809f"),
    "torone-rei": ("torone-rei", "MIT", "permissive", "ff2d3271867b"),
    "ibuki": ("ibuki", "GPL-2.0", "copyleft", "4be5d4648cd1"),
    "hitsuboku-kumi": ("hitsuboku-kumi-ja", "Hitsuboku Kumi terms", "own-terms", "8122640fa048"),
}

# name: files, licence, class, commit, kind of voice, people who sing at the least, whether it has its room in it
PRODUCER_SPACE = ("CC0-1.0", "permissive", "a117eab0fb5d")
PHRASES = {
    "producer-space-shv": ("producer-space-shv-*", *PRODUCER_SPACE, "song", 1, False),
    "producer-space-etv": ("producer-space-etv-*", *PRODUCER_SPACE, "song", 1, True),
    "producer-space-dvs": ("producer-space-dvs*", *PRODUCER_SPACE, "speech", 1, False),
    "berklee": ("berklee-*", "CC-BY-3.0", "attribution", "efd8296360f9", "singing", 4, False),
}

# Package: folder of the clips, and the expression whose group 1 names the speaker or language.
SPEECH = {
    "tuxpaint-stamps-default": ("usr/share/tuxpaint/stamps", r"_desc(?:_(\w+))?\.(?:ogg|wav)$"),
    "klettres-data": ("usr/share/klettres", r"klettres/([^/]+)/"),
    "ktuberling-data": ("usr/share/ktuberling/sounds", r"sounds/([^/]+)/"),
    "hedgewars-data": ("usr/share/games/hedgewars/Data/Sounds/voices", r"voices/([^/]+)/"),
    "fillets-ng-data": ("usr/share/games/fillets-ng/sound", r"/([a-z]{2})/[^/]+$"),
    "fillets-ng-data-cs": ("usr/share/games/fillets-ng/sound", r"/(cs)/[^/]+$"),
    "fillets-ng-data-nl": ("usr/share/games/fillets-ng/sound", r"/(nl)/[^/]+$"),
    "unknown-horizons": ("usr/share/unknown-horizons/content/audio/voice", r"voice/(\w+)/"),
    "redeclipse-data": ("usr/share/games/redeclipse/data/sounds", r"sounds/(voice|announcer)/"),
    "nexuiz-data": ("usr/share/games/nexuiz", r"sound/(?:player|announcer)/([^/]+)/"),
    "0ad-data": ("usr/share/games/0ad/mods/public", r"audio/voice/([^/]+)/"),
    "wesnoth-1.16-data": (
        "usr/share/games/wesnoth/1.16/data/core/sounds",
        r"sounds/(human(?:-female|-old)*|elf|dwarf|goblin|troll|ogre|naga|lich|orc(?:-small)?)-(?:die|hit|laugh)",
    ),
    # What synthesize.py has them say
    "flite": ("clips", r"clips/([^/]+)/"),
    "espeak-ng": ("clips", r"clips/([^/]+)/"),
}
# Where a package's files are under more terms than its voices are
SPEECH_TERMS = {"flite": "CMU Flite licence (BSD-like)", "espeak-ng": "GPL-3.0-or-later"}
# Groups that hold the same recordings as another one, and groups with two speakers (the two fish of
# fillets-ng). All others count as one speaker, though some languages have more.
NO_NEW_SPEAKER = ("ktuberling-sr-ijekavian", "ktuberling-sr-ijekavianlatin", "ktuberling-sr-latin")
TWO_SPEAKERS = ("fillets-ng-en", "fillets-ng-data-cs-cs", "fillets-ng-data-nl-nl")
# Packages whose songs have singers (see pseudo_stems.py): how many at the least, and the terms of the songs.
WITH_SINGER = {"marsshooter-data": (1, "CC-BY-SA-3.0 (Obsidian Shell)")}
# Those of their songs in which the teacher hears a clear voice much of the time (see pseudo_stems.py).
SUNG_THROUGHOUT = (
    "01_-_Ezer_Ev", "02_orphanage", "03_fear", "06_-_Elveszett_Lelkek", "06_starfall", "07_-_Vermocsar",
    "08_second_birth", "12_-_Misanthropia",
)  # fmt: skip
# What find_voices.py wrote: music with a voice in it, which is no accompaniment.
VOICES_FOUND = Path(__file__).with_name("voices_found.tsv")
GUITAR_GAME = "fretsonfire-songs"
MORE_MUSIC = ("fillets-ng-data",)  # not in debian_music.tsv
NO_MUSIC = (  # or none that the rules for music leave
    "tuxpaint-stamps-default", "klettres-data", "ktuberling-data", "hydrogen-drumkits",
    "fillets-ng-data-cs", "fillets-ng-data-nl", "nexuiz-data", "wesnoth-1.16-data", "avldrums.lv2-soundfont",
    "endless-sky-data",
)  # fmt: skip
RANKED = (
    "nexuiz-music", "warzone2100-music", "supertuxkart-data", "redeclipse-data", "hedgewars-data",
    "naev-data", "xmoto-data", "warmux-data", "supertux-data", "torcs-data", "starfighter-data",
    "ufoai-music", "wesnoth-1.16-music", "openclonk-data", "singularity-music",
)  # fmt: skip


def audio_files(folder: Path) -> list[str]:
    """Sound files below a folder, members of zip and pk3 archives included, sorted."""
    found: list[str] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            found.append(str(path))
        elif path.suffix.lower() in (".pk3", ".zip") and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                names = [m for m in z.namelist() if m.lower().endswith(AUDIO_SUFFIXES)]
            found += [f"{path}{ARCHIVE_MARK}{m}" for m in sorted(names)]
    return found


def is_music(name: str) -> bool:
    """False for names that tell of voices, effects or a sped-up version of another file."""
    parts = name.replace(ARCHIVE_MARK, "/").split("/")
    return not any(NOT_MUSIC.match(p) for p in parts[:-1]) and not HAS_VOICE.search(Path(parts[-1]).stem)


def licence_class(licence: str) -> str:
    """Strongest class named in a licence text: non-commercial (the build refuses it), copyleft, attribution,
    permissive, else own-terms.
    """
    text = licence.lower().replace("_", "-")
    if re.search(r"\bnc\b|non-?commercial", text):
        return "non-commercial"
    if re.search(r"gpl|-sa\b|share-?alike|artistic|fdl|free art|\bfal\b", text):
        return "copyleft"
    if re.search(r"cc-by|by-[34]", text):
        return "attribution"
    if re.search(r"cc-?0|public|unlicense|\bpd\b|mit|expat|bsd|zlib|isc\b", text):
        return "permissive"
    return "own-terms"


def package_terms(package: Path, known: dict[str, str]) -> tuple[str, str, str]:
    """Licence text, its class and the version of an unpacked Debian package.

    `known` (from debian_music.tsv) goes before the licence names in the package's copyright file.
    """
    doc = package / "usr/share/doc" / package.name
    licence = known.get(package.name, "")
    if not licence or licence.startswith("see "):
        path = doc / "copyright"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        names = sorted(set(re.findall(r"^License:[ \t]*(\S.*)$", text, re.M)))
        licence = "; ".join(n for n in names if len(n) < 60)
        if not licence and re.search(r"ShareAlike", text):
            licence = "CC-BY-SA"
        if not licence and re.search(r"GPL|General Public License", text):
            licence = "GPL"
        licence = licence or "see the package's copyright file"
    version = ""
    for log in sorted(doc.glob("changelog*.gz")):
        with gzip.open(log, "rt", encoding="utf-8", errors="replace") as f:
            if match := re.match(r"\S+ \(([^)]+)\)", f.readline()):
                version = match[1]
    return licence, licence_class(licence), version


def without(found: Sequence[Source], names: Set[str], places: Iterable[str]) -> list[Source]:
    """What is left of the sources when those of some names, licences and classes of licences are left out.

    places: beginnings of paths; sources with a file there are left out too, as are the other stems of a song
    of which one has a file there.
    """
    prefixes = tuple(places)

    def lies_there(source: Source) -> bool:
        return any(file.startswith(prefixes) for file in source.files)

    songs = {(s.pool, s.extra["song"]) for s in found if "song" in s.extra and lies_there(s)}
    return [
        s
        for s in found
        if not names & {s.name, s.licence_class, s.licence}
        and not lies_there(s)
        and (s.pool, s.extra.get("song")) not in songs
    ]


def song_sources(shared: Path) -> list[Source]:
    """The aligned stems of the training songs; bass and other are masked where the bass is not known.

    A recording without a singer belongs to the pool of bands, which get another song's voice.
    """
    found = []
    for folder in sorted((shared / "multitrack/train").iterdir()):
        stems = sorted(folder.glob("*.opus"))
        terms = GROOVES.get(folder.name, ALBUM)
        pool = "song" if (folder / "vocals.opus").exists() else "band"
        frames = max(round(soundfile.info(p).duration * SAMPLE_RATE) for p in stems)
        extra: dict[str, object] = {"song": folder.name}
        if not (folder / "bass.opus").exists():
            extra["masked"] = ["bass", "other"]
        for path in stems:
            name = f"{folder.name}.{path.stem}"
            extra_row = {**extra, "stem": path.stem}
            found.append(Source(pool, name, *terms, "whole", (str(path),), {"frames": frames}, extra_row))
    return found


def voice_sources(shared: Path) -> list[Source]:
    """Album vocals where they sound, every voicebank, and recordings of phrases and vowels."""
    album = tuple(str(p) for p in sorted((shared / "multitrack/train").glob("*/vocals.opus")))
    # Nobody says who sings on the album: it counts as one singer.
    found = [Source("vocals", "album", *ALBUM, "sounding", album, {}, {"voice": "song", "speakers": 1})]
    for name, (pattern, *terms) in VOICEBANKS.items():
        pairs = [
            (str(p), str(p.with_suffix(".tsv"))) for p in sorted((shared / "voices").glob(f"{pattern}.opus"))
        ]
        files = tuple(f for pair in pairs for f in pair)
        extra = {"voice": "singing", "speakers": 1}
        licence, kind, commit = terms
        found.append(Source("vocals", name, licence, kind, commit, "takes", files, {}, extra))
    for name, (pattern, licence, kind, commit, voice, singers, wet) in PHRASES.items():
        opus = sorted((shared / "voices").glob(f"{pattern}.opus"))
        files = tuple(str(f) for p in opus for f in (p, p.with_suffix(".tsv")))
        extra = {"voice": voice, "speakers": singers} | ({"wet": True} if wet else {})
        if files:
            found.append(
                Source("vocals", name, licence, kind, commit, "takes", files, {"stereo": wet}, extra)
            )
    return found


def known_licences(shared: Path) -> dict[str, str]:
    """Licences of Debian packages as debian_music.tsv states them."""
    return {row["package"]: row["licence"] for row in read_tsv(shared / "debian_music.tsv")}


def album_sources(shared: Path) -> list[Source]:
    """The album's drums, basses and others beside other songs, where they sound."""
    found = []
    for stem, songs in ALBUM_PARTS.items():
        files = [shared / "multitrack/train" / song / f"{stem}.opus" for song in songs]
        if there := tuple(str(file) for file in files if file.is_file()):
            found.append(Source(stem, "album", *ALBUM, "sounding", there))
    return found


def speech_sources(shared: Path, debian: Path) -> list[Source]:
    """One source per package and language (or speaker) of the unpacked packages with speech."""
    found = []
    for package, (folder, pattern) in SPEECH.items():
        root = debian / package
        groups: dict[str, list[str]] = {}
        for path in audio_files(root / folder) if root.is_dir() else []:
            if match := re.search(pattern, path):
                groups.setdefault(match[1] or "en", []).append(path)
        if not groups:
            continue
        terms = package_terms(root, SPEECH_TERMS)
        for group, files in sorted(groups.items()):
            name = f"{package.removesuffix('-default').removesuffix('-data')}-{group.replace('@', '-')}"
            made_up = package == "espeak-ng"  # formants by rule: nobody ever spoke so
            speakers = 0 if name in NO_NEW_SPEAKER or made_up else 2 if name in TWO_SPEAKERS else 1
            extra = {"voice": "speech", "speakers": speakers}
            found.append(Source("vocals", name, *terms, "speech", tuple(files), {"min_hz": 10000}, extra))
    return found


def voices_found() -> set[tuple[str, str]]:
    """Package and file, from the package's folder on, of the music in which a voice was found."""
    return {(row["package"], row["file"]) for row in read_tsv(VOICES_FOUND)}


def music_sources(shared: Path, debian: Path) -> list[Source]:
    """Game soundtracks of the unpacked packages, and the guitar game's guitars and backing, best first."""
    known, sung = known_licences(shared), voices_found()
    names = {*known, *MORE_MUSIC} - WITH_SINGER.keys()
    packages = sorted(p for p in debian.iterdir() if p.name in names or p.name.startswith(GUITAR_GAME))
    packages.sort(key=lambda p: RANKED.index(p.name) if p.name in RANKED else len(RANKED))
    found = []
    for root in packages:
        files = tuple(
            f
            for f in audio_files(root)
            if is_music(f) and (root.name, f.removeprefix(f"{root}/")) not in sung
        )
        terms = package_terms(root, known)
        if root.name.startswith(GUITAR_GAME):
            guitars = tuple(f for f in files if f.endswith("/guitar.ogg"))
            found.append(Source("other", root.name.replace("songs", "guitar"), *terms, "sounding", guitars))
            # Muldjord is a band whose backing tracks may hold its singer; Sectoid plays alone.
            files = tuple(f for f in files if f.endswith("/song.ogg") and "muldjord" not in f)
        files = tuple(f for f in files if MUSIC_FOLDER.search(f)) or files
        if files and root.name not in NO_MUSIC:
            settings = {"minutes": 60, "min_hz": 9000}
            found.append(Source("accompaniment", root.name, *terms, "music", files, settings))
    return found
