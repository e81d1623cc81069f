"""Read MIDI files from zip archives, and render notes through a soundfont with fluidsynth."""

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

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.sources import Audio
from training.corpus.rendered.sampler import Note

TICKS_PER_SECOND = 960  # 480 ticks per beat at 120 BPM
DRUM_CHANNEL = 9


@dataclasses.dataclass(frozen=True)
class Track:
    """The notes of one channel and program (0-based; for drums, the preset in bank 128)."""

    program: int
    notes: tuple[Note, ...]
    drums: bool = False


def read_tracks(archive: str, member: str) -> list[Track]:
    """Tracks of a MIDI file in a zip archive; drums have program 0, pedals and bends are ignored."""
    with zipfile.ZipFile(archive) as z:
        file = mido.MidiFile(file=io.BytesIO(z.read(member)), clip=True)
    program = [0] * 16
    open_notes: dict[tuple[int, int], tuple[float, int, int]] = {}
    tracks: dict[tuple[int, int], list[Note]] = {}
    now = 0.0

    def close(channel: int, pitch: int) -> None:
        start, velocity, note_program = open_notes.pop((channel, pitch))
        notes = tracks.setdefault((channel, note_program), [])
        notes.append(Note(start, max(now - start, 0.02), pitch, velocity))

    for message in file:
        now += message.time
        if message.type == "program_change":
            program[message.channel] = message.program
        elif message.type in ("note_on", "note_off"):
            if (message.channel, message.note) in open_notes:
                close(message.channel, message.note)
            if message.type == "note_on" and message.velocity > 0:
                note_program = 0 if message.channel == DRUM_CHANNEL else program[message.channel]
                open_notes[message.channel, message.note] = (now, message.velocity, note_program)
    for channel, pitch in list(open_notes):
        close(channel, pitch)
    return [Track(p, tuple(sorted(n)), channel == DRUM_CHANNEL) for (channel, p), n in sorted(tracks.items())]


def write_midi(tracks: Sequence[Track], path: Path, *, pans: Sequence[int] | None = None) -> None:
    """Write tracks, one per channel; more than 15 melodic ones share channels in turn."""
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
            start = round(note.start * TICKS_PER_SECOND)
            end = max(round((note.start + note.duration) * TICKS_PER_SECOND), start + 1)
            events += [(start, 1, note.pitch, note.velocity), (end, 0, note.pitch, 0)]
        now = 0
        for tick, _, pitch, velocity in sorted(events):
            out.append(
                mido.Message("note_on", channel=channel, note=pitch, velocity=velocity, time=tick - now)
            )
            now = tick
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
    """Render tracks with fluidsynth to (n, 2); `room` adds its reverb and chorus.

    Raises ValueError if fluidsynth fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        midi, wav = Path(folder) / "in.mid", Path(folder) / "out.wav"
        write_midi(tracks, midi, pans=pans)
        switch = "1" if room else "0"
        command = [
            "fluidsynth", "-ni", "-q", "-g", "0.4", "-R", switch, "-C", switch, "-r", str(SAMPLE_RATE),
            "-o", "synth.dynamic-sample-loading=1", "-o", "synth.polyphony=256", "-O", "float", "-T", "wav",
            "-F", str(wav), soundfont, str(midi),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode or not wav.is_file():
            raise ValueError(
                f"fluidsynth failed on {soundfont}: {done.stderr.decode(errors='replace')[:200]}"
            )
        audio, _ = soundfile.read(wav, dtype="float32", always_2d=True)
    length = int(seconds * SAMPLE_RATE)
    return np.pad(audio[:length], ((0, max(0, length - len(audio))), (0, 0)))


def clip_tracks(tracks: Sequence[Track], *, start: float, seconds: float) -> list[Track]:
    """The notes that begin within a window, shifted so that it starts at 0."""
    clipped = []
    for track in tracks:
        notes = [
            dataclasses.replace(n, start=n.start - start, duration=min(n.duration, start + seconds - n.start))
            for n in track.notes
            if start <= n.start < start + seconds - 0.05
        ]
        if notes:
            clipped.append(dataclasses.replace(track, notes=tuple(notes)))
    return clipped


def transpose(notes: Sequence[Note], semitones: int) -> tuple[Note, ...]:
    """Notes shifted by semitones and clipped to MIDI's range."""
    return tuple(dataclasses.replace(n, pitch=int(np.clip(n.pitch + semitones, 0, 127))) for n in notes)
