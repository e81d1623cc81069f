"""Voicebank takes and speech set to melodies with WORLD (pyworld): pitch, note lengths, vibrato, formants.

A phrase takes one take of a voicebank (syllables on one pitch) or one spoken clip, gives each of its
syllables a note of a diatonic melody, stretches the syllable to the note's length and puts the melody's
pitch in place of the recorded one; half of a singer's wavering stays.
WORLD: Morise, Yokomori, Ozawa, IEICE Transactions E99-D, 2016.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.corpus.recorded.catalogue import VOICEBANKS
from training.corpus.recorded.sources import (
    SAMPLE_RATE,
    Audio,
    Piece,
    Source,
    normalise,
    read_span,
    read_tsv,
    widest_clips,
)

MINUTES = {
    "alys": 9, "hitsuboku-kumi": 8, "ibuki": 8, "yuki": 6,
    "dorodoro": 5, "torone-rei": 5, "iona": 5, "erithacus": 4,
}  # fmt: skip
SPEECH_MINUTES = 2.0  # at most, of every speaker
FEWEST_CLIPS = 10
# Their clips are words of a syllable, or noisy: not one line could be made of them.
TOO_SHORT = tuple(f"ktuberling-{language}" for language in ("fi", "it", "nds", "nl", "pt", "sv"))
SPOKEN_PITCH = (65.0, 600.0)  # Hz
SPOKEN_SYLLABLE = 0.2  # s
FRAME = 0.008  # s between WORLD frames
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10))
LENGTHS = (0.5, 0.5, 0.5, 1.0, 1.0, 1.5, 2.0, 3.0)  # of a note, in beats
SMALL_KANA = "ゃゅょぁぃぅぇぉャュョァィゥェォー・"


def syllables(file_name: str, seconds: float) -> int:
    """Number of syllables in a take, from its name where that is Japanese, else one for every 0.6 s."""
    kana = [c for c in Path(file_name).stem if "ぁ" <= c <= "ヺ" and c not in SMALL_KANA]
    latin = re.findall(r"[aiueo]+", Path(file_name).stem)
    count = len(kana) or (len(latin) if len(latin) > 1 else round(seconds / 0.6))
    return int(np.clip(count, 1, max(1, seconds / 0.15)))


def melody(count: int, centre: float, rng: np.random.Generator) -> list[float]:
    """MIDI pitches of a phrase: a walk over a random scale that stays within 7 semitones of `centre`."""
    scale = SCALES[int(rng.integers(len(SCALES)))]
    key = rng.integers(12)
    low, high = centre - 7, centre + 7
    ladder = [float(p) for p in range(int(low), int(high) + 1) if (p - key) % 12 in scale]
    place = int(np.argmin(np.abs(np.array(ladder) - centre - rng.normal(0, 2.5))))
    notes = []
    for _ in range(count):
        notes.append(ladder[place])
        step = int(rng.choice([-3, -2, -1, -1, 0, 0, 1, 1, 2, 3]))
        place = int(np.clip(place + step, 0, len(ladder) - 1))
    return notes


def pitch_curve(notes: list[float], lengths: list[float], rng: np.random.Generator) -> NDArray[np.float64]:
    """Frequency in Hz a frame: glides between notes, vibrato on long notes, slow drift."""
    frames = [max(4, round(s / FRAME)) for s in lengths]
    curve = np.concatenate([np.full(n, p) for n, p in zip(frames, notes, strict=True)])
    glide = np.hanning(max(5, int(rng.uniform(0.04, 0.14) / FRAME)) + 2)[1:-1]
    padded = np.pad(curve, len(glide) // 2 + 1, mode="edge")
    curve = np.convolve(padded, glide / glide.sum(), "same")[len(glide) // 2 + 1 :][: len(curve)]
    depth, rate = rng.uniform(0, 0.6), rng.uniform(4.5, 6.5)
    start = 0
    for n in frames:
        time = np.arange(n) * FRAME
        swell = np.clip((time - 0.25) / 0.3, 0, 1)
        curve[start : start + n] += depth * swell * np.sin(2 * np.pi * rate * time)
        start += n
    drift = np.convolve(rng.standard_normal(len(curve) + 60), np.hanning(61) / 30, "valid")[: len(curve)]
    return np.asarray(440 * 2 ** ((curve + 0.06 * drift - 69) / 12))


def warp_formants(envelope: NDArray[np.float64], ratio: float) -> NDArray[np.float64]:
    """Stretch an envelope (frames, bins) along frequency; ratio above 1 sounds like a smaller singer."""
    bins = envelope.shape[1]
    place = np.minimum(np.arange(bins) / ratio, bins - 1)
    low = np.minimum(place.astype(int), bins - 2)
    part = place - low
    return np.ascontiguousarray(envelope[:, low] * (1 - part) + envelope[:, low + 1] * part)


@dataclasses.dataclass(frozen=True)
class Take:
    """WORLD's view of a take: f0 in Hz (frames,), spectral envelope and noisiness (frames, bins)."""

    f0: NDArray[np.float64]
    envelope: NDArray[np.float64]
    noise: NDArray[np.float64]


