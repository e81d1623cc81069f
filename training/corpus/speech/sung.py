"""Voicebank takes and speech set to melodies with WORLD (pyworld): pitch, note lengths, vibrato, formants.

A phrase consists of one take of a voicebank (syllables on one pitch) or one clip of speech. Each of its syllables gets
a note of a diatonic melody: it is stretched to the note's length, and the melody replaces the recorded pitch. Half of a
singer's pitch variation is kept.
WORLD: Morise, Yokomori, Ozawa, IEICE Transactions E99-D, 2016.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.catalogue import VOICEBANKS
from training.corpus.recorded.sources import (
    Audio,
    Piece,
    Source,
    normalize,
    read_excerpt,
    read_take_tables,
    read_widest_clips,
    take_files,
)

MINUTES = {
    "alys": 9, "hitsuboku-kumi": 8, "ibuki": 8, "yuki": 6,
    "dorodoro": 5, "torone-rei": 5, "iona": 5, "erithacus": 4,
}  # fmt: skip
SPEECH_MINUTES = 2.0  # at most, per speaker
MIN_CLIPS = 10  # per speaker
# Speakers whose clips are too short or too noisy to make a line of
UNUSABLE_SPEAKERS = tuple(f"ktuberling-{language}" for language in ("fi", "it", "nds", "nl", "pt", "sv"))
SPOKEN_PITCH = (65.0, 600.0)  # Hz
SPOKEN_SYLLABLE = 0.2  # s
FRAME = 0.008  # s between WORLD frames
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10), (0, 2, 4, 7, 9), (0, 3, 5, 7, 10))
NOTE_LENGTHS = (0.5, 0.5, 0.5, 1.0, 1.0, 1.5, 2.0, 3.0)  # beats
SMALL_KANA = "ゃゅょぁぃぅぇぉャュョァィゥェォー・"


def count_syllables(file_name: str, seconds: float) -> int:
    """Number of syllables in a take, from its name if that is Japanese, else one per 0.6 s."""
    kana = [c for c in Path(file_name).stem if "ぁ" <= c <= "ヺ" and c not in SMALL_KANA]
    latin = re.findall(r"[aiueo]+", Path(file_name).stem)
    count = len(kana) or (len(latin) if len(latin) > 1 else round(seconds / 0.6))
    return int(np.clip(count, 1, max(1, seconds / 0.15)))


def draw_melody(count: int, centre: float, rng: np.random.Generator) -> list[float]:
    """MIDI pitches of a phrase: a random walk on a random scale, within 7 semitones of `centre`."""
    scale = SCALES[int(rng.integers(len(SCALES)))]
    key = rng.integers(12)
    low, high = centre - 7, centre + 7
    scale_pitches = [float(p) for p in range(int(low), int(high) + 1) if (p - key) % 12 in scale]
    degree = int(np.argmin(np.abs(np.array(scale_pitches) - centre - rng.normal(0, 2.5))))
    notes = []
    for _ in range(count):
        notes.append(scale_pitches[degree])
        step = int(rng.choice([-3, -2, -1, -1, 0, 0, 1, 1, 2, 3]))
        degree = int(np.clip(degree + step, 0, len(scale_pitches) - 1))
    return notes


def draw_pitch(notes: list[float], lengths: list[float], rng: np.random.Generator) -> NDArray[np.float64]:
    """Pitch in Hz per frame, with glides between notes, vibrato on long notes, and slow drift."""
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
    """Stretch an envelope (frames, bins) along frequency; a ratio above 1 sounds like a smaller singer."""
    bins = envelope.shape[1]
    positions = np.minimum(np.arange(bins) / ratio, bins - 1)
    low = np.minimum(positions.astype(int), bins - 2)
    weight = positions - low
    return np.ascontiguousarray(envelope[:, low] * (1 - weight) + envelope[:, low + 1] * weight)


@dataclasses.dataclass(frozen=True)
class Take:
    """WORLD's parameters of a take: f0 in Hz (frames,), spectral envelope and aperiodicity (frames, bins)."""

    f0: NDArray[np.float64]
    envelope: NDArray[np.float64]
    aperiodicity: NDArray[np.float64]


def analyse(audio: Audio, lowest: float, highest: float) -> Take:
    """Analyse (n, 1) audio with a pitch between `lowest` and `highest` Hz."""
    import pyworld  # optional: only these recipes need it

    x = np.ascontiguousarray(audio[:, 0], np.float64)
    period = FRAME * 1000
    f0, times = pyworld.dio(x, SAMPLE_RATE, f0_floor=lowest, f0_ceil=highest, frame_period=period)
    f0 = pyworld.stonemask(x, f0, times, SAMPLE_RATE)
    envelope = pyworld.cheaptrick(x, f0, times, SAMPLE_RATE)
    return Take(f0, envelope, pyworld.d4c(x, f0, times, SAMPLE_RATE))


