"""Install commands are those of the tool that installed tfswa-sep."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

from tfswa_sep.errors import install_command

NEEDS = ['torch>=2.11; extra == "torch"', 'einops>=0.8; extra == "torch"', "numpy>=2"]


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment called tfswa-sep, without pip."""
    folder = tmp_path / "tfswa-sep"
    (folder / "bin").mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "bin" / "python"))
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: NEEDS)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    return folder


def test_pipx_injects(prefix: Path) -> None:
    (prefix / "pipx_metadata.json").touch()
    assert install_command(extra="torch", index="https://host/cpu") == (
        'pipx inject tfswa-sep "torch>=2.11" "einops>=0.8" "--pip-args=--extra-index-url https://host/cpu"'
    )
    assert install_command("mutagen") == "pipx inject tfswa-sep mutagen"


def test_uv_installs_into_its_tool(prefix: Path) -> None:
    (prefix / "uv-receipt.toml").touch()
    line = f'uv pip install --python {sys.executable} "torch>=2.11" "einops>=0.8"'
    assert install_command(extra="torch") == line


def test_an_environment_of_uv_without_pip(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", {"uv": "/usr/bin/uv"}.get)
    assert install_command("mutagen") == f"uv pip install --python {sys.executable} mutagen"


def test_pip_is_named_as_the_shell_would_find_it(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert install_command(extra="torch") == f'{sys.executable} -m pip install "tfswa-sep[torch]"'
    monkeypatch.setattr(shutil, "which", {"pip": "/usr/bin/pip"}.get)
    assert install_command("mutagen") == f"{sys.executable} -m pip install mutagen"
    monkeypatch.setattr(shutil, "which", {"pip": str(prefix / "bin" / "pip")}.get)
    assert install_command(extra="torch") == 'pip install "tfswa-sep[torch]"'


def test_a_checkout_that_was_not_installed(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    (prefix / "pipx_metadata.json").touch()
    assert install_command(extra="torch") == 'pipx inject tfswa-sep "tfswa-sep[torch]"'
