"""Scores against numbers that can be worked out by hand, from real files on disk."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from fakes import FakeBackend
from numpy.typing import NDArray
from rich.console import Console

from tfswa_sep import Separator
from tfswa_sep.cli import main
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.evaluation.methods import (
    FolderMethod,
    Method,
    MixtureBaseline,
    ModelMethod,
    OracleBaseline,
)  # fmt: skip
from tfswa_sep.evaluation.metrics import RunningScore, sdr, si_sdr
from tfswa_sep.evaluation.multitrack import Feed, find_songs, names_without
from tfswa_sep.evaluation.report.html import html_report
from tfswa_sep.evaluation.report.tables import song_tables
from tfswa_sep.evaluation.results import Evaluation, StemScore, read_evaluation
from tfswa_sep.evaluation.run import evaluate
from tfswa_sep.evaluation.scoring import true_parts
from tfswa_sep.options import Runtime

RATE = 44_100
Samples = NDArray[np.float32]


def noise(seed: int, seconds: float = 1.0, rms: float = 0.1) -> Samples:
    """Stereo (2, n); two seeds are uncorrelated."""
    rng = np.random.default_rng(seed)
    return (rms * rng.standard_normal((2, round(seconds * RATE)))).astype(np.float32)


def write_song(folder: Path, **stems: Samples) -> None:
    folder.mkdir(parents=True)
    for stem, samples in stems.items():
        soundfile.write(folder / f"{stem}.wav", samples.T, RATE, subtype="FLOAT")


def evaluate_folder(data: Path, *methods: Method, **options: Any) -> Evaluation:
    return evaluate(find_songs(data), methods, data=data.name, **options)


def evaluate_estimates(data: Path, folder: Path, *more: Method, **options: Any) -> Evaluation:
    alone = len(find_songs(data)) == 1
    return evaluate_folder(data, FolderMethod(folder, folder.name, alone=alone), *more, **options)


def number(score: StemScore, name: str) -> float:
    value = score[name]
    assert value is not None
    return value


def decibels(signal: Samples, error: Samples) -> float:
    return float(10 * np.log10(np.sum(signal.astype(float) ** 2) / np.sum(error.astype(float) ** 2)))


GAINS = {"vocals": 0.4, "drums": 0.3, "bass": 0.2, "other": 0.1}


def fixed_gains(gains: dict[str, float] = GAINS) -> FakeBackend:
    """A model whose stems are fixed shares of the mixture."""
    return FakeBackend(
        name="onnx",
        precision="fp32",
        stems=tuple(gains),
        shares=tuple(gains.values()),
        segment_samples=20_480,
        margin_samples=2_048,
    )


def test_sdr_is_the_ratio_of_energies() -> None:
    reference = noise(1)
    assert sdr(reference, np.float32(0.9) * reference) == pytest.approx(20.0, abs=1e-4)
    assert sdr(reference, np.zeros_like(reference)) == pytest.approx(0.0, abs=1e-4)
    assert sdr(reference, reference + noise(2)) == pytest.approx(decibels(reference, noise(2)), abs=1e-4)
    # both channels together: one right, one silent
    half = np.stack([np.ones(50, np.float32), np.zeros(50, np.float32)])
    assert sdr(np.ones_like(half), half) == pytest.approx(10 * np.log10(2), abs=1e-4)
    assert 90 < (sdr(reference, reference) or 0) < 110  # finite


def test_si_sdr_forgives_a_gain_and_nothing_else() -> None:
    reference, error = noise(1), noise(2, rms=0.01)
    error -= reference * np.float32(np.vdot(reference, error) / np.vdot(reference, reference))
    expected = decibels(reference, error)
    for gain in (0.1, 1.0, 3.0):
        assert si_sdr(reference, np.float32(gain) * (reference + error)) == pytest.approx(expected, abs=1e-2)


def test_silence_is_not_scored() -> None:
    silence = np.zeros((2, 1000), dtype=np.float32)
    assert sdr(silence, noise(1)[:, :1000]) is None
    assert si_sdr(silence, silence) is None
    assert si_sdr(noise(1)[:, :1000], silence) is None


def test_blocks_add_up_to_the_whole_and_shares_are_found() -> None:
    stem, rest = noise(1), noise(2, rms=0.3)
    estimate = np.float32(0.8) * stem + np.float32(0.05) * rest
    whole, in_blocks = RunningScore(), RunningScore()
    whole.add(stem, rest, estimate)
    for start in range(0, stem.shape[1], 7001):
        in_blocks.add(*(samples[:, start : start + 7001] for samples in (stem, rest, estimate)))
    assert in_blocks.shares() == pytest.approx((0.8, 0.05), abs=1e-5)
    assert in_blocks.sdr() == pytest.approx(whole.sdr(), abs=1e-9)


def test_a_feed_gives_the_files_whatever_the_block(tmp_path: Path) -> None:
    long, short = noise(1), noise(2, seconds=0.3)
    write_song(tmp_path / "song", drums=long, bass=short)
    feed = Feed([tmp_path / "song" / "drums.wav", tmp_path / "song" / "bass.wav"], RATE)
    blocks = []
    while not feed.ended:
        blocks.append(feed.take(9973))
    found = np.concatenate(blocks, axis=1)
    expected = long.copy()
    expected[:, : short.shape[1]] += short
    assert feed.frames == long.shape[1]
    np.testing.assert_array_equal(found[:, : long.shape[1]], expected)
    assert not found[:, long.shape[1] :].any()


def test_estimates_of_any_tool(tmp_path: Path) -> None:
    """One song with four stems, one without vocals, one kept apart."""
    for number, name in enumerate(("Apart 1", "Full", "Instrumental")):
        stem_names = ("vocals", "drums", "bass", "other")
        stems = {stem: noise(10 * number + index) for index, stem in enumerate(stem_names)}
        if name == "Instrumental":
            del stems["vocals"]
        write_song(tmp_path / "true" / name, **stems)
        gain = np.float32({"Apart 1": 0.5, "Full": 0.9, "Instrumental": 0.99}[name])
        guess = {stem: gain * samples for stem, samples in stems.items()}
        write_song(tmp_path / "found" / name, **{"vocals": noise(99), **guess})

    found = evaluate_estimates(tmp_path / "true", tmp_path / "found", apart="Apart*", command="a b")

    (method,) = found.methods
    songs = {song.song: song for song in method.songs}
    names = ("Apart 1", "Full", "Instrumental")
    assert [songs[name].stems["drums"]["sdr"] for name in names] == pytest.approx([6.0206, 20, 40], abs=1e-2)
    assert "vocals" in songs["Instrumental"].skipped  # silent
    assert "accompaniment" in songs["Instrumental"].skipped  # the whole mixture
    drums, count = method.mean("drums")
    assert drums is not None
    assert count == 2
    assert drums["sdr"] == pytest.approx(30.0, abs=1e-2)
    three_and_two_others_equally_loud = (-4.77 - 3.01) / 2
    assert drums["mixture_sdr"] == pytest.approx(three_and_two_others_equally_loud, abs=0.05)
    assert drums["kept"] == pytest.approx(0.945, abs=1e-3)
    assert drums["leaked"] == pytest.approx(0.0, abs=1e-3)
    accompaniment, count = method.mean("accompaniment")
    assert accompaniment is not None
    assert count == 1
    assert accompaniment["sdr"] == pytest.approx(20.0, abs=1e-2)

    record = json.loads(found.to_json())
    (told,) = record["methods"]
    assert told["mean"]["drums"]["songs"] == 2
    assert record["command"] == "a b"
    assert told["real_time_factor"] is None
    assert [song["apart"] for song in told["songs"]] == [True, False, False]
    assert record["versions"]["numpy"] == np.__version__
    (tmp_path / "results.json").write_text(found.to_json())
    assert read_evaluation(tmp_path / "results.json").to_json() == found.to_json()
    lines = found.to_csv().splitlines()
    assert lines[0].startswith("method,song,stem,apart,skipped,sdr,")
    assert len(lines) == 1 + 3 * 5
    page = html_report(found)
    assert page.count('class="plot"') == 1 and page.count('class="bars"') == 5  # box plot, bars per stem
    assert "http" not in page and "<script" not in page  # opens offline
    console = Console(width=240, file=io.StringIO())
    console.print(*song_tables(method, "true"))
    assert isinstance(console.file, io.StringIO)
    text = " ".join(console.file.getvalue().split())
    assert "(Apart 1)" in text
    assert "median of 2" in text
    assert "silent in this song" in text
    assert "vocals 1, accompaniment 1 (of 3 songs)" in text


def test_the_separators_files_are_what_is_scored(tmp_path: Path) -> None:
    stems = {"vocals": noise(1, rms=0.2), "drums": noise(2), "bass": noise(3)}  # other is silent
    write_song(tmp_path / "data" / "Song. 1", **stems)
    seen: list[tuple[str, str, float, float]] = []

    found = evaluate_folder(
        tmp_path / "data",
        ModelMethod(fixed_gains(), out=tmp_path / "kept"),
        on_progress=lambda *told: seen.append(told),
    )

    mixture = sum(stems.values(), np.zeros_like(stems["vocals"]))
    (method,) = found.methods
    (song,) = method.songs
    for stem, gain in zip(stems, GAINS.values(), strict=False):
        expected = decibels(stems[stem], stems[stem] - gain * mixture)
        assert song.stems[stem]["sdr"] == pytest.approx(expected, abs=1e-2)
        baseline = decibels(stems[stem], stems[stem] - mixture)
        assert song.stems[stem]["mixture_sdr"] == pytest.approx(baseline, abs=1e-2)
    rest = mixture - stems["vocals"]
    assert song.stems["accompaniment"]["sdr"] == pytest.approx(
        decibels(rest, rest - np.float32(0.6) * mixture), abs=1e-2
    )
    assert song.skipped.keys() == {"other"}
    assert not song.warnings
    assert (method.backend, method.device, method.precision, method.sha256) == ("onnx", "cpu", "fp32", None)
    assert (method.real_time_factor or 0) > 0
    kept, _ = soundfile.read(tmp_path / "kept" / "Song. 1" / "bass.wav", dtype="float32")
    np.testing.assert_allclose(kept.T, np.float32(0.2) * mixture, atol=1e-5)
    (older,) = (replace(each, precision=None) for each in found.methods)  # did not tell the precision
    again = evaluate(
        find_songs(tmp_path / "data"), [ModelMethod(fixed_gains())], data=found.data, command="",
        earlier=replace(found, methods=(older,)),
    )  # fmt: skip
    assert again.methods == found.methods  # nothing was done anew, or the time would differ
    assert seen[-1][0] == "Song. 1"
    assert seen[-1][2:] == pytest.approx((1.0, 1.0))


def test_no_stems_that_are_there_are_overwritten(tmp_path: Path) -> None:
    data, tool, links = tmp_path / "data", tmp_path / "tool", tmp_path / "links"
    for folder in (data / "one", data / "two", tool / "one", tool / "two"):
        write_song(folder, vocals=noise(1), drums=noise(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.wav")}
    links.mkdir()
    (links / "two").symlink_to(data / "two", target_is_directory=True)
    for out in (data, tool, links):
        with pytest.raises(UsageError, match=r"(one|two) would be overwritten: choose another --out"):
            evaluate_estimates(data, tool, ModelMethod(fixed_gains(), out=out))
    with pytest.raises(UsageError, match="would be overwritten"):  # the song alone, and linked files
        evaluate_folder(data / "one", ModelMethod(fixed_gains(), out=data))
    (tmp_path / "linked" / "two").mkdir(parents=True)
    (tmp_path / "linked" / "two" / "vocals.wav").symlink_to(data / "two" / "vocals.wav")
    with pytest.raises(UsageError, match="would be overwritten"):
        evaluate_folder(tmp_path / "linked", ModelMethod(fixed_gains(), out=data))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*.wav") if path in before}
    assert not (links / "one").exists()  # nothing was written before it was refused


def test_another_rate_is_resampled_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "song"
    folder.mkdir(parents=True)
    (tmp_path / "found").mkdir()
    for seed, stem in enumerate(("vocals", "bass")):
        dark = np.cumsum(noise(seed, rms=0.005), axis=1)
        dark -= np.linspace(dark[:, 0], dark[:, -1], dark.shape[1], axis=1)
        at_48 = soxr.resample(dark.T * 0.05, RATE, 48_000)
        soundfile.write(folder / f"{stem}.opus", at_48, 48_000, format="OGG", subtype="OPUS")
        decoded, rate = soundfile.read(folder / f"{stem}.opus", dtype="float32")
        assert rate == 48_000
        soundfile.write(tmp_path / "found" / f"{stem}.wav", decoded, rate, subtype="FLOAT")
    (song,) = evaluate_estimates(tmp_path / "data", tmp_path / "found").methods[0].songs
    assert song.seconds == pytest.approx(1.0, abs=0.01)
    assert number(song.stems["vocals"], "sdr") > 60
    assert number(song.stems["bass"], "sdr") > 60
    assert "vocals.wav has a sample rate of 48000 Hz and was resampled to 44100" in song.warnings


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
def test_stem_mp4_files_are_songs_whose_mixture_is_the_sum(tmp_path: Path) -> None:
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("stempeg wants ffmpeg")
    stempeg = pytest.importorskip("stempeg")
    wrong = noise(9)  # the file's own mixture, which is not to be read
    streams = np.stack([wrong, *(noise(i) for i in range(4))]).transpose(0, 2, 1)
    stempeg.write_stems(str(tmp_path / "A - B.stem.mp4"), streams, sample_rate=RATE)
    shutil.copy(tmp_path / "A - B.stem.mp4", tmp_path / "Music Delta - C.stem.mp4")
    record = tmp_path / "record.json"
    words = ["eval", "--data", str(tmp_path), "--baselines", "--quiet", "--json", str(record)]
    estimates = tmp_path / "found" / "A - B"
    write_song(estimates, vocals=noise(3) * np.float32(0.5))
    words += ["--estimates", str(estimates.parent), "--exclude", "Music Delta*"]
    assert main.run(words) == 0
    found = read_evaluation(record)
    assert found.data == f"{tmp_path.name} without Music Delta*"
    assert all([song.song for song in method.songs] == ["A - B"] for method in found.methods)
    mixture = next(method for method in found.methods if method.name == "mixture").songs[0]
    # A stem of four of one level in their sum: an error of three stems, -4.8 dB.
    for stem in ("vocals", "drums", "bass", "other"):
        assert number(mixture.stems[stem], "sdr") == pytest.approx(-10 * np.log10(3), abs=0.2)


def test_the_score_of_a_song_is_the_median_of_whole_seconds(tmp_path: Path) -> None:
    """Errors of half, a tenth and a hundredth of the stem in the three seconds; half a second more is none."""
    vocals = noise(1, seconds=3.5)
    scale = np.repeat([0.5, 0.1, 0.01, 1.0], RATE)[: vocals.shape[1]].astype(np.float32)
    write_song(tmp_path / "data" / "song", vocals=vocals, drums=noise(2, seconds=3.5))
    write_song(tmp_path / "found" / "song", vocals=vocals * (1 - scale))
    found = evaluate_estimates(tmp_path / "data", tmp_path / "found")
    score = found.methods[0].songs[0].stems["vocals"]
    assert number(score, "frame_sdr") == pytest.approx(20, abs=0.01)


def test_a_pattern_that_leaves_out_nothing_or_everything_is_an_error() -> None:
    assert names_without(["a", "b"], None) == {"a", "b"}
    assert names_without(["a", "b"], "a*") == {"b"}
    with pytest.raises(UsageError, match="no song matches the exclusion pattern 'C'"):
        names_without(["a", "b"], "C")
    with pytest.raises(UsageError, match="every song matches the exclusion pattern"):
        names_without(["a", "b"], "*")


def test_a_mixture_file_is_taken_and_an_estimate_of_another_length_is_named(tmp_path: Path) -> None:
    vocals, drums = noise(1), noise(2)
    mixture = np.float32(0.5) * (vocals + drums)
    write_song(tmp_path / "data" / "song", vocals=vocals, drums=drums, mixture=mixture)
    too_long = np.concatenate([drums, noise(3)], axis=1)
    write_song(tmp_path / "found", vocals=vocals[:, :-441], drums=too_long)
    (song,) = evaluate_estimates(tmp_path / "data", tmp_path / "found").methods[0].songs
    score = song.stems["vocals"]
    assert score["mixture_sdr"] == pytest.approx(decibels(vocals, 0.5 * vocals - 0.5 * drums), abs=1e-2)
    assert score["sdr"] == pytest.approx(20.0, abs=0.3)  # a hundredth of the energy is missing
    assert number(song.stems["drums"], "sdr") > 90  # what comes after the song does not count
    assert tuple(song.warnings) == (
        "vocals has 43659 frames, the mixture 44100",
        "drums has 88200 frames, the mixture 44100",
    )


@pytest.mark.slow
def test_the_baselines_part_what_does_not_overlap(tmp_path: Path) -> None:
    time = np.arange(RATE) / RATE
    low, high = (np.float32(0.2) * np.sin(2 * np.pi * f * np.tile(time, (2, 1))) for f in (200, 3000))
    write_song(tmp_path / "data" / "song", bass=low.astype(np.float32), vocals=high.astype(np.float32))
    baselines = (MixtureBaseline(), OracleBaseline(binary=False), OracleBaseline(binary=True))
    found = evaluate_folder(tmp_path / "data", *baselines)
    mixture, ratio, binary = (method.songs[0].stems["vocals"] for method in found.methods)
    assert mixture["sdr"] == pytest.approx(0.0, abs=0.1)
    assert mixture["gain"] == pytest.approx(0.0, abs=1e-6)
    assert number(ratio, "sdr") > 30
    assert number(binary, "sdr") > 30


def test_a_run_resumes_and_jobs_do_not_change_the_result(tmp_path: Path) -> None:
    for number_, name in enumerate(("one", "two")):
        write_song(tmp_path / "data" / name, vocals=noise(number_), drums=noise(number_ + 5))
        write_song(tmp_path / "tool" / name, vocals=noise(number_, rms=0.09), drums=noise(number_ + 6))
    songs, options = find_songs(tmp_path / "data"), {"data": "data", "command": "c"}
    method = FolderMethod(tmp_path / "tool", "tool")
    stops: list[Evaluation] = []
    whole = evaluate(songs, [method], on_song=stops.append, **options)  # type: ignore[arg-type]
    assert [len(stop.methods[0].songs) for stop in stops] == [1, 2]

    shutil.rmtree(tmp_path / "tool" / "one")  # not read again
    rest: list[Evaluation] = []
    resumed = evaluate(songs, [method], earlier=stops[0], on_song=rest.append, **options)  # type: ignore[arg-type]
    assert len(rest) == 1
    assert resumed.methods == whole.methods
    with pytest.raises(UsageError, match="metrics: remove --resume"):
        evaluate(songs, [method], earlier=stops[0], metrics=("fast",), **options)  # type: ignore[arg-type]

    in_processes = evaluate(songs[1:], [method], jobs=2, **options)  # type: ignore[arg-type]
    assert in_processes.methods[0].songs == whole.methods[0].songs[1:]


def test_a_record_that_cannot_be_written_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_song(tmp_path / "song", vocals=noise(1), drums=noise(2))
    (tmp_path / "file").touch()
    for place, why in (
        ("/", ": it is a folder"),
        (".", ": it is a folder"),
        ("file/a.json", " (File exists): "),
    ):
        words = ["eval", "--data", "song", "--estimates", "song", "--quiet", "--json", place]
        assert main.run(words) == 5
        assert capsys.readouterr().err.startswith(f"tfswa-sep: cannot write {place}{why}")


def test_a_vocals_only_model_is_scored_with_the_rest_as_its_accompaniment(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", vocals=noise(1), drums=noise(2))
    found = evaluate_folder(tmp_path / "data", ModelMethod(fixed_gains({"vocals": 0.25})))
    stems = found.methods[0].songs[0].stems
    assert list(stems) == ["vocals", "accompaniment"]
    # 0.75 of the mixture for half of its energy
    expected = decibels(noise(2), noise(2) - np.float32(0.75) * (noise(1) + noise(2)))
    assert number(stems["accompaniment"], "sdr") == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("other", ("accompaniment", "drums+bass"))
def test_models_of_sums_are_scored(tmp_path: Path, other: str) -> None:
    write_song(tmp_path / "data" / "song", vocals=noise(1), drums=noise(2), bass=noise(3), other=noise(4))
    model = fixed_gains({"vocals": 0.25, other: 0.75})
    stems = evaluate_folder(tmp_path / "data", ModelMethod(model)).methods[0].songs[0].stems
    assert list(stems) == list(dict.fromkeys(["vocals", other, "accompaniment"]))
    true = noise(2) + noise(3) + (noise(4) if other == "accompaniment" else 0)
    mixture = noise(1) + noise(2) + noise(3) + noise(4)
    expected = decibels(true, true - np.float32(0.75) * mixture)
    assert number(stems[other], "sdr") == pytest.approx(expected, abs=0.01)


def test_guitar_and_piano_count_as_other_where_songs_have_none(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", vocals=noise(1), drums=noise(2), bass=noise(3), other=noise(4))
    gains = {"vocals": 0.2, "drums": 0.2, "bass": 0.2, "other": 0.1, "guitar": 0.05, "piano": 0.25}
    mixture = noise(1) + noise(2) + noise(3) + noise(4)
    stems = {stem: np.float32(gain) * mixture for stem, gain in gains.items()}
    write_song(tmp_path / "tool" / "song", **stems)
    found = evaluate_estimates(tmp_path / "data", tmp_path / "tool", ModelMethod(fixed_gains(gains)))
    for method in found.methods:
        assert set(method.stems) == {"vocals", "drums", "bass", "other", "accompaniment"}
        scores = method.songs[0].stems
        expected = decibels(noise(4), noise(4) - np.float32(0.4) * mixture)
        assert number(scores["other"], "sdr") == pytest.approx(expected, abs=0.01)
        rest = noise(2) + noise(3) + noise(4)
        expected = decibels(rest, rest - np.float32(0.8) * mixture)
        assert number(scores["accompaniment"], "sdr") == pytest.approx(expected, abs=0.01)


def test_stems_of_any_name_are_scored_and_listed(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "one", guitar=noise(1), piano=noise(2))
    write_song(tmp_path / "data" / "two", guitar=noise(3))
    with pytest.raises(InputError, match="are the same stem"):
        soundfile.write(tmp_path / "data" / "one" / "Piano.flac", noise(2).T, RATE)
        find_songs(tmp_path / "data")
    (tmp_path / "data" / "one" / "Piano.flac").unlink()
    assert [song.name for song in find_songs(tmp_path / "data")] == ["one"]  # one file alone may be anything
    soundfile.write(tmp_path / "data" / "two" / "piano.wav", 0 * noise(4).T, RATE)
    model = ModelMethod(fixed_gains({"guitar": 0.5, "piano": 0.25, "flute": 0.25}))
    methods: list[Method] = [
        model,
        MixtureBaseline(),
        OracleBaseline(binary=True),
        OracleBaseline(binary=False),
    ]
    found = evaluate_folder(tmp_path / "data", *methods)
    for method in found.methods:
        assert method.stems == ("guitar", "piano")
    songs = found.methods[0].songs
    assert songs[0].skipped == {"flute": "the songs have no true stem of this name"}
    assert songs[1].skipped["piano"].startswith("silent in this song")
    assert number(songs[0].stems["piano"], "sdr") == pytest.approx(
        decibels(noise(2), noise(2) - np.float32(0.25) * (noise(1) + noise(2))), abs=0.01
    )
    console = Console(file=io.StringIO(), width=200)
    console.print(*song_tables(found.methods[0], "data"))
    for text in (console.file.getvalue(), html_report(found), found.to_csv()):  # type: ignore[attr-defined]
        assert "guitar" in text and "piano" in text


@pytest.mark.parametrize(
    ("estimated", "stems", "parts"),
    (
        (("vocals", "drums", "bass", "other"), ("vocals", "drums", "bass", "guitar"), {"other": ["guitar"]}),
        (("vocals", "other"), ("vocals", "drums", "bass", "other"), {"other": ["other"]}),
        (
            ("vocals", "guitar", "other"),
            ("vocals", "drums", "bass", "other"),
            {"guitar": None, "other": None},
        ),
        (("vocals", "accompaniment"), ("vocals", "guitar"), {"accompaniment": ["guitar"]}),
        (("drums+bass+other",), ("vocals", "accompaniment"), {"drums+bass+other": ["accompaniment"]}),
        (("drums",), ("vocals", "accompaniment"), {"drums": None}),
        (
            ("drums+other",),
            ("vocals", "drums", "bass", "other", "piano"),
            {"drums+other": ["drums", "other", "piano"]},
        ),
    ),
)
def test_which_true_stems_an_estimate_stands_for(
    estimated: tuple[str, ...], stems: tuple[str, ...], parts: dict[str, list[str] | None]
) -> None:
    found = true_parts(estimated, stems)
    assert {stem: found.get(stem) for stem in parts} == parts


def test_what_cannot_be_scored_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder of songs"):
        find_songs(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no songs in"):
        find_songs(tmp_path)
    write_song(tmp_path / "data" / "song", vocals=noise(1), drums=noise(2))
    with pytest.raises(UsageError, match="no song matches the pattern 'Sodium'"):
        evaluate_estimates(tmp_path / "data", tmp_path, apart="Sodium")
    write_song(tmp_path / "same" / "same", vocals=noise(1))
    soundfile.write(tmp_path / "same" / "vocals.wav", noise(1).T, RATE)
    with pytest.raises(InputError, match=r"two songs in .*same are called 'same': rename one"):
        find_songs(tmp_path / "same")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no stems in"):
        evaluate_estimates(tmp_path / "data", tmp_path / "empty")
    write_song(tmp_path / "twice" / "song", vocals=noise(1), piano=noise(2))
    with pytest.raises(InputError, match="song consists of vocals, piano: drums cannot be scored"):
        write_song(tmp_path / "drums", drums=noise(1))
        evaluate_estimates(tmp_path / "twice", tmp_path / "drums")
    (tmp_path / "twice" / "song" / "piano.wav").rename(tmp_path / "twice" / "song" / "vocals.flac")
    with pytest.raises(InputError, match="are the same stem"):
        find_songs(tmp_path / "twice")
    write_song(tmp_path / "cut" / "song", vocals=noise(1), drums=noise(2))
    stem = tmp_path / "cut" / "song" / "drums.wav"
    stem.write_bytes(stem.read_bytes()[:-10_000])
    with pytest.raises(InputError, match=r"drums\.wav is cut short .*: copy or download it again$"):
        evaluate_estimates(tmp_path / "cut", tmp_path / "data")


def test_live_separation_is_scored_without_its_delay(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", vocals=noise(1, rms=0.2), drums=noise(2))
    offline = evaluate_folder(tmp_path / "data", ModelMethod(fixed_gains())).methods[0]
    live = evaluate_folder(tmp_path / "data", ModelMethod(fixed_gains(), live="low")).methods[0]
    assert live.name.endswith("live, low latency")
    for stem in ("vocals", "drums"):
        expected = offline.songs[0].stems[stem]["sdr"]
        assert live.songs[0].stems[stem]["sdr"] == pytest.approx(expected, abs=0.05)


@pytest.mark.slow
def test_the_command_scores_what_live_separation_gives(tmp_path: Path) -> None:
    write_song(tmp_path / "data" / "song", vocals=noise(1, 0.6), drums=noise(2, 0.6))
    options = ["--live", "low", "--precision", "fp32", "--out", str(tmp_path / "out")]
    result = tmp_path / "result.json"
    assert main.run(["eval", "--data", str(tmp_path / "data"), "--json", str(result), *options]) == 0
    (method,) = json.loads(result.read_text())["methods"]
    assert method["name"] == "small, live, low latency"
    live = Separator("small", runtime=Runtime(precision="fp32", threads=1)).live("low")
    mixture = noise(1, 0.6) + noise(2, 0.6)
    padded = np.pad(mixture, ((0, 0), (0, live.delay_samples)))
    pushed = [live.push(block)["vocals"] for block in np.array_split(padded, 37, axis=1)]
    expected = np.concatenate(pushed, axis=1)[:, live.delay_samples :]
    written = soundfile.read(tmp_path / "out" / "song" / "vocals.wav", dtype="float32")[0].T
    np.testing.assert_allclose(written, expected, atol=1e-5)
    assert method["songs"][0]["stems"]["vocals"]["sdr"] == pytest.approx(
        sdr(noise(1, 0.6), expected), abs=1e-3
    )