def sing(
    take: Take, hertz: float | None, count: int, rng: np.random.Generator, *, ratio: float, beat: float
) -> Audio:
    """Set a take to a melody.

    Args:
        take: The take.
        hertz: The pitch it was sung at, or None for speech, which is sung higher and slower.
        count: Number of syllables.
        rng: Draws the melody.
        ratio: Formant shift.
        beat: Length of a beat in s.

    Returns:
        (n, 1), empty if nothing is voiced.
    """
    import pyworld

    voiced = np.flatnonzero(take.f0)
    if len(voiced) < 20:
        return np.zeros((0, 1), np.float32)
    first, last = int(voiced[0]), int(voiced[-1]) + 1
    natural = (last - first) * FRAME / count
    max_length = max(natural * (2.2 if hertz else 4.0), 0.2)
    lengths = [
        float(np.clip(rng.choice(NOTE_LENGTHS) * beat, natural * 0.45, max_length)) for _ in range(count)
    ]
    spoken = hertz is None
    hertz = hertz or float(np.median(take.f0[voiced]))
    centre = 69 + 12 * np.log2(hertz / 440) + (rng.uniform(0, 9) if spoken else rng.uniform(-4, 4))
    pitch = draw_pitch(draw_melody(count, float(centre), rng), lengths, rng)
    ends = np.concatenate([[0], np.cumsum([max(4, round(s / FRAME)) for s in lengths])])
    positions = np.interp(np.arange(ends[-1]), ends, np.linspace(first, last, count + 1))
    # The consonant before the first voiced frame and the decay after the last one are not stretched.
    lead = np.arange(max(0, first - int(0.12 / FRAME)), first)
    tail = np.arange(last, min(len(take.f0), last + int(0.15 / FRAME)))
    positions = np.concatenate([lead, positions, tail])
    pitch = np.concatenate([np.full(len(lead), pitch[0]), pitch, np.full(len(tail), pitch[-1])])
    index = np.clip(np.rint(positions).astype(int), 0, len(take.f0) - 1)
    recorded = take.f0[index]
    deviation = np.where((recorded > 0) & (not spoken), np.maximum(recorded, 1) / hertz, 1.0)
    f0 = np.where(recorded > 0, pitch * np.clip(deviation, 0.94, 1.06) ** 0.5, 0.0)
    envelope = warp_formants(take.envelope[index], ratio)
    aperiodicity = np.ascontiguousarray(take.aperiodicity[index])
    audio = pyworld.synthesize(f0, envelope, aperiodicity, SAMPLE_RATE, FRAME * 1000)
    return np.asarray(audio, np.float32)[:, None]


@dataclasses.dataclass(frozen=True)
class Words:
    """The material of a phrase."""

    take: Take
    hertz: float | None  # pitch of the recording; None for speech
    syllables: int
    name: str


def sing_lines(words: Iterator[Words], rng: np.random.Generator, minutes: float) -> Iterator[Piece]:
    """Lines of phrases and pauses, each with one voice, tempo and formant shift; (n, 1).

    Words are often repeated with another melody, as in verses, which also halves the analysis.
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
                phrase = normalize(phrase, level_db=-20 + rng.normal(0, 2.5))
                # Short phrases may follow each other at once; after a long one there is a breath.
                is_short = len(phrase) < 2.5 * SAMPLE_RATE
                pause = rng.uniform(0.02, 0.5) if is_short else rng.uniform(0.2, 2.0)
                line += [phrase, np.zeros((int(pause * SAMPLE_RATE), 1), np.float32)]
                labels.append(Path(word.name).stem)
        if line:
            audio = np.concatenate(line)
            left -= len(audio)
            yield Piece(audio, " ".join(labels))


def sing_takes(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """Random takes of a voicebank, set to melodies, settings["minutes"] in total."""
    takes: list[tuple[str, float, float, float, str]] = []
    for recording, rows in read_take_tables(source.files):
        for row in rows:
            start, end = float(row["start_seconds"]), float(row["end_seconds"])
            hertz = float(row.get("measured_hz") or 0)
            if 70 < hertz < 900 and end - start > 0.6:
                takes.append((recording, start, min(end, start + 9), hertz, row["source_file"]))

    def words() -> Iterator[Words]:
        while takes:
            recording, start, end, hertz, name = takes[int(rng.integers(len(takes)))]
            take = analyse(read_excerpt(recording, start, end)[:, :1], hertz * 0.7, hertz * 1.42)
            yield Words(take, hertz, count_syllables(name, end - start), name)

    return sing_lines(words(), rng, source.settings["minutes"])


def sing_speech(source: Source, rng: np.random.Generator) -> Iterator[Piece]:
    """The clips of a speaker in random order, each used once, set to melodies, up to settings["minutes"]."""

    def words() -> Iterator[Words]:
        for clip in read_widest_clips(list(rng.permutation(source.files)), source.settings["min_hz"]):
            audio = clip.audio[: 6 * SAMPLE_RATE]
            seconds = len(audio) / SAMPLE_RATE
            if seconds > 0.4:
                syllables = max(1, round(seconds / SPOKEN_SYLLABLE))
                yield Words(analyse(audio, *SPOKEN_PITCH), None, syllables, clip.label)

    return sing_lines(words(), rng, source.settings["minutes"])


def sung_sources(shared: Path) -> list[Source]:
    """Two sources per voicebank: 2.5 minutes, so that every voice is available early, and the rest."""
    sources = []
    extra = {"voice": "singing", "speakers": 0}
    for part in (1, 2):
        for name, (pattern, licence, kind, version) in VOICEBANKS.items():
            files = take_files(shared, pattern)
            settings = {"minutes": 2.5 if part == 1 else MINUTES[name] - 2.5}
            title = f"sung-{name}-{part}"
            sources.append(Source("vocals", title, licence, kind, version, "sung", files, settings, extra))
    return sources


def sung_speech_sources(speech: Iterable[Source]) -> list[Source]:
    """Every speaker with enough clips, singing for up to SPEECH_MINUTES."""
    return [
        dataclasses.replace(
            source,
            name=f"sung-{source.name}",
            recipe="sung_speech",
            settings={**source.settings, "minutes": SPEECH_MINUTES},
            extra={"voice": "sung speech", "speakers": 0},  # already counted as speakers
        )
        for source in speech
        if len(source.files) >= MIN_CLIPS and source.name not in UNUSABLE_SPEAKERS
    ]
