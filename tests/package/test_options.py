"""What can be chosen for a separation: one object each for the runtime and for the files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer.main
from typer.testing import CliRunner

import tfswa_sep
from tfswa_sep.cli.main import app
from tfswa_sep.cli.shared_options import with_options
from tfswa_sep.errors import InputError, UsageError
from tfswa_sep.options import OutputChoices, OutputOptions, Runtime, RuntimeChoices


@pytest.mark.parametrize("kind", (Runtime, OutputOptions))
def test_every_field_is_documented(kind: type[Any]) -> None:
    assert kind.__doc__ is not None
    for field in fields(kind):
        assert f"        {field.name}: " in kind.__doc__


@pytest.mark.parametrize(
    "choice", ({"backend": "tensorflow"}, {"device": "tpu"}, {"threads": 0}, {"batch_size": 0}, {"shifts": 0})
)
def test_a_choice_that_makes_no_sense_fails_before_a_model_is_loaded(choice: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Runtime(**choice)
    with pytest.raises(UsageError):
        tfswa_sep.Separator("no such model", **choice)


@pytest.mark.parametrize(("kind", "choices"), ((Runtime, RuntimeChoices), (OutputOptions, OutputChoices)))
def test_the_keywords_are_the_fields(kind: type[Any], choices: type[Any]) -> None:
    assert get_type_hints(kind) == get_type_hints(choices)


def test_a_loaded_model_takes_no_runtime(fake_backend: Callable[..., Any], tmp_path: Path) -> None:
    separator = tfswa_sep.Separator(fake_backend())
    with pytest.raises(UsageError, match="pass threads, shifts to its Separator"):
        tfswa_sep.separate(tmp_path / "a.wav", model=separator, threads=2, shifts=2)


def test_one_object_or_keywords(
    fake_backend: Callable[..., Any], song: Callable[..., Path], tmp_path: Path
) -> None:
    separator, path = tfswa_sep.Separator(fake_backend()), song("a.wav", 20_000)
    chosen = OutputOptions(out=tmp_path / "one", stems="vocals", audio_format="flac")
    one = separator.separate_file(path, chosen)
    two = separator.separate_file(path, chosen, out=tmp_path / "two", bit_depth="16")
    three = tfswa_sep.separate(path, model=fake_backend(), out=tmp_path / "three", stems="vocals", threads=1)
    assert [result.files["vocals"].suffix for result in (one, two, three)] == [".flac", ".flac", ".wav"]
    assert two.files["vocals"].parent.parent == tmp_path / "two"
    with pytest.raises(TypeError, match="'audio_formt': did you mean 'audio_format'"):
        separator.separate_file(path, audio_formt="flac")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'mp3': choose from backend, device"):
        tfswa_sep.Separator(mp3=True)  # type: ignore[call-arg]


def test_the_track_is_the_commands_option_and_the_name_another(
    fake_backend: Callable[..., Any], song: Callable[..., Path], tmp_path: Path
) -> None:
    path = song("a.wav", 20_000)
    result = tfswa_sep.separate(path, model=fake_backend(), out=tmp_path / "out", track_name="b")
    assert result.files["vocals"] == tmp_path / "out" / "b" / "vocals.wav"
    with pytest.raises(InputError, match="track"):  # it has only one
        tfswa_sep.separate(path, model=fake_backend(), out=tmp_path / "out", track=2)
    with pytest.raises(UsageError, match="track must be at least 1, not 'b'"):
        tfswa_sep.separate(path, model=fake_backend(), out=tmp_path / "out", track="b")  # type: ignore[arg-type]


def test_the_commands_offer_the_fields_as_options() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    separate = {parameter.name for parameter in commands["separate"].params}
    exempt = {"batch_size"}
    assert {field.name for kind in (Runtime, OutputOptions) for field in fields(kind)} - exempt <= separate
    run = {parameter.name: parameter.default for parameter in commands["eval"].commands["run"].params}
    assert run["precision"] == "fp32" and run["backend"] == "auto"


def test_a_command_gets_its_options_as_one_object() -> None:
    seen: list[Runtime] = []
    small = typer.Typer()

    @small.command()
    @with_options
    def command(runtime: Runtime = Runtime(precision="fp32")) -> None:
        seen.append(runtime)

    done = CliRunner().invoke(small, ["--threads", "2", "--device", "cpu"])
    assert done.exit_code == 0 and seen == [Runtime(precision="fp32", threads=2, device="cpu")]
