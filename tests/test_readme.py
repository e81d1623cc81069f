"""README.md and docs/ are true: their commands exist, their Python runs, their numbers were measured."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

import tfswa_sep
from tfswa_sep import errors
from tfswa_sep.cli import main
from training.release.report import (
    DOCUMENTS as REPORTED,
)
from training.release.report import (
    fill_in,
    render_excerpts,
    render_glance,
    render_means,
    render_quality,
    render_scores,
    render_speed,
)

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = "\n".join(path.read_text("utf-8") for path in PAGES)


def command_lines() -> list[list[str]]:
    """The words of each line in the bash blocks, comments left out, with the variables that a page sets filled in."""
    lines: list[list[str]] = []
    for page in PAGES:
        variables: dict[str, str] = {}
        for block in re.findall(r"```bash\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if set_here := re.fullmatch(r"""([A-Z]+)=("?)([^"$]*)\2""", line):
                    variables[set_here[1]] = set_here[3]
                for name, value in variables.items():
                    line = line.replace(f"${name}", value)
                lines.append(shlex.split(line, comments=True))
    return lines


def commands(program: str) -> list[list[str]]:
    """The words of each command line for `program`."""
    return [words for words in command_lines() if words[:1] == [program]]


@pytest.mark.parametrize("words", commands("tfswa-sep"), ids=shlex.join)
def test_a_command_line_is_understood(words: list[str]) -> None:
    """Every option and command is parsed by the real parser; nothing is run."""
    context = typer.main.get_command(main.app).make_context("tfswa-sep", words[1:], resilient_parsing=False)
    command = context.command
    rest = [*context._protected_args, *context.args]
    while rest and hasattr(command, "commands"):
        command = command.commands[rest[0]]
        if "--help" in rest:
            return
        context = command.make_context(rest[0], rest[1:], parent=context)
        rest = [*getattr(context, "_protected_args", []), *context.args]
    assert rest == []


CONFIGURED = {"training.train", "training.analysis.memory", "training.analysis.throughput"}


@pytest.mark.parametrize("words", [w for w in command_lines() if CONFIGURED & set(w)], ids=shlex.join)
def test_a_training_command_names_settings_that_exist(words: list[str]) -> None:
    """And the data, on which the length of an example depends, and so memory and time."""
    for module in ("torch", "hydra", "lightning_fabric"):
        pytest.importorskip(module)
    from training.configuration import load_config

    module, *settings = words[words.index("-m") + 1 :]
    load_config([w for w in settings if not w.startswith("--")], needs_data=module == "training.train")
    assert any(word.startswith("data") for word in settings)
    if words[0] == "srun":  # it does not inherit this from sbatch
        assert "--cpus-per-task=$SLURM_CPUS_PER_TASK" in words


@pytest.mark.parametrize("words", commands("make"), ids=shlex.join)
def test_a_make_target_exists(words: list[str]) -> None:
    done = subprocess.run(
        ["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if "SONG=path/to/song.mp3" in words:
        assert 'tfswa-sep "path/to/song.mp3"' in done.stdout


@pytest.mark.parametrize("words", commands("python"), ids=shlex.join)
def test_a_training_module_exists(words: list[str]) -> None:
    assert words[1] == "-m"
    assert importlib.util.find_spec(words[2]) is not None


@pytest.mark.slow
@pytest.mark.parametrize("words", [w for w in commands("python") if "--help" in w], ids=shlex.join)
def test_a_training_module_helps(words: list[str]) -> None:
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower() or "powered by hydra" in done.stdout.lower()


@pytest.mark.slow
@pytest.mark.parametrize("page", ("README.md", "docs/python.md", "docs/live.md"))
def test_the_python_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, with two seconds of the demo song under the name that they use."""
    import soundfile

    monkeypatch.chdir(tmp_path)
    samples, rate = soundfile.read(ROOT / "examples/demo/demo.ogg", frames=88_200, always_2d=True)
    soundfile.write("song.mp3", samples, rate)
    names = {"tfswa_sep": tfswa_sep, "block": samples.T}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL):
        exec(compile(ast.parse(code), page, "exec"), names)
    assert set(names["stems"]) == {"vocals", "drums", "bass", "other"}
    if page != "docs/live.md":
        assert (tmp_path / "stems" / "song" / "accompaniment.wav").is_file()
        assert len(list((tmp_path / "stems" / "saved").glob("*.flac"))) == 4


def test_the_exit_codes_are_those_of_the_errors() -> None:
    table = {int(code) for code in re.findall(r"^\| (\d) \|", DOCUMENTS, re.MULTILINE)}
    ours = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.TfswaError)
    }
    assert table == {0, *ours}


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_api_page_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text("utf-8"), re.MULTILINE))
    names = {f"tfswa_sep.{name}" for name in tfswa_sep.__all__ if name != "TfswaError"}
    assert names | {"tfswa_sep.errors"} <= shown


def test_the_architecture_page_names_every_module() -> None:
    tree = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    for path in (ROOT / "tfswa_sep").iterdir():
        assert path.name.startswith(("__", "py.typed")) or f"  {path.name}" in tree, path.name
    for folder in re.findall(r"^([a-z_]+/) ", tree, re.MULTILINE):
        assert (ROOT / folder).is_dir()


