"""Rendered sources: which MIDI files are played by which instruments, and for how long."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from training.corpus import BAND
from training.corpus.recorded.catalogue import licence_class, package_terms
from training.corpus.recorded.sources import Source, read_tsv

FLUID, MUSE = "sf2/FluidR3_GM.sf2", "sf3/MuseScore_General.sf3"  # in the folder of soundfonts
SOUNDFONT_PACKAGES = {FLUID: "fluid-soundfont-gm", MUSE: "musescore-general-soundfont"}
SCORE_TERMS = {"groove": "CC-BY-4.0 (Groove MIDI Dataset)", "freedoom": "BSD-3-Clause (Freedoom)", "": ""}
SOUND_TERMS = {
    FLUID: "MIT (soundfont)",
    MUSE: "MIT (soundfont)",
    "": "",
    "drums/muldjord": "CC-BY-4.0 (MuldjordKit)",
    "drums/uzu": "Unlicense (uzu-drumkit)",
}  # the sampled basses and guitars are CC0
AVL_KITS = {"avl-black-pearl": "Black_Pearl_4_LV2.sf2", "avl-red-zeppelin": "Red_Zeppelin_4_LV2.sf2"}
HYDROGEN_KITS = {  # folder, and terms according to the package's copyright file
    "hydrogen-audiophob": ("Audiophob", "CC0-1.0"),
    "hydrogen-colombo": ("ColomboAcousticDrumkit", "GPL-2+"),
    "hydrogen-forzee": ("ForzeeStereo", "GPL-2"),
    "hydrogen-hardelectro": ("HardElectro1", "GPL-2+"),
    "hydrogen-millo": ("Millo-Drums_v.1", "GPL-2"),
    "hydrogen-millo-3": ("Millo_MultiLayered3", "GPL-2"),
    "hydrogen-black-pearl": ("The Black Pearl 1.0", "GPL-2"),
    "hydrogen-varibreaks": ("VariBreaks", "GPL-2+"),
}
ALL_BASSES = [32, 33, 34, 35, 36, 37, 38, 39]
OTHER_KITS = [16, 17, 24, 25, 32, 33, 40, 48]  # power, electronic, 808, jazz, brush, orchestra
SHORT_LONG = ["staccato", "sustain"]
SHINY = ["sustain-pickup", "sustain-mic"]
SONG_SECONDS = 80.0  # of each song that is rendered stem by stem
MIN_NOTES = 60  # of each of its stems


@dataclasses.dataclass(frozen=True)
class Render:
    """One rendered source: `score` is groove, freedoom or "" (rule-based chords), `sound` a file or folder.

    If `sound` is "", settings["made"] names the kind of synthesized bass.
    """

    pool: str
    name: str
    score: str
    sound: str
    minutes: int
    build_round: int = 2  # those of round 1 are built first
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


RENDERS = (
    Render("drums", "groove-muldjord-1", "groove", "drums/muldjord", 12, 1),
    Render("bass", "growlybass-1", "freedoom", "bass/growlybass", 8, 1, {"articulations": ["sustain"]}),
    Render("other", "strums-shinyguitar-1", "", "guitar/shinyguitar", 8, 1, {"articulations": SHINY}),
    Render("other", "freedoom-fluidr3-1", "freedoom", FLUID, 12, 1),
    Render("drums", "groove-fluidr3-standard-1", "groove", FLUID, 10, 1, {"presets": [0, 1, 2, 3, 8, 9]}),
    Render("bass", "fluidr3-1", "freedoom", FLUID, 12, 1, {"programs": [32, 33, 33, 34, 34, 35, 36, 37]}),
    Render("other", "strums-fluidr3-1", "", FLUID, 8, 1),
    Render("drums", "groove-avl-black-pearl", "groove", "avl-black-pearl", 16, 1),
    Render("drums", "groove-avl-red-zeppelin", "groove", "avl-red-zeppelin", 16),
    Render("bass", "meatbass", "freedoom", "bass/meatbass", 10, 2, {"articulations": ["pizzicato"]}),
    Render("other", "freedoom-guitars-fluidr3", "freedoom", FLUID, 15, 2, {"only_guitars": True}),
    Render("drums", "groove-muldjord-2", "groove", "drums/muldjord", 24),
    Render(
        "bass", "flbass-finger", "freedoom", "bass/flbass", 10, 2,
        {"articulations": ["finger-long-bridge", "finger-long-neck"]},
    ),
    Render("other", "strums-emilyguitar", "", "guitar/emilyguitar", 10, 2, {"articulations": ["sustain"]}),
    Render("other", "freedoom-musescore", "freedoom", MUSE, 30),
    Render("drums", "groove-musescore-standard", "groove", MUSE, 12, 2, {"presets": [0, 1, 4, 5, 10, 14]}),
    Render("bass", "flbass-pick", "freedoom", "bass/flbass", 8, 2, {"articulations": ["pick-long"]}),
    Render("bass", "musescore", "freedoom", MUSE, 20, 2, {"programs": ALL_BASSES}),
    Render("other", "strums-musescore", "", MUSE, 8),
    Render("other", "freedoom-fluidr3-2", "freedoom", FLUID, 30),
    Render("drums", "freedoom-fluidr3", "freedoom", FLUID, 12, 2, {"presets": [0, 8, 16, 16, 24]}),
    Render("drums", "groove-fluidr3-mixed", "groove", FLUID, 12, 2, {"presets": OTHER_KITS}),
    Render("bass", "growlybass-2", "freedoom", "bass/growlybass", 16, 2, {"articulations": SHORT_LONG}),
    Render("other", "freedoom-guitars-musescore", "freedoom", MUSE, 12, 2, {"only_guitars": True}),
    Render("other", "strums-shinyguitar-2", "", "guitar/shinyguitar", 10, 2, {"articulations": SHINY}),
    Render("drums", "freedoom-muldjord", "freedoom", "drums/muldjord", 15),
    Render("drums", "groove-uzu", "groove", "drums/uzu", 8),
    *(Render("drums", f"groove-{name}", "groove", name, 5) for name in HYDROGEN_KITS),
    Render("bass", "fluidr3-2", "freedoom", FLUID, 16, 2, {"programs": [33, 34, 36, 37, 38, 39]}),
)  # fmt: skip
# The following are not in RENDERS, from which the instruments of whole songs are drawn: adding to it would change which
# instrument plays which song.
OCTAVE_BASSES = (
    Render(
        "bass", "flbass-octaves", "freedoom", "bass/flbass", 10, 2,
        {"articulations": ["finger-long-bridge", "finger-long-neck"], "octaves": True},
    ),
    Render("bass", "musescore-octaves", "freedoom", MUSE, 12, 2, {"programs": ALL_BASSES, "octaves": True}),
    Render(
        "bass", "growlybass-octaves", "freedoom", "bass/growlybass", 10, 2,
        {"articulations": SHORT_LONG, "octaves": True},
    ),
)  # fmt: skip
SAMPLED_BASSES = (
    Render("bass", "pastabass-fingered", "freedoom", "bass/pastabass", 14, 1, {"articulations": ["fetuccine"]}),
    Render("bass", "pastabass-round", "freedoom", "bass/pastabass", 12, 2, {"articulations": ["spaghetti"]}),
    Render(
        "bass", "pastabass-picked", "freedoom", "bass/pastabass", 10, 2,
        {"articulations": ["linguine"], "octaves": True},
    ),
    Render("bass", "pastabass-muted", "freedoom", "bass/pastabass", 8, 2, {"articulations": ["tagliatelle"]}),
    Render("bass", "yamaha-finger", "freedoom", "bass/freepats-yr", 10, 2, {"articulations": ["finger"]}),
    Render("bass", "yamaha-pick", "freedoom", "bass/freepats-yr", 10, 2, {"articulations": ["pick"]}),
    Render("bass", "upright-pizzicato", "freedoom", "bass/dsmolken", 10, 2, {"articulations": ["pizz"]}),
)  # fmt: skip
MORE_GUITARS = (
    Render(
        "other", "strums-black-and-green", "", "guitar/black-and-green", 12, 2,
        {"articulations": ["black-twang", "green-twang"]},
    ),
)  # fmt: skip
SYNTH_BASSES = (
    Render("bass", "string-1", "freedoom", "", 20, 2, {"made": "string"}),
    Render("bass", "subtractive-1", "freedoom", "", 20, 2, {"made": "subtractive"}),
    Render("bass", "string-octaves", "freedoom", "", 16, 2, {"made": "string", "octaves": True}),
    Render("bass", "fm", "freedoom", "", 12, 2, {"made": "fm"}),
    Render("bass", "string-2", "freedoom", "", 20, 2, {"made": "string"}),
    Render("bass", "subtractive-2", "freedoom", "", 12, 2, {"made": "subtractive", "octaves": True}),
)


def rendered_sources(shared: Path, soundfonts: Path, debian: Path | None) -> list[Source]:
    """All rendered sources whose instruments are installed; extra["round"] is 1 for those to build first."""
    renders = (*RENDERS, *OCTAVE_BASSES, *SAMPLED_BASSES, *MORE_GUITARS, *SYNTH_BASSES)
    sources = (_source(render, shared, soundfonts, debian) for render in renders)
    return [source for source in sources if source]


def band_sources(shared: Path, soundfonts: Path, debian: Path | None) -> list[Source]:
    """Drums, bass and other of every Freedoom song that has all three, one source each.

    The song's name seeds the choice of instruments and key. There are no vocals: the mixer adds a voice.
    """
    sources: list[Source] = []
    table = shared / "midi/freedoom.tsv"
    for row in read_tsv(table) if table.is_file() else []:
        drums, bass = int(row["drum_notes"]), int(row["bass_notes"])
        seconds, others = float(row["seconds"]), int(row["notes"]) - drums - bass
        if row["has_drums"] == "0" or min(drums, bass, others) < MIN_NOTES or seconds < SONG_SECONDS:
            continue
        title = f"freedoom-{Path(row['file']).stem}"
        rng = np.random.default_rng(zlib.crc32(title.encode()))
        song = {"song": row["file"], "seconds": SONG_SECONDS, "shift": int(rng.integers(-4, 5))}
        band = []
        for stem in BAND:
            players = [r for r in RENDERS if r.pool == stem and r.score]
            player = players[int(rng.integers(len(players)))]
            render = dataclasses.replace(player, name=f"{title}.{stem}", score="freedoom")
            if (source := _source(render, shared, soundfonts, debian)) is None:
                break
            settings = {
                k: v for k, v in source.settings.items() if k not in ("midi", "minutes", "only_guitars")
            }
            settings |= {**song, "stem": stem}
            extra = {"rendered": True, "song": title, "stem": stem}
            band.append(
                dataclasses.replace(source, pool="band", recipe="song_stem", settings=settings, extra=extra)
            )
        sources += band if len(band) == len(BAND) else []
    return sources


def _source(render: Render, shared: Path, soundfonts: Path, debian: Path | None) -> Source | None:
    """The source of a render, or None if one of its files is missing."""
    settings = {"midi": render.score, "minutes": render.minutes, **render.settings}
    terms = SOUND_TERMS.get(render.sound, "CC0-1.0")
    sound: Path | None = None
    if render.sound in (FLUID, MUSE):
        sound = soundfonts / render.sound
    elif render.sound in AVL_KITS:
        if debian is None:
            return None
        package = debian / "avldrums.lv2-soundfont"
        sound = package / "usr/share/sounds/sf2" / AVL_KITS[render.sound]
        terms = f"GPL-2+ (avldrums {package_terms(package, {})[2]})" if package.is_dir() else terms
        settings |= {"presets": [0], "bank128": False}
    elif render.sound in HYDROGEN_KITS:
        if debian is None:
            return None
        package = debian / "hydrogen-drumkits"
        folder, kit_terms = HYDROGEN_KITS[render.sound]
        sound = package / "usr/share/hydrogen/data/drumkits" / folder / "drumkit.xml"
        terms = f"{kit_terms} (hydrogen-drumkits, {folder})"
    elif render.sound:
        sound = shared / render.sound / "index.tsv"
    score = [shared / f"midi/{render.score}{suffix}" for suffix in (".tsv", ".zip")] if render.score else []
    files = [*score, sound] if sound else score
    if not all(file.is_file() for file in files):
        return None
    recipe = render.pool if render.score else "strums"
    licence = " + ".join(t for t in (SCORE_TERMS[render.score], terms) if t)
    extra = {"rendered": True, "round": render.build_round}
    kind = licence_class(licence)
    names = tuple(map(str, files))
    return Source(render.pool, render.name, licence, kind, "rendered", recipe, names, settings, extra)
