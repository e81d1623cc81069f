"""The layouts of datasets, and several datasets in one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")

from tfswa_sep.errors import InputError, UsageError
from training.configuration import load_config
from training.data.loader import TrainingData, open_data
from training.prepare import prepare

RATE = 44_100
LEVELS = {"vocals": 0.1, "drums": 0.2}  # of the constant recordings, by which they are told apart


def write(path: Path, level: float, *, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full((round(seconds * RATE), 2), level), RATE, subtype="FLOAT")
    return path


def opened(tmp_path: Path, *overrides: str, targets: tuple[str, ...] = ("vocals", "drums")) -> TrainingData:
    fixed = [f"data.cache={tmp_path / 'cache'}", "data.build_workers=1", "data.anywhere=0"]
    return open_data(load_config([*fixed, *overrides]).data, targets, seed=0)


def levels(data: TrainingData, *, count: int = 20, seconds: float = 0.1) -> set[tuple[float, ...]]:
    """What each stem of some examples holds at its first sample."""
    examples = data.draw(seconds)
    drawn = [examples.example(np.random.default_rng(i)) for i in range(count)]
    for mixture, stems, _ in drawn:
        np.testing.assert_allclose(mixture, stems.sum(0), atol=1e-6)
    return {tuple(round(float(wave[0, 0]), 2) for wave in stems) for _, stems, _ in drawn}


@pytest.fixture
def songs(tmp_path: Path) -> Path:
    """Two songs, b 0.01 louder than a, and a third that has only drums."""
    for song, extra in (("a", 0.0), ("b", 0.01)):
        for stem, level in LEVELS.items():
            write(tmp_path / "songs" / song / f"{stem}.wav", level + extra)
    write(tmp_path / "songs/c/drums.wav", 0.22)
    return tmp_path / "songs"


def test_type_4_keeps_the_stems_of_a_song_together(songs: Path, tmp_path: Path) -> None:
    data = opened(tmp_path, "data=folder", f"data.root={songs}")
    assert levels(data) == {(0.2, 0.1), (0.21, 0.11), (0.22, 0.0)}  # drums, vocals
    assert data.about == f"3 songs in {songs}"


def test_type_1_mixes_stems_of_different_songs(songs: Path, tmp_path: Path) -> None:
    data = opened(tmp_path, "data=folder", f"data.root={songs}", "data.type=1")
    assert levels(data, count=60) == {(d, v) for d in (0.2, 0.21, 0.22) for v in (0.1, 0.11)}
    example = data.draw(0.1).example(np.random.default_rng(0))
    assert example[2].tolist() == [1, 1]  # c has no vocals, but another song's are used
    again = data.draw(0.1).example(np.random.default_rng(0))
    assert all(np.array_equal(one, other) for one, other in zip(example, again, strict=True))


def test_type_2_is_a_folder_per_stem(tmp_path: Path) -> None:
    write(tmp_path / "stems/Vocals/one.wav", 0.1)
    write(tmp_path / "stems/Vocals/two.wav", 0.11)
    write(tmp_path / "stems/drums/one.wav", 0.2)
    write(tmp_path / "stems/mixture/one.wav", 0.5)
    data = opened(tmp_path, "data=folder", f"data.root={tmp_path / 'stems'}", "data.type=2")
    assert levels(data) == {(0.1, 0.2), (0.11, 0.2)}
    assert data.about.startswith("3 recordings in")
    _, stems, _ = data.draw(1.5).example(np.random.default_rng(0))  # longer than the recordings
    assert stems[0, 0, RATE - 1] > 0 and not stems[:, :, RATE:].any()
    with pytest.raises(InputError, match="no recordings in"):
        opened(tmp_path, "data=folder", f"data.root={tmp_path}/stems/drums", "data.type=2")


@pytest.mark.parametrize("column", ["instrum", "type"])
def test_type_3_is_a_list_of_recordings(tmp_path: Path, column: str) -> None:
    write(tmp_path / "x/one.wav", 0.1)
    drums = write(tmp_path / "y/one.wav", 0.2)
    table = tmp_path / "list.csv"
    table.write_text(f"{column},path\nvocals,x/one.wav\ndrums,{drums}\n")
    data = opened(tmp_path, "data=folder", f"data.root={table}", "data.type=3")
    assert levels(data) == {(0.1, 0.2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path\nx.wav\n", "needs the columns instrum and path, but has path"),
        ("instrum,path\nvocals,x.wav\n", r"recording 1: .*x\.wav is missing"),
        ("instrum,path\n,x.wav\n", "recording 1: no stem"),
        ("instrum,path\n", "lists no recordings"),
    ],
)
def test_a_faulty_list_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        opened(tmp_path, "data=folder", f"data.root={tmp_path / 'list.csv'}", "data.type=3")


def test_silent_recordings_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "stems/vocals/one.wav", 0.0)
    with pytest.raises(InputError, match="no recording of 'vocals' contains any sound"):
        data = opened(tmp_path, "data=folder", f"data.root={tmp_path / 'stems'}", "data.type=2",
                      targets=("vocals",))  # fmt: skip
        data.draw(0.1)


def test_several_datasets_are_drawn_by_weight(songs: Path, tmp_path: Path) -> None:
    write(tmp_path / "stems/vocals/one.wav", 0.3)
    write(tmp_path / "stems/guitar/one.wav", 0.4)
    rows = f"[{{root: {songs}, weight: 3}}, {{root: {tmp_path / 'stems'}, type: 2, weight: 1}}]"
    data = opened(tmp_path, "data=several", f"data.sources={rows}", f"data.valid={songs}")
    examples: Any = data.draw(0.1)
    drawn = [examples.example(np.random.default_rng(i)) for i in range(400)]
    # drums, vocals, guitar: what a dataset lacks is unknown
    second = [known.tolist() == [0, 1, 1] for _, _, known in drawn]
    assert sum(second) == pytest.approx(100, abs=25)
    assert {tuple(known.tolist()) for _, _, known in drawn} == {(1, 1, 0), (1, 0, 0), (0, 1, 1)}
    for (_, stems, _), is_second in zip(drawn, second, strict=True):
        assert stems.shape == (3, 2, 4410) and bool(stems[2].any()) == is_second
    assert set(data.valid) == {"a", "b", "c"} and data.valid["a"]().shape[0] == 3
    assert data.about == f"3 songs in {songs}, 2 recordings in {tmp_path / 'stems'}"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("[{path: x}]", "unknown key 'path', choose from kind, root"),
        ("[{kind: folder}]", "has no root"),
        ("[{root: x, weight: 0}]", "the weight of x must be positive"),
        ("[]", "data.sources is empty"),
        ("[{root: x, mix: {mono: 1}}]", "x has mix settings, which are for kind open only"),
        ("[{root: x, kind: open, mix: {seconds: 3}}]", r"set data\.seconds instead of mix\.seconds"),
        ("[{root: x, kind: open, mix: {monno: 1}}]", r"unknown setting mix\.monno"),
        ("[{root: x, kind: open, mix: {kinds: {songs: 1}}}]", r"unknown setting mix\.kinds\.songs"),
        ("[{root: x, type: 7}]", "unknown data.type 7"),
        ("[{root: x, type: 2, kind: musdb18hq}]", "data.type must be 1 or 4 for musdb18hq, not 2"),
    ],
)
def test_faulty_datasets_are_refused(tmp_path: Path, rows: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        opened(tmp_path, "data=several", f"data.sources={rows}")


def test_the_open_corpus_can_be_one_of_several(pools: Path, songs: Path, tmp_path: Path) -> None:
    rows = f"[{{kind: open, root: {pools}}}, {{root: {songs}}}]"
    data = opened(tmp_path, "data=several", f"data.sources={rows}")
    examples = data.draw(0.1)
    drawn = [examples.example(np.random.default_rng(i)) for i in range(10)]
    assert {len(stems) for _, stems, _ in drawn} == {4}
    assert all(isinstance(part, torch.Tensor) for example in drawn for part in example)


def test_the_open_corpus_is_mixed_with_the_settings_of_its_row(pools: Path, tmp_path: Path) -> None:
    def mono(mix: str) -> list[bool]:
        rows = f"[{{kind: open, root: {pools}, mix: {mix}}}]"
        examples = opened(tmp_path, "data=several", f"data.sources={rows}").draw(0.1)
        drawn: Any = [examples.example(np.random.default_rng(i)) for i in range(6)]
        return [bool(torch.equal(mixture[0], mixture[1])) for mixture, _, _ in drawn]

    kinds = "kinds: {stems: 1, band: 0, accompaniment: 0, song: 0}"
    assert all(mono(f"{{mono: 1.0, {kinds}}}"))
    assert not any(mono(f"{{mono: 0.0, {kinds}}}"))


def test_songs_are_prepared_before_a_run(
    songs: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["data=folder", f"data.root={songs}", f"data.cache={tmp_path / 'cache'}", "data.build_workers=1"]
    prepare(load_config([*fixed, "data.type=1", "data.targets=[vocals, drums]", "data.seconds=0.2"]))
    assert capsys.readouterr().out.splitlines() == [
        f"decoding 3 songs into {tmp_path / 'cache/train'}",
        f"training: 3 songs in {songs}",
        "no validation: set data.valid",
        "targets: vocals, drums; examples of 0.17 s",
    ]
    assert len(list((tmp_path / "cache/train").glob("*.npy"))) == 3
    with pytest.raises(ValueError, match=r"is shorter than data\.seconds"):
        prepare(load_config([*fixed, "data.targets=[vocals]"]))
