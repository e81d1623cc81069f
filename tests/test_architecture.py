"""Who may import whom, who may print, how long a file may be: read from the source, so that it stays true."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfswa_sep

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tfswa_sep"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 300

# module (or folder) of ours -> the others of ours that it may import, anywhere in the file
MAY_IMPORT = {
    "errors": set[str](),
    "spectrogram": set[str](),
    "overlap": set[str](),
    "model": set[str](),
    "mp3": {"errors"},
    "ogg": set[str](),
    "resample": set[str](),
    "temporary": set[str](),
    "ffmpeg": {"errors"},
    "formats": {"errors", "ffmpeg"},
    "tags": {"audio", "ffmpeg"},
    "stems": {"errors"},
    "terminal": {"errors"},
    "command_groups": set[str](),
    "options": set[str](),
    "processor": set[str](),
    "registry": {"errors", "processor"},
    "manifest": {"errors", "registry", "temporary"},
    "inputs": {"errors", "manifest"},
    "audio": {"errors", "ffmpeg", "mp3", "ogg", "resample"},
    "encode": {"errors", "ffmpeg", "formats", "resample", "tags"},
    "stem_file": {"errors", "ffmpeg"},
    "stem_writer": {"errors", "audio", "encode", "formats", "resample", "stem_file", "temporary"},
    "masks": {"model", "spectrogram"},
    "backends": {"errors", "masks", "overlap", "processor", "spectrogram", "model"},
    "arrays": {"errors", "audio", "formats", "resample", "stem_writer"},
    "song_files": {
        "errors", "audio", "backends", "formats", "resample", "stem_file", "stem_writer", "stems", "tags",
    },
    "separator": {
        "errors", "arrays", "audio", "backends", "overlap", "registry", "resample", "song_files", "stems",
    },
    "batch": {"audio", "errors", "inputs", "manifest", "registry", "separator", "song_files", "stems"},
    "jobs": {"batch", "errors", "processor"},
    "evaluation": {
        "errors", "separator", "audio", "registry", "backends", "resample", "spectrogram", "stems",
    },
    "doctor": {"errors", "registry", "backends", "separator", "ffmpeg"},
    "commands": {
        "errors", "batch", "command_groups", "doctor", "inputs", "jobs", "options", "terminal", "registry",
        "separator", "evaluation",
    },
    "cli": {"commands", "command_groups", "terminal"},
    "__main__": {"cli"},
    "__init__": {"errors", "arrays", "separator"},
}  # fmt: skip
# modules that load at `tfswa-sep --help`: what they import at the top must be light
AT_THE_DOOR = {
    "__init__", "__main__", "batch", "cli", "command_groups", "commands", "doctor", "errors", "inputs",
    "jobs", "manifest", "options", "processor", "registry", "temporary", "terminal",
}  # fmt: skip
HEAVY = {
    "numpy",
    "onnxruntime",
    "torch",
    "soundfile",
    "soxr",
    "huggingface_hub",
    "rich",
    "einops",
    "safetensors",
}
MAY_PRINT = {"cli", "commands", "terminal"}
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported name, `from tfswa_sep import audio` as tfswa_sep.audio."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top_imports(tree: ast.Module) -> Iterator[str]:
    """What is imported as soon as the module is, which `if TYPE_CHECKING` is not."""
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def ours(tree: ast.AST) -> set[str]:
    names = {name.split(".")[1] for name in imports(tree) if name.startswith("tfswa_sep.")}
    return {name for name in names if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_keeps_the_rules(path: Path) -> None:
    module, source = module_of(path), path.read_text("utf-8")
    tree = ast.parse(source)
    assert module in MAY_IMPORT, "a new module: say in MAY_IMPORT what it may import"
    assert ours(tree) - {module} <= MAY_IMPORT[module]
    roots = {name.split(".")[0] for name in imports(tree)}
    assert "training" not in roots and "tests" not in roots
    assert not roots & UNSAFE
    if module in AT_THE_DOOR:
        assert not {name.split(".")[0] for name in top_imports(tree)} & HEAVY
    assert len(source.splitlines()) <= MAX_LINES
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    assert not called & {"torch.load", "eval", "exec", "np.load"}
    if module not in MAY_PRINT and path.name != "__main__.py":
        assert not called & {"print", "sys.exit", "exit", "typer.echo"}


def test_every_rule_is_for_a_module_that_exists() -> None:
    assert set(MAY_IMPORT) == {module_of(path) for path in SOURCES}


def test_the_exported_names() -> None:
    assert sorted(tfswa_sep.__all__) == [
        "SeparationResult", "Separator", "Stems", "TfswaError", "load_model", "separate"
    ]  # fmt: skip
    for name in tfswa_sep.__all__:
        assert getattr(tfswa_sep, name).__doc__ and name in dir(tfswa_sep)
    with pytest.raises(AttributeError, match="nothing"):
        tfswa_sep.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = f"import sys, tfswa_sep; print(sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "[]\n"
