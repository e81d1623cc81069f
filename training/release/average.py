"""The average of two checkpoints: `python -m training.release.average LAST.ckpt OTHER.ckpt --out AVERAGE.ckpt`.

Of one run, or where the one began with the other: then the average often separates better than either
(Wortsman et al., arXiv:2203.05482). See experiments/006-weight-averaging.md.
`python -m training.release.export AVERAGE.ckpt` takes the result.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from tfswa_sep.errors import InputError, OutputError, TfswaError
from tfswa_sep.model.config import ModelConfig
from training.checkpoint import differences, read, save


def average(first: Path, second: Path, *, share: float) -> dict[str, Any]:
    """The checkpoint `first`, its averaged weights `share` of its own and for the rest those of `second`.

    What is counted, such as a batch norm's batches, stays the first's.
    Raises InputError where one cannot be read, or they are not of the same network.
    """
    found, other = read(first), read(second)
    if different := differences(_network(found, first), _network(other, second)):
        names = ", ".join(different)
        raise InputError(f"{first} and {second} are of networks with other {names}: give two of one run")
    weights = {
        key: torch.lerp(other["average"][key], value, share) if value.is_floating_point() else value
        for key, value in found["average"].items()
    }
    return {**found, "average": weights}


def _network(stored: dict[str, Any], path: Path) -> ModelConfig:
    try:
        return ModelConfig.from_json(stored["shape"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} does not say of which network it is: give a checkpoint") from None


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.release.average", description=__doc__)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--share", type=float, default=0.65, help="the first's; default: %(default)s")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(arguments)
    if not 0 <= options.share <= 1:
        parser.error(f"a share of {options.share} is none: give 0 to 1")
    try:
        save(options.out, average(options.first, options.second, share=options.share))
    except TfswaError as error:
        parser.exit(error.exit_code, f"{error}\n")
    except OSError as error:
        parser.exit(OutputError.exit_code, f"cannot write {options.out} ({error.strerror}): change --out\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
