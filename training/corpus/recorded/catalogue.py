"""Recorded sources: album stems, voicebanks, speech and game music, with their terms of use."""

import gzip
import re
import zipfile
from collections.abc import Iterable, Sequence, Set
from pathlib import Path

import soundfile

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.sources import ARCHIVE_MARK, Source, read_tsv, take_files

AUDIO_SUFFIXES = (".ogg", ".oga", ".mp3", ".opus", ".flac", ".wav")
NOT_MUSIC = re.compile(r"^(voices?|sfx|soundfx|ambien\w*|speech|weapons|announcer|player|effects?)$", re.I)
MUSIC_FOLDER = re.compile(
    r"/(musics?|music\.ocg|bgm|cdtracks|soundtrack)/", re.I
)  # other folders hold effects
HAS_VOICE = re.compile(r"voic|vocal|choir|chorus|sing(er|ing)?\b|lyric|[_-]fast$", re.I)

# Kinds of voice in the pool "vocals": sung in a song; sung note by note, as recorded or set to melodies; speech set to
# melodies; speech. The mixer's settings weight them.
VOICE_KINDS = ("song", "singing", "sung speech", "speech")

ALBUM = ("CC0-1.0", "permissive", "c9299620cbc6")
GROOVES = {"MarkBoas": ("CC0-1.0", "permissive", "b52c6e33c547")}  # MDN's multitrack demo
# Songs whose stems are also mixed with others. In two songs the bass is in `other`, in a third `other` has many lows.
ALBUM_STEMS = {
    "drums": ("Caesium", "Francium", "Lithium", "Potassium", "Rubidium"),
    "bass": ("Lithium", "Potassium", "Rubidium"),
    "other": ("Lithium", "Rubidium"),
}

# name: files, licence, class, commit (the raw material's data card has the terms in full)
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

# name: files, licence, class, commit, kind of voice, minimum number of singers, recorded with reverb
PRODUCER_SPACE = ("CC0-1.0", "permissive", "a117eab0fb5d")
PHRASES = {
    "producer-space-shv": ("producer-space-shv-*", *PRODUCER_SPACE, "song", 1, False),
    "producer-space-etv": ("producer-space-etv-*", *PRODUCER_SPACE, "song", 1, True),
    "producer-space-dvs": ("producer-space-dvs*", *PRODUCER_SPACE, "speech", 1, False),
    "berklee": ("berklee-*", "CC-BY-3.0", "attribution", "efd8296360f9", "singing", 4, False),
}

# Package: folder of the clips, and a pattern whose group 1 is the speaker or language.
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
    # Made by speech/synthesize.py
    "flite": ("clips", r"clips/([^/]+)/"),
    "espeak-ng": ("clips", r"clips/([^/]+)/"),
}
# Where the terms of the voices differ from the package's
SPEECH_TERMS = {"flite": "CMU Flite licence (BSD-like)", "espeak-ng": "GPL-3.0-or-later"}
# Groups that repeat another one's recordings, and groups with two speakers (the two fish of fillets-ng). All others
# count as one speaker, though some languages have more.
REPEATED_SPEAKERS = ("ktuberling-sr-ijekavian", "ktuberling-sr-ijekavianlatin", "ktuberling-sr-latin")
TWO_SPEAKERS = ("fillets-ng-en", "fillets-ng-data-cs-cs", "fillets-ng-data-nl-nl")
# Packages of songs with vocals (see pseudo_stems.py): minimum number of singers, terms of the songs
SUNG_PACKAGES = {"marsshooter-data": (1, "CC-BY-SA-3.0 (Obsidian Shell)")}
# Those of their songs in which the teacher detects a clear voice at least a quarter of the time
MOSTLY_SUNG = (
    "01_-_Ezer_Ev", "02_orphanage", "03_fear", "06_-_Elveszett_Lelkek", "06_starfall", "07_-_Vermocsar",
    "08_second_birth", "12_-_Misanthropia",
)  # fmt: skip
MUSIC_WITH_VOICES = Path(__file__).with_name("music_with_voices.tsv")  # written by find_voices.py
GUITAR_GAME = "fretsonfire-songs"
EXTRA_MUSIC = ("fillets-ng-data",)  # not in debian_music.tsv
PACKAGES_WITHOUT_MUSIC = (  # or without any that passes the rules
    "tuxpaint-stamps-default", "klettres-data", "ktuberling-data", "hydrogen-drumkits",
    "fillets-ng-data-cs", "fillets-ng-data-nl", "nexuiz-data", "wesnoth-1.16-data", "avldrums.lv2-soundfont",
    "endless-sky-data",
)  # fmt: skip
BEST_MUSIC = (
    "nexuiz-music", "warzone2100-music", "supertuxkart-data", "redeclipse-data", "hedgewars-data",
    "naev-data", "xmoto-data", "warmux-data", "supertux-data", "torcs-data", "starfighter-data",
    "ufoai-music", "wesnoth-1.16-music", "openclonk-data", "singularity-music",
)  # fmt: skip


