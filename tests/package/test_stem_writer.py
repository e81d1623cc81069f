from __future__ import annotations

import os
import resource
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa_sep.audio import stem_writer
from tfswa_sep.audio.encode import Encoder
from tfswa_sep.audio.ffmpeg import ffmpeg_encodes
from tfswa_sep.audio.formats import find_format
from tfswa_sep.audio.stem_writer import StemWriter, Written
from tfswa_sep.errors import OutputError, UsageError

Samples = NDArray[np.float32]
Noise = Callable[..., Samples]


def write(
    folder: Path,
    stems: Samples,
    *,
    container: str = "wav",
    bit_depth: str | None = None,
    rate: int = 44_100,
    expected: int | None = None,
    **options: Any,
) -> Written:
    """Write (s, c, n) samples in blocks as stems "0", "1", ..."""
    paths = {str(index): folder / f"{index}.{container}" for index in range(len(stems))}
    with StemWriter(
        paths,
        audio_format=find_format(container, bit_depth),
        rate=rate,
        channels=stems.shape[1],
        frames=expected,
        **options,
    ) as writer:
        for start in range(0, stems.shape[-1], 1000):
            writer.write(stems[..., start : start + 1000])
        return writer.commit()


def read(written: Written, stem: str = "0") -> Samples:
    samples: Samples = soundfile.read(written.files[stem], dtype="float32", always_2d=True)[0].T
    return samples


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Writing beyond `size` bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_floats_are_kept_to_the_bit_whatever_their_size(tmp_path: Path, noise: Noise) -> None:
    stems = noise(4, 5003, peak=7.0).reshape(2, 2, 5003)
    written = write(tmp_path / "new" / "folder", stems)
    np.testing.assert_array_equal(read(written, "1"), stems[1])
    assert soundfile.info(written.files["0"]).subtype == "FLOAT"
    assert written.clipped == {"0": 0, "1": 0} and written.gain == 1.0
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["0.wav", "1.wav"]


@pytest.mark.parametrize(
    ("container", "bit_depth", "bits"),
    (("wav", "16", 16), ("wav", "24", 24), ("flac", "16", 16), ("flac", None, 24)),
)
def test_integers_are_rounded_and_what_they_clip_is_counted(
    tmp_path: Path, noise: Noise, container: str, bit_depth: str | None, bits: int
) -> None:
    stems = noise(2, 5003).reshape(1, 2, 5003)
    stems[0, 0, 10:13] = 1.5, -1.5, 1.0
    stems[0, 1, 20] = -1.0  # the lowest integer: not clipped
    written = write(tmp_path, stems, container=container, bit_depth=bit_depth)
    steps = 2 ** (bits - 1)
    expected = np.clip(np.rint(stems[0].astype(np.float64) * steps), -steps, steps - 1) / steps
    np.testing.assert_array_equal(read(written), expected.astype(np.float32))
    assert written.clipped == {"0": 3}
    assert soundfile.info(written.files["0"]).subtype == f"PCM_{bits}"


@pytest.mark.parametrize(("container", "bit_depth"), (("flac", "16"), ("wav", "24"), ("wav", "32f")))
def test_rescale_applies_one_common_gain(
    tmp_path: Path, noise: Noise, container: str, bit_depth: str
) -> None:
    stems = noise(4, 5003).reshape(2, 2, 5003)
    stems[1, 0, 4321] = -2.0
    written = write(tmp_path, stems, container=container, bit_depth=bit_depth, rescale=True)
    assert written.gain == pytest.approx(0.5, abs=1e-4)
    assert written.clipped == {"0": 0, "1": 0}
    for index in range(2):
        np.testing.assert_allclose(read(written, str(index)), stems[index] * 0.5, atol=1e-4)
    assert len(os.listdir(tmp_path)) == 2  # the floats are gone


def test_rescale_leaves_quiet_stems_alone(tmp_path: Path, noise: Noise) -> None:
    stems = noise(2, 5003).reshape(1, 2, 5003)
    written = write(tmp_path, stems, bit_depth="24", rescale=True)
    assert written.gain == 1.0
    np.testing.assert_allclose(read(written), stems[0], atol=1e-6)


