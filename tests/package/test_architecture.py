"""What no module may import, and who may print: read from the source, so that it stays true."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tfswa_sep

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tfswa_sep"
SOURCES = sorted(PACKAGE.rglob("*.py"))

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
MAY_PRINT = {"cli"}
UNSAFE = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> Iterator[str]:
    """Every imported name, `from tfswa_sep import audio` as tfswa_sep.audio.decode."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_keeps_the_rules(path: Path) -> None:
    module, source = module_of(path), path.read_text("utf-8")
    tree = ast.parse(source)
    roots = {name.split(".")[0] for name in imports(tree)}
    assert "training" not in roots and "tests" not in roots
    assert not roots & UNSAFE
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    called = {ast.unparse(node.func) for node in calls}
    assert not called & {"torch.load", "eval", "exec"}
    for node in calls:
        if ast.unparse(node.func) == "np.load":
            assert "allow_pickle=False" in map(ast.unparse, node.keywords)
    if module not in MAY_PRINT and path.name != "__main__.py":
        assert not called & {"print", "sys.exit", "exit", "typer.echo"}


def test_the_exported_names() -> None:
    assert sorted(tfswa_sep.__all__) == [
        "LiveStream", "OutputOptions", "Runtime", "SeparationResult", "Separator", "Stems", "TfswaError",
        "load_model", "separate",
    ]  # fmt: skip
    assert [name for name in dir(tfswa_sep) if not name.startswith("__")] == sorted(
        [*tfswa_sep.__all__, "errors"]
    )
    for name in tfswa_sep.__all__:
        assert getattr(tfswa_sep, name).__doc__ and name in dir(tfswa_sep)
    with pytest.raises(AttributeError, match="nothing"):
        tfswa_sep.nothing  # noqa: B018


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = f"import sys, tfswa_sep; print(sorted(set({sorted(HEAVY)!r}) & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == "[]\n"


def test_the_package_has_few_entries() -> None:
    """A newcomer sees all of it at once."""
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "models.toml"}
    assert len(entries) <= 19, sorted(entries)