def audio_files(folder: Path) -> list[str]:
    """Sorted audio files below a folder, including members of zip and pk3 archives."""
    files: list[str] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()):
        if path.suffix.lower() in AUDIO_SUFFIXES:
            files.append(str(path))
        elif path.suffix.lower() in (".pk3", ".zip") and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as z:
                names = [m for m in z.namelist() if m.lower().endswith(AUDIO_SUFFIXES)]
            files += [f"{path}{ARCHIVE_MARK}{m}" for m in sorted(names)]
    return files


def is_music(name: str) -> bool:
    """Whether a file's name suggests no voices, no effects, and no sped-up version of another file."""
    parts = name.replace(ARCHIVE_MARK, "/").split("/")
    return not any(NOT_MUSIC.match(p) for p in parts[:-1]) and not HAS_VOICE.search(Path(parts[-1]).stem)


def licence_class(licence: str) -> str:
    """The strictest class in a licence text: non-commercial, copyleft, attribution, permissive, else own-terms."""
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
    """Licence, its class and the version of an unpacked Debian package.

    Licences in `known` override those in the package's copyright file.
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


def exclude(sources: Sequence[Source], names: Set[str], prefixes: Iterable[str]) -> list[Source]:
    """The sources without those of some names, licences or licence classes, or with files in some folders.

    Args:
        sources: All sources.
        names: Names, licences and licence classes.
        prefixes: Beginnings of paths. A song with a file there loses all its stems.
    """
    prefixes = tuple(prefixes)

    def uses_prefix(source: Source) -> bool:
        return any(file.startswith(prefixes) for file in source.files)

    songs = {(s.pool, s.extra["song"]) for s in sources if "song" in s.extra and uses_prefix(s)}
    return [
        s
        for s in sources
        if not names & {s.name, s.licence_class, s.licence}
        and not uses_prefix(s)
        and (s.pool, s.extra.get("song")) not in songs
    ]


def song_sources(shared: Path) -> list[Source]:
    """The aligned stems of the training songs; bass and other are masked if there is no bass.

    Songs without vocals go to the pool "band", which gets voices of other songs.
    """
    sources = []
    for folder in sorted((shared / "multitrack/train").iterdir()):
        stems = sorted(folder.glob("*.opus"))
        terms = GROOVES.get(folder.name, ALBUM)
        pool = "song" if (folder / "vocals.opus").exists() else "band"
        settings = {"frames": max(round(soundfile.info(p).duration * SAMPLE_RATE) for p in stems)}
        extra: dict[str, object] = {"song": folder.name}
        if not (folder / "bass.opus").exists():
            extra["masked"] = ["bass", "other"]
        for path in stems:
            name = f"{folder.name}.{path.stem}"
            columns = {**extra, "stem": path.stem}
            sources.append(Source(pool, name, *terms, "whole", (str(path),), settings, columns))
    return sources


def voice_sources(shared: Path) -> list[Source]:
    """The active parts of the album's vocals, every voicebank, and recordings of phrases and vowels."""
    album = tuple(str(p) for p in sorted((shared / "multitrack/train").glob("*/vocals.opus")))
    # The album does not credit its singers: they count as one.
    sources = [Source("vocals", "album", *ALBUM, "sounding", album, {}, {"voice": "song", "speakers": 1})]
    extra: dict[str, object] = {"voice": "singing", "speakers": 1}
    for name, (pattern, *terms) in VOICEBANKS.items():
        licence, kind, commit = terms
        files = take_files(shared, pattern)
        sources.append(Source("vocals", name, licence, kind, commit, "takes", files, {}, extra))
    for name, (pattern, licence, kind, commit, voice, singers, wet) in PHRASES.items():
        extra = {"voice": voice, "speakers": singers} | ({"wet": True} if wet else {})
        if files := take_files(shared, pattern):
            settings = {"stereo": wet}
            sources.append(Source("vocals", name, licence, kind, commit, "takes", files, settings, extra))
    return sources


