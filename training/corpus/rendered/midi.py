"""MIDI in and out: note lists from a file in a zip, and note lists through a soundfont with fluidsynth."""

import dataclasses
import io
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import mido
import numpy as np
import soundfile

from training.corpus.recorded.sources import SAMPLE_RATE, Audio
from training.corpus.rendered.sampler import Note

TICKS_PER_SECOND = 960  # 480 ticks a beat at 120 beats a minute
DRUM_CHANNEL = 9


@dataclasses.dataclass(frozen=True)
class Track:
    """The notes of one channel that share a program (0-based; a bank-128 preset number for drums)."""

    program: int
    notes: tuple[Note, ...]
    drums: bool = False


def read_tracks(archive: str, member: str) -> list[Track]:
    """Tracks of a MIDI file inside a zip; a drum channel has program 0, pedals and bends are dropped."""
    with zipfile.ZipFile(archive) as z:
        file = mido.MidiFile(file=io.BytesIO(z.read(member)), clip=True)
    program = [0] * 16
    open_notes: dict[tuple[int, int], tuple[float, int, int]] = {}
    found: dict[tuple[int, int], list[Note]] = {}
    now = 0.0

    def close(channel: int, pitch: int) -> None:
        start, velocity, played_with = open_notes.pop((channel, pitch))
        notes = found.setdefault((channel, played_with), [])
        notes.append(Note(start, max(now - start, 0.02), pitch, velocity))

    for message in file:
        now += message.time
        if message.type == "program_change":
            program[message.channel] = message.program
        elif message.type in ("note_on", "note_off"):
            if (message.channel, message.note) in open_notes:
                close(message.channel, message.note)
            if message.type == "note_on" and message.velocity > 0:
                played_with = 0 if message.channel == DRUM_CHANNEL else program[message.channel]
                open_notes[message.channel, message.note] = (now, message.velocity, played_with)
    for channel, pitch in list(open_notes):
        close(channel, pitch)
    return [Track(p, tuple(sorted(n)), channel == DRUM_CHANNEL) for (channel, p), n in sorted(found.items())]


def write_midi(tracks: Sequence[Track], path: Path, *, pans: Sequence[int] | None = None) -> None:
    """Write tracks, each on a channel of its own (more than 15 melodic ones share channels in turn)."""
    file = mido.MidiFile(ticks_per_beat=480)
    melodic = [c for c in range(16) if c != DRUM_CHANNEL]
    used = 0
    for index, track in enumerate(tracks):
        channel = DRUM_CHANNEL if track.drums else melodic[used % 15]
        used += not track.drums
        out = mido.MidiTrack()
        out.append(mido.Message("program_change", channel=channel, program=track.program))
        if pans:
            out.append(mido.Message("control_change", channel=channel, control=10, value=pans[index]))
        events = []
        for note in track.notes:
            ends = note.start + note.duration
            events.append((round(note.start * TICKS_PER_SECOND), 1, note.pitch, note.velocity))
            events.append(
                (
                    max(round(ends * TICKS_PER_SECOND), round(note.start * TICKS_PER_SECOND) + 1),
                    0,
                    note.pitch,
                    0,
                )
            )
        at = 0
        for tick, _, pitch, velocity in sorted(events):
            out.append(
                mido.Message("note_on", channel=channel, note=pitch, velocity=velocity, time=tick - at)
            )
            at = tick
        file.tracks.append(out)
    file.save(path)


def synthesize(
    tracks: Sequence[Track],
    soundfont: str,
    *,
    seconds: float,
    room: bool = False,
    pans: Sequence[int] | None = None,
) -> Audio:
    """Render tracks with the fluidsynth command to (n, 2); `room` adds its reverb and chorus.

    Raises ValueError when fluidsynth fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "in.mid", Path(folder) / "out.wav"
        write_midi(tracks, midi, pans=pans)
        switch = "1" if room else "0"
        command = ["fluidsynth", "-ni", "-q", "-g", "0.4", "-R", switch, "-C", switch, "-r", str(SAMPLE_RATE)]
        command += [
            "-o",
            "synth.dynamic-sample-loading=1",
            "-o",
            "synth.polyphony=256",
            "-O",
            "float",
            "-T",
            "wav",
        ]
        done = subprocess.run(
            [*command, "-F", str(wav), soundfont, str(midi)], capture_output=True, check=False
        )
        if done.returncode or not wav.is_file():
            raise ValueError(
                f"fluidsynth failed on {soundfont}: {done.stderr.decode(errors='replace')[:200]}"
            )
        audio, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    length = int(seconds * SAMPLE_RATE)
    return np.pad(audio[:length], ((0, max(0, length - len(audio))), (0, 0)))


def clip_tracks(tracks: Sequence[Track], *, start: float, seconds: float) -> list[Track]:
    """The notes that begin within a window, moved so that the window starts at 0."""
    kept = []
    for track in tracks:
        notes = [
            dataclasses.replace(n, start=n.start - start, duration=min(n.duration, start + seconds - n.start))
            for n in track.notes
            if start <= n.start < start + seconds - 0.05
        ]
        if notes:
            kept.append(dataclasses.replace(track, notes=tuple(notes)))
    return kept


def transpose(notes: Sequence[Note], semitones: int) -> tuple[Note, ...]:
    """Notes moved by semitones, kept within MIDI's 0..127."""
    return tuple(dataclasses.replace(n, pitch=int(np.clip(n.pitch + semitones, 0, 127))) for n in notes)