def analyse(audio: Audio, lowest: float, highest: float) -> Take:
    """Take apart (n, 1) audio whose pitch lies between `lowest` and `highest` Hz."""
    import pyworld  # only this recipe needs it

    x = np.ascontiguousarray(audio[:, 0], np.float64)
    period = FRAME * 1000
    f0, times = pyworld.dio(x, SAMPLE_RATE, f0_floor=lowest, f0_ceil=highest, frame_period=period)
    f0 = pyworld.stonemask(x, f0, times, SAMPLE_RATE)
    envelope = pyworld.cheaptrick(x, f0, times, SAMPLE_RATE)
    return Take(f0, envelope, pyworld.d4c(x, f0, times, SAMPLE_RATE))


def sing(
    take: Take,
    hertz: float | None,
    count: int,
    rng: np.random.Generator,
    *,
    ratio: float,
    beat: float,
) -> Audio:
    """Set a take of `count` syllables to a melody; (n, 1), empty if nothing is voiced.

    It was sung at `hertz`; None is speech, whose own melody goes, and which is sung higher and slower.
    """
    import pyworld

    voiced = np.flatnonzero(take.f0)
    if len(voiced) < 20:
        return np.zeros((0, 1), np.float32)
    first, last = int(voiced[0]), int(voiced[-1]) + 1
    natural = (last - first) * FRAME / count
    longest = max(natural * (2.2 if hertz else 4.0), 0.2)
    lengths = [float(np.clip(rng.choice(LENGTHS) * beat, natural * 0.45, longest)) for _ in range(count)]
    spoken = hertz is None
    hertz = hertz or float(np.median(take.f0[voiced]))
    centre = 69 + 12 * np.log2(hertz / 440) + (rng.uniform(0, 9) if spoken else rng.uniform(-4, 4))
    curve = pitch_curve(melody(count, float(centre), rng), lengths, rng)
    ends = np.concatenate([[0], np.cumsum([max(4, round(s / FRAME)) for s in lengths])])
    place = np.interp(np.arange(ends[-1]), ends, np.linspace(first, last, count + 1))
    # The consonant before the first voiced frame and the fading of the last one keep their time.
    lead = np.arange(max(0, first - int(0.12 / FRAME)), first)
    tail = np.arange(last, min(len(take.f0), last + int(0.15 / FRAME)))
    place = np.concatenate([lead, place, tail])
    curve = np.concatenate([np.full(len(lead), curve[0]), curve, np.full(len(tail), curve[-1])])
    index = np.clip(np.rint(place).astype(int), 0, len(take.f0) - 1)
    taken = take.f0[index]
    waver = np.where((taken > 0) & (not spoken), np.maximum(taken, 1) / hertz, 1.0)
    tuned = np.where(taken > 0, curve * np.clip(waver, 0.94, 1.06) ** 0.5, 0.0)
    shaped = warp_formants(take.envelope[index], ratio)
    noise = np.ascontiguousarray(take.noise[index])
    sound = pyworld.synthesize(tuned, shaped, noise, SAMPLE_RATE, FRAME * 1000)
    return np.asarray(sound, np.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class Words:
    """What one phrase sings: a take, where known the pitch (Hz) it was sung at, its syllables, its name."""

    take: Take
    hertz: float | None
    syllables: int
    name: str


def lines(words: Iterator[Words], rng: np.random.Generator, minutes: float) -> Iterator[Piece]:
    """Lines of phrases and pauses with one voice, one tempo and one formant shift a line; (n, 1).

    The words of a phrase often come twice, to another melody: verses do that, and it halves the analysis.
    """
    left = minutes * 60 * SAMPLE_RATE
    ended = False
    while left > 0 and not ended:
        ratio, beat = 2 ** rng.uniform(-0.22, 0.22), 60 / rng.uniform(65, 150)
        line: list[Audio] = []
        labels = []
        while sum(map(len, line)) < 25 * SAMPLE_RATE:
            word = next(words, None)
            if word is None:
                ended = True
                break
            for _ in range(int(rng.choice([1, 2, 2]))):
                phrase = sing(word.take, word.hertz, word.syllables, rng, ratio=ratio, beat=beat)
                if len(phrase) < 0.3 * SAMPLE_RATE or not np.isfinite(phrase).all():
                    continue
                phrase = normalise(phrase, level_db=-20 + rng.normal(0, 2.5))
                # After a single syllable the next one may follow at once; after a phrase there is a breath.
                single = len(phrase) < 2.5 * SAMPLE_RATE
                pause = rng.uniform(0.02, 0.5) if single else rng.uniform(0.2, 2.0)
                line += [phrase, np.zeros((int(pause * SAMPLE_RATE), 1), np.float32)]
                labels.append(Path(word.name).stem)
        if line:
            audio = np.concatenate(line)
            left -= len(audio)
            yield Piece(audio, " ".join(labels))


def sung(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The takes of a voicebank in random order, without end, until settings["minutes"] are sung."""
    takes: list[tuple[str, float, float, float, str]] = []
    for opus, table in zip(source.files[::2], source.files[1::2], strict=True):
        for row in read_tsv(Path(table)):
            start, end = float(row["start_seconds"]), float(row["end_seconds"])
            hertz = float(row.get("measured_hz") or 0)
            if 70 < hertz < 900 and end - start > 0.6:
                takes.append((opus, start, min(end, start + 9), hertz, row["source_file"]))

    def words() -> Iterator[Words]:
        while takes:
            opus, start, end, hertz, name = takes[int(rng.integers(len(takes)))]
            take = analyse(read_span(opus, start, end)[:, :1], hertz * 0.7, hertz * 1.42)
            yield Words(take, hertz, syllables(name, end - start), name)

    return lines(words(), rng, source.settings["minutes"])


def sung_speech(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The clips of a speaker, each once in random order, until settings["minutes"] are sung."""

    def words() -> Iterator[Words]:
        for clip in widest_clips(list(rng.permutation(source.files)), source.settings["min_hz"]):
            audio = clip.audio[: 6 * SAMPLE_RATE]
            seconds = len(audio) / SAMPLE_RATE
            if seconds > 0.4:
                yield Words(
                    analyse(audio, *SPOKEN_PITCH), None, max(1, round(seconds / SPOKEN_SYLLABLE)), clip.label
                )

    return lines(words(), rng, source.settings["minutes"])


def sung_sources(shared: Path) -> list[Source]:
    """Two melodic sources a voicebank: 2.5 minutes, so that every voice sings early, and the rest."""
    found = []
    for part in (1, 2):
        for name, (pattern, licence, kind, version) in VOICEBANKS.items():
            opus = sorted((shared / "voices").glob(f"{pattern}.opus"))
            files = tuple(str(f) for p in opus for f in (p, p.with_suffix(".tsv")))
            settings = {"minutes": 2.5 if part == 1 else MINUTES[name] - 2.5}
            title, extra = f"sung-{name}-{part}", {"voice": "singing", "speakers": 0}
            found.append(Source("vocals", title, licence, kind, version, "sung", files, settings, extra))
    return found


def sung_speech_sources(speech: Iterable[Source]) -> list[Source]:
    """Every speaker of more than a few shouts singing, for SPEECH_MINUTES or as long as there are words."""
    return [
        dataclasses.replace(
            source,
            name=f"sung-{source.name}",
            recipe="sung_speech",
            settings={**source.settings, "minutes": SPEECH_MINUTES},
            extra={"voice": "sung speech", "speakers": 0},  # the same ones again
        )
        for source in speech
        if len(source.files) >= FEWEST_CLIPS and source.name not in TOO_SHORT
    ]
