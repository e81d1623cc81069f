"""Whatever comes in, only our own errors come out: headers, names, options and registries, made up."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fakes import EvenBackend
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfswa_sep import registry, separator
from tfswa_sep.audio.decode import open_audio
from tfswa_sep.cli import main
from tfswa_sep.errors import InputError, ModelError, TfswaError
from tfswa_sep.inference.metadata import parse_metadata
from tfswa_sep.registry.models_toml import read_models

quickly = settings(
    max_examples=20,
    deadline=None,
    derandomize=True,  # the same in every run; more by hand: max_examples=10_000, derandomize=False
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LETTERS = "aZ09._-/\\:@#%{}[]\"' \n\t\x00\x1b\x7f\u202e\u0301\xe9\U0001f3b5"  # all that names trip over
TEXT = st.text(st.sampled_from(LETTERS), max_size=12)
FLAT = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = (
    FLAT | st.lists(FLAT, max_size=4) | st.dictionaries(TEXT, FLAT | st.lists(FLAT, max_size=2), max_size=4)
)
TOML = Path(registry.PACKAGE.parent / "models.toml").read_text("utf-8")
METADATA = {
    "format": 2, "stems": ["a"], "sample_rate": 44100, "channels": 2, "n_fft": 512, "hop": 128,
    "segment_samples": 8192, "margin_samples": 1024, "config": {},
}  # fmt: skip
WORDS = [
    "song.wav", "--stems", "bass", "--format", "flac", "--bit-depth", "16", "--threads", "0", "-1", "--name",
    "{}", "--json", "--quiet", "--model", "\x00", "", "--device", "tpu", "--backend", "--offline", "models",
    "info", "--", "list", "path", "rm", "verify", "eval", "--data", "\xe9" * 300, "--debug", "--rescale",
]  # fmt: skip
STARTS = ["", "https://", "http://", "hf://", "hf://a/b@", "bundled:", "/", "../"]
PATTERNS = ["{}", "{{track}}/{}", "../{}", "{}/{{stem}}{{ext}}", "{{stem}}{}{{ext}}"]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder below a folder, so that a way out of it would be seen; no real model is loaded."""
    inside = tmp_path / "up" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    monkeypatch.setattr(registry, "fetch", lambda *_, **options: Path("small.onnx"))
    monkeypatch.setattr(separator, "load_backend", lambda *args, **options: EvenBackend())
    monkeypatch.setenv("TFSWA_CACHE", str(inside / "cache"))
    soundfile.write(inside / "song.wav", np.full((800, 2), 0.1), 8_000)
    before = sorted(os.listdir(tmp_path)), sorted(os.listdir(tmp_path / "up"))
    yield inside
    assert (sorted(os.listdir(tmp_path)), sorted(os.listdir(tmp_path / "up"))) == before


@quickly
@given(st.data())
def test_a_list_of_models_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    """Our own list with one value, of one key, replaced by something made up."""
    lines = TOML.splitlines()
    line = data.draw(st.sampled_from([i for i, text in enumerate(lines) if " = " in text]))
    made_up = data.draw(
        JSON | st.sampled_from(['"../a.onnx"', "nan", "0x" + "f" * 4000, r'"\u0000.onnx"', "[["])
    )
    value = made_up if isinstance(made_up, str) and made_up[:1] in ('"', "[") else json.dumps(made_up)
    lines[line] = f"{lines[line].partition(' = ')[0]} = {value}"
    path = tmp_path / "models.toml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        for model in read_models(path).values():
            assert json.dumps(registry.describe(model)).isprintable()
            for file in model.files:
                assert ".." not in re.split(r"[/\\]", file.where.partition(":")[2])
    except ModelError as error:
        assert str(path) in str(error)


@quickly
@given(st.binary(max_size=200) | TEXT.map(lambda text: text.encode(errors="replace")))
def test_any_bytes_as_a_list_of_models(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "models.toml"
    path.write_bytes(content)
    with pytest.raises(ModelError):
        read_models(path)


@quickly
@given(
    TEXT,
    st.sampled_from(["", "https://", "http://", "hf://", "hf://a/b@", "bundled:", "/", "../"]),
)
def test_any_text_as_a_model(work: Path, text: str, start: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        registry.find_model(start + text)
    except TfswaError as error:
        assert isinstance(error, ModelError)
    finally:
        del os.environ["HF_HUB_OFFLINE"]


@quickly
@given(st.dictionaries(st.sampled_from(sorted(METADATA)), JSON) | JSON)
def test_any_metadata(changes: Any) -> None:
    fields = METADATA | changes if isinstance(changes, dict) else changes
    try:
        metadata = parse_metadata(json.dumps(fields), file="m.onnx")
        assert metadata.n_fft % metadata.hop == 0 and all(re.fullmatch(r"[\w-]+", s) for s in metadata.stems)
    except ModelError as error:
        assert "m.onnx" in str(error)


@pytest.mark.slow
@quickly
@given(TEXT, st.sampled_from(PATTERNS))
def test_any_pattern_of_names_stays_inside(work: Path, text: str, shape: str) -> None:
    """That nothing appears outside of the folder is asserted by the fixture."""
    assert main.run(["song.wav", "--quiet", "--stems", "bass", "--name", shape.format(text)]) in (0, 2, 5)


@pytest.mark.slow
@quickly
@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_any_options_end_in_a_documented_code(work: Path, words: list[str]) -> None:
    code = main.run(words)
    os.environ.pop("HF_HUB_OFFLINE", None)
    assert code in (0, 2, 3, 4, 5, 6, 7), words


@pytest.mark.slow
@quickly
@given(
    st.sampled_from(["wav", "flac", "ogg", "mp3", "aiff"]),
    st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), max_size=8),
    st.integers(0, 3000),
)
def test_any_header_of_a_song(tmp_path: Path, kind: str, changes: list[tuple[int, int]], cut: int) -> None:
    path = tmp_path / f"song.{kind}"
    if not (whole := path.with_name(f"whole.{kind}")).exists():
        soundfile.write(whole, np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 2)), 8_000)
    content = bytearray(whole.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    path.write_bytes(content[: len(content) - cut % len(content)])
    try:
        with open_audio(path) as song:
            for number, block in enumerate(song.blocks(8_000, 2)):
                assert np.isfinite(block).all()
                if number > 20:
                    break
    except InputError as error:
        assert str(path) in str(error)
