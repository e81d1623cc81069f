"""The command line of training, and its error messages."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("hydra")

from tfswa_sep.errors import UsageError
from tfswa_sep.model.config import PRESETS
from tfswa_sep.model.stft_torch import stft
from training.configuration import CONFIGS, build_model_config, load_config, run_command
from training.data.loader import seconds_of, whole_seconds
from training.mixing.settings import MixSettings

POOLS = "data.pools=x"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("training.stepz=3", r"unknown setting 'training\.stepz': did you mean 'training\.steps'\?"),
        ("steps=3", r"did you mean 'training\.steps'\?"),
        ("training.lr=3", r"did you mean 'training\.learning_rate'\?"),
        ("training.decai=3", r"did you mean 'training\.decay'\?"),
        ("lr=3", r"did you mean 'training\.learning_rate'\?"),
        ("+training.foo=3", r"unknown setting 'training\.foo'"),
        ("training=debgu", "unknown config for training 'debgu': did you mean 'debug'?"),
        ("data=musdb", "unknown config for data 'musdb': did you mean 'musdb18"),
        ("modell=small", "did you mean 'model'?"),
        ("data.mix.kindz={}", r"did you mean 'data\.mix\.kinds'\?"),
        ("data.mix.drop.vocal=0", r"did you mean 'data\.mix\.drop\.vocals'\?"),
        ("steps", "missing EQUAL"),
    ],
)
def test_unknown_settings_are_rejected_with_a_suggestion(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_config([POOLS, word])
    assert "\n" not in str(caught.value)


def test_missing_settings_are_named() -> None:
    with pytest.raises(UsageError, match=r"missing setting data\.pools: add data\.pools=\.\.\."):
        load_config([])
    with pytest.raises(UsageError, match=r"missing setting data\.root"):
        load_config(["data=musdb18"])
    assert load_config(["data=musdb18"], needs_data=False).data.seconds == 5.944


@pytest.mark.parametrize(
    ("data", "training"),
    [
        *(("open", path.stem) for path in (CONFIGS / "training").glob("*.yaml")),
        *itertools.product(("folder", "musdb18", "musdb18hq"), ("default", "paper")),  # which set the length
    ],
)
def test_no_config_has_examples_that_need_padding(data: str, training: str) -> None:
    config = load_config([f"data={data}", f"training={training}"], needs_data=False)
    seconds = seconds_of(config.data)
    assert 2.9 < seconds < (3 if training == "paper" or data == "open" else 6)
    for shape in PRESETS.values():
        assert whole_seconds(seconds, shape) == seconds
        for other in (0.01, 3, 6.0, 11.7):
            found = whole_seconds(other, shape)
            frames = stft(torch.zeros(1, 1, round(found * shape.sample_rate))).shape[-1]
            assert frames % shape.frame_multiple == 0
            assert whole_seconds(found, shape) == found
            if other > 1:
                assert abs(found - other) <= shape.frame_multiple * shape.hop / shape.sample_rate / 2


@pytest.mark.slow
def test_every_config_can_be_chosen() -> None:
    for group in ("data", "model", "training"):
        for path in (CONFIGS / group).glob("*.yaml"):
            config = load_config([f"{group}={path.stem}"], needs_data=False)
            assert {"steps", "loss"} <= set(config.training)
            assert not config.model.checkpointing  # 80 GB hold the largest preset without


@pytest.mark.parametrize(
    "word", ["data.mix.drop={vocals: 1.0}", "+data.mix.drop={vocals: 1.0}", "data.mix.drop.vocals=1.0"]
)
def test_overriding_one_setting_keeps_the_others(word: str) -> None:
    defaults = dataclasses.asdict(MixSettings())
    assert load_config([POOLS]).data.mix == defaults
    changed = defaults | {"drop": defaults["drop"] | {"vocals": 1.0}}
    assert load_config([POOLS, word]).data.mix == changed


def test_a_setting_can_be_removed() -> None:
    assert "sdr" not in load_config([POOLS, "~training.loss.sdr"]).training.loss


def test_a_preset_can_be_changed() -> None:
    changed = load_config([POOLS, "model.changes.branches=[time,window]", "model.changes.fusion=mean"])
    plain = load_config([POOLS])
    assert build_model_config(plain.model) == PRESETS["small"]
    wanted = dataclasses.replace(PRESETS["small"], branches=("time", "window"), fusion="mean")
    assert build_model_config(changed.model) == wanted
    with pytest.raises(UsageError, match=r"did you mean 'model\.changes\.heads'"):
        load_config([POOLS, "model.changes.headz=1"])
    with pytest.raises(ValueError, match="branches must be some of time, frequency, window"):
        build_model_config(load_config([POOLS, "model.changes.branches=[window,time]"]).model)


def test_errors_are_one_line_with_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["train", *words])

        def fail(config: object) -> None:
            raise ValueError("too short")

        code = run_command(fail, about="Trains.")
        return (code, *capsys.readouterr())

    assert run("training.stepz=1")[0] == 2
    code, _, said = run(POOLS)
    assert code == 2 and said == "tfswa-sep: too short\n"
    assert run("--help")[:2] == (
        0,
        f"Trains. \n\nConfigs are in {CONFIGS}; --config prints the configuration and exits.\n",
    )
    code, printed, _ = run(POOLS, "--config")
    assert code == 0 and "pools: x" in printed


@pytest.mark.slow
def test_output_may_be_closed_early() -> None:
    """As by `--config | head`."""
    script = "import sys; from training.configuration import run_command; sys.exit(run_command(id, about=''))"
    command = [sys.executable, "-c", script, "--config", POOLS]
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = subprocess.run(
            command, cwd=CONFIGS.parents[1], stdout=closed, stderr=subprocess.PIPE, timeout=300
        )
    assert done.returncode == 141 and not done.stderr


@pytest.mark.parametrize("page", ["training.md", "multi-gpu.md"])
def test_the_documentation_names_settings_and_commands_that_exist(page: str) -> None:
    text = (CONFIGS.parents[1] / "docs" / page).read_text()
    for module in set(re.findall(r"-m (training\.[a-z_.]+)", text)):
        assert importlib.util.find_spec(module), module
    words = set(re.findall(r"\b(?:data|model|training)(?:\.[a-z_]+)?=[\w-]*", text))
    groups = {word for word in words if "." not in word and not word.endswith("=")}
    assert groups
    for word in groups:
        load_config([word], needs_data=False)
    known = [
        load_config([f"data={data}"], needs_data=False) for data in ("folder", "musdb18", "several", "open")
    ]
    for key in {word.partition("=")[0] for word in words - groups if "." in word}:
        assert any(key.partition(".")[2] in list(config[key.partition(".")[0]]) for config in known), key