@pytest.mark.parametrize("name", REPORTED)
def test_the_numbers_are_those_of_the_records(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert fill_in(text, REPORTED[name]) == text, "run: python -m training.release.report"


def test_the_short_tables_say_what_the_records_say() -> None:
    def method(name: str, sdr: float) -> dict[str, object]:
        stems = ("vocals", "drums", "bass", "other")
        songs = [{"stems": {stem: {"sdr": sdr + up} for stem in stems}} for up in (-1, 1)]
        return {"name": name, "mean": {stem: {"sdr": sdr} for stem in stems}, "songs": songs}

    record = {"methods": [method("small", 4.56), method("mixture", -5.0)], "date": "2026-01-02T03:04:05"}
    quality = render_quality(record)
    assert f"| mean over the songs |{' **4.6** |' * 5}" in quality
    assert f"| 95 % interval |{' 3.6 to 5.6 |' * 5}" in quality
    assert "on 2 excerpts" in quality and "9.6 dB above the unseparated mixture" in quality
    assert "| small | 4.56 | 4.56 | 4.56 | 4.56 | 4.56 |" in render_excerpts(record)
    rows = [
        {
            "name": name,
            "minutes": 3.0,
            "ratio": ratio,
            "median": {"wall": 7 * ratio, "memory": 2e9},
            "weights": kind,
        }
        for name, ratio, kind in (
            ("tfswa-sep", 1.0, "own"),
            ("tfswa-sep", 2.0, "own"),
            ("demucs", 18.0, "random"),
        )
    ]
    table = render_glance({"measurements": rows, "machine": "a machine"})
    assert "| **tfswa-sep** | 7.0 s |  | 2,000 MB |" in table and "14.0 s" not in table
    assert "| Demucs (htdemucs)* | 126.0 s | 18.0 times | 2,000 MB |" in table


def test_tables_say_what_the_records_say() -> None:
    stems = {
        "vocals": {"sdr": 6.123, "gain": 9.5, "songs": 1},
        "bass": {"sdr": -1.0, "gain": 0.25, "songs": 1},
    }
    songs = [{"song": "A", "apart": False, "stems": stems}, {"song": "B", "apart": True, "stems": {}}]
    method = {"mean": stems, "songs": songs, "backend": "onnx", "precision": "fp32"}
    scores = render_scores({"methods": [method], "date": "2026-01-02T03:04:05", "machine": "a machine"})
    assert scores.splitlines()[0] == "| song | vocals | bass |"
    assert "| A | 6.12 (+9.50) | -1.00 (+0.25) |" in scores and "| B (apart) | - | - |" in scores
    assert render_means({"methods": [{"mean": stems}]}).endswith("the means are: vocals 6.12, bass -1.00 dB.")
    median = {"wall": 12.34, "cpu": 1.0, "memory": 5e8}
    ours = {
        "name": "tfswa-sep", "weights": "own", "minutes": 3.0, "backend": "onnx", "precision": "fp32",
        "threads": None, "median": median, "real_time_factor": 0.0686, "ratio": None,
    }  # fmt: skip
    peer = {**ours, "name": "peer", "weights": "random", "ratio": 2.5, "threads": 2}
    missing = [{"name": "other", "reason": "no wheel"}]
    speed = render_speed({"measurements": [ours, peer], "machine": "a machine", "not_run": missing})
    assert "| 3 min | tfswa-sep | onnx fp32 | auto | 12.3 s | 0.069 | - | 500 MB |" in speed
    assert "| 3 min | peer* | onnx fp32 | 2 | 12.3 s | 0.069 | 2.50 | 500 MB |" in speed
    assert "random weights" in speed and "Not run: other (no wheel)." in speed


def test_the_version_has_a_changelog_entry() -> None:
    assert f"## {tfswa_sep.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_paper_is_cited_in_the_right_journal() -> None:
    """DOI 10.1186/s13634-025-01249-0; the publisher's journal on audio, speech and music is another one."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tfswa_sep").rglob("*.py")]
    texts = [path.read_text("utf-8") for path in pages]
    assert not any("EURASIP Journal on Audio" in " ".join(text.split()) for text in texts)


def test_the_package_names_the_licence_of_its_code_and_of_its_weights() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    models = tomllib.loads((ROOT / "models.toml").read_text("utf-8"))["models"]
    bundled = {
        model["license"]
        for model in models.values()
        if any(file["where"].startswith("bundled:") for file in model["files"])
    }
    assert set(project["license"].split(" AND ")) == {"MIT", *bundled}
    assert project["license-files"] == ["LICENSE", "LICENSES/*.txt"]
    for name in bundled:
        assert name in README
        assert "GENERAL PUBLIC LICENSE" in (ROOT / "LICENSES" / f"{name}.txt").read_text("utf-8")


def test_missing_system_packages_are_named(tmp_path: Path) -> None:
    for program in ("sh", "sed", "id"):
        (tmp_path / program).symlink_to(str(shutil.which(program)))
    command = [str(shutil.which("make")), "system-deps"]
    environment = {"PATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0  # without ffmpeg
    assert "sudo apt-get install ffmpeg chromium chromium-driver" in done.stderr