def read_licences(shared: Path) -> dict[str, str]:
    """Licences of Debian packages according to debian_music.tsv."""
    return {row["package"]: row["licence"] for row in read_tsv(shared / "debian_music.tsv")}


def album_sources(shared: Path) -> list[Source]:
    """The active parts of the album's drums, basses and others, to be mixed with other songs."""
    sources = []
    for stem, songs in ALBUM_STEMS.items():
        paths = [shared / "multitrack/train" / song / f"{stem}.opus" for song in songs]
        if files := tuple(str(path) for path in paths if path.is_file()):
            sources.append(Source(stem, "album", *ALBUM, "sounding", files))
    return sources


def speech_sources(shared: Path, debian: Path) -> list[Source]:
    """One source per package and speaker or language."""
    sources = []
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
            synthetic = package == "espeak-ng"  # formant synthesis, not recordings of people
            speakers = 0 if name in REPEATED_SPEAKERS or synthetic else 2 if name in TWO_SPEAKERS else 1
            extra = {"voice": "speech", "speakers": speakers}
            settings = {"min_hz": 10000}
            sources.append(Source("vocals", name, *terms, "speech", tuple(files), settings, extra))
    return sources


def music_sources(shared: Path, debian: Path) -> list[Source]:
    """Game soundtracks and the guitar game's guitars and backing tracks, best first.

    Files with voices (MUSIC_WITH_VOICES) are left out.
    """
    licences = read_licences(shared)
    with_voices = {(row["package"], row["file"]) for row in read_tsv(MUSIC_WITH_VOICES)}
    names = {*licences, *EXTRA_MUSIC} - SUNG_PACKAGES.keys()
    packages = sorted(p for p in debian.iterdir() if p.name in names or p.name.startswith(GUITAR_GAME))
    packages.sort(key=lambda p: BEST_MUSIC.index(p.name) if p.name in BEST_MUSIC else len(BEST_MUSIC))
    sources = []
    for root in packages:
        files = tuple(
            file
            for file in audio_files(root)
            if is_music(file) and (root.name, file.removeprefix(f"{root}/")) not in with_voices
        )
        terms = package_terms(root, licences)
        if root.name.startswith(GUITAR_GAME):
            guitars = tuple(f for f in files if f.endswith("/guitar.ogg"))
            sources.append(Source("other", root.name.replace("songs", "guitar"), *terms, "sounding", guitars))
            # Muldjord is a band whose backing tracks may contain its singer; Sectoid plays alone.
            files = tuple(f for f in files if f.endswith("/song.ogg") and "muldjord" not in f)
        files = tuple(f for f in files if MUSIC_FOLDER.search(f)) or files
        if files and root.name not in PACKAGES_WITHOUT_MUSIC:
            settings = {"minutes": 60, "min_hz": 9000}
            sources.append(Source("accompaniment", root.name, *terms, "music", files, settings))
    return sources