def test_what_might_be_large_is_a_plain_wav_where_it_is_not(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    stems = noise(2, 5003).reshape(1, 2, 5003)
    opened = []
    make = soundfile.SoundFile.__init__

    def note(self: soundfile.SoundFile, *arguments: Any, **options: Any) -> None:
        if "format" in options:  # to write; it is opened again to count its samples
            opened.append(options["format"])
        make(self, *arguments, **options)

    monkeypatch.setattr(soundfile.SoundFile, "__init__", note)
    write(tmp_path, stems, expected=5003)
    write(tmp_path, stems)  # of unknown length, as an MP3 without a header
    monkeypatch.setattr(stem_writer, "WAV_BYTES", 5003 * 8 - 1)
    written = write(tmp_path, stems, expected=5003)
    assert opened == ["WAV", "RF64", "RF64"]
    assert written.files["0"].read_bytes()[:4] == b"RIFF"
    np.testing.assert_array_equal(read(written), stems[0])


@pytest.mark.parametrize("failure", (RuntimeError, KeyboardInterrupt))
@pytest.mark.parametrize("rescale", (False, True))
def test_nothing_stays_after_a_failure(
    tmp_path: Path, noise: Noise, failure: type[BaseException], rescale: bool
) -> None:
    folder = tmp_path / "a" / "b"
    paths = {"x": folder / "x.wav", "y": folder / "c" / "y.wav"}
    with (
        pytest.raises(failure),
        StemWriter(
            paths,
            audio_format=find_format("wav", "16"),
            rate=8000,
            channels=1,
            rescale=rescale,
        ) as writer,
    ):
        writer.write(noise(2, 9000).reshape(2, 1, 9000))
        assert len(list(folder.rglob(".*.tmp"))) == 2
        raise failure
    assert os.listdir(tmp_path) == []


def test_stems_are_encoded_side_by_side_each_in_order(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_at_work = threading.Barrier(3, timeout=300)
    encode = Encoder.write

    def write_together(encoder: Encoder, samples: Samples) -> None:
        all_at_work.wait()  # breaks if one waits for another
        encode(encoder, samples)

    monkeypatch.setattr(Encoder, "write", write_together)
    stems = noise(3, 5003).reshape(3, 1, 5003)
    written = write(tmp_path, stems)
    for index in range(3):
        np.testing.assert_array_equal(read(written, str(index)), stems[index])


def test_an_interruption_waits_for_what_is_being_encoded(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()
    encode = Encoder.write

    def write_slowly(encoder: Encoder, samples: Samples) -> None:
        begun.set()
        time.sleep(0.2)
        encode(encoder, samples)  # fails where the file is closed
        ended.set()

    monkeypatch.setattr(Encoder, "write", write_slowly)
    with (
        pytest.raises(KeyboardInterrupt),
        StemWriter(
            {"0": tmp_path / "0.wav"},
            audio_format=find_format("wav"),
            rate=44_100,
            channels=2,
        ) as writer,
    ):
        writer.write(noise(2, 1000)[None])
        assert begun.wait(20)
        raise KeyboardInterrupt
    assert ended.is_set()
    assert os.listdir(tmp_path) == []


def test_an_interruption_right_after_a_folder_was_made(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Path.mkdir

    def make_and_interrupt(path: Path, *args: Any, **options: Any) -> None:
        make(path, *args, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "mkdir", make_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "new", noise(2, 100).reshape(1, 2, 100))
    assert os.listdir(tmp_path) == []


def test_folders_that_were_there_stay(tmp_path: Path, noise: Noise) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError), files_limited_to(2000):
        write(tmp_path / "mine" / "new", noise(2, 9000).reshape(1, 2, 9000))
    assert os.listdir(tmp_path) == ["mine"] and os.listdir(tmp_path / "mine") == []


@pytest.mark.parametrize(("container", "bit_depth"), (("wav", "32f"), ("wav", "16"), ("flac", "24")))
@pytest.mark.parametrize("rescale", (False, True))
def test_full_disk_is_one_line_and_leaves_the_old_file(
    tmp_path: Path, noise: Noise, container: str, bit_depth: str, rescale: bool
) -> None:
    stems = noise(2, 90_000).reshape(1, 2, 90_000)
    (old := tmp_path / f"0.{container}").write_bytes(b"old")
    with (
        pytest.raises(OutputError, match=r"cannot write .*/0\.\w+ \(File too large\)") as caught,
        files_limited_to(50_000),
    ):
        write(tmp_path, stems, container=container, bit_depth=bit_depth, rescale=rescale)
    assert "\n" not in str(caught.value)
    assert old.read_bytes() == b"old" and os.listdir(tmp_path) == [old.name]


@pytest.mark.parametrize("by_ffmpeg", (True, False))
@pytest.mark.parametrize("container", ("wav", "flac", "mp3", "ogg", "opus"))
def test_a_disk_that_is_full_at_the_very_end_is_reported(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch, container: str, by_ffmpeg: bool
) -> None:
    """libsndfile says nothing where the last of what it holds back cannot be written."""
    if not by_ffmpeg:
        monkeypatch.setattr("tfswa_sep.audio.ffmpeg.find_ffmpeg", lambda: None)
    elif not ffmpeg_encodes(container):
        pytest.skip("not written by ffmpeg")
    stems = noise(2, 48_000).reshape(1, 2, 48_000)
    whole = write(tmp_path / "whole", stems, container=container, rate=48_000).files["0"].stat().st_size
    why = "cannot write" if by_ffmpeg else "File too large"  # the system kills ffmpeg, which says nothing
    with pytest.raises(OutputError, match=why), files_limited_to(whole - 1):
        write(tmp_path / "cut", stems, container=container, rate=48_000)
    assert os.listdir(tmp_path) == ["whole"]


def test_a_file_that_came_meanwhile_is_not_overwritten(tmp_path: Path, noise: Noise) -> None:
    target = tmp_path / "0.wav"
    options = {"audio_format": find_format("wav"), "rate": 44_100, "channels": 2}
    writer = StemWriter({"0": target}, **options, overwrite=False)  # type: ignore[arg-type]
    with pytest.raises(OutputError, match="already exists"), writer:
        writer.write(noise(2, 100).reshape(1, 2, 100))
        target.write_text("of another run")
        writer.commit()
    assert target.read_text() == "of another run" and os.listdir(tmp_path) == ["0.wav"]


@pytest.mark.parametrize("peak", (1.0000002, 1.7, 4.999, 123.4567))
def test_rescaled_stems_never_clip(tmp_path: Path, peak: float) -> None:
    stems = np.full((1, 1, 100), peak, np.float32)
    assert write(tmp_path, stems, bit_depth="24", rescale=True).clipped == {"0": 0}


def test_too_small_a_disk_is_reported_in_advance(
    tmp_path: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(OutputError, match=r"need 80 MB, but .* has only 1 MB free"):
        write(tmp_path / "new", np.zeros((2, 1, 0), np.float32), expected=10**7)
    assert os.listdir(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path, noise: Noise) -> None:
    stems = noise(1, 100).reshape(1, 1, 100)
    (file := tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot write .*Not a directory"):
        write(file, stems)
    with pytest.raises(OutputError, match=r"cannot write .*Not a directory"):
        write(file / "deeper" / "still", stems)
    with pytest.raises(OutputError, match=r"cannot write .*too long"):
        write(tmp_path / ("x" * 300), stems)
    (tmp_path / "0.wav").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        write(tmp_path, stems)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_without_permission(tmp_path: Path, noise: Noise) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"):
        write(tmp_path / "new", noise(1, 100).reshape(1, 1, 100))


def test_overwriting_can_be_refused(tmp_path: Path, noise: Noise) -> None:
    stems = noise(1, 100).reshape(1, 1, 100)
    write(tmp_path, stems)
    written = write(tmp_path, stems * 0.5)
    np.testing.assert_array_equal(read(written), stems[0] * 0.5)
    with pytest.raises(OutputError, match="exists"):
        write(tmp_path, stems, overwrite=False)
    np.testing.assert_array_equal(read(written), stems[0] * 0.5)


@pytest.mark.parametrize(
    ("rate", "nearest"),
    (
        (8_000, 8_000),
        (44_056, 44_056),
        (65_535, 65_535),
        (65_538, 65_540),
        (96_001, 96_000),
        (768_000, 655_350),
    ),
)
def test_flac_rates_are_the_nearest_that_libsndfile_writes(tmp_path: Path, rate: int, nearest: int) -> None:
    flac = find_format("flac", "16")
    assert flac.nearest_rate(rate) == nearest
    assert find_format("wav").nearest_rate(rate) == rate
    soundfile.write(tmp_path / "a.flac", np.zeros((10, 2)), nearest, subtype="PCM_16")
    assert soundfile.info(tmp_path / "a.flac").samplerate == nearest


@pytest.mark.parametrize(("container", "bit_depth"), (("mp4", None), ("flac", "32f"), ("wav", "8")))
def test_unknown_formats_name_the_choices(container: str, bit_depth: str | None) -> None:
    with pytest.raises(UsageError, match="choose"):
        find_format(container, bit_depth)
