"""Save a small file to continue a run elsewhere: `python -m training.release.state LAST.ckpt --out FILE`.

FILE (.safetensors) holds the averaged weights in float16, the step and the settings: a tenth of a checkpoint's size.
`python -m training.train ... training.continue_from=FILE` continues at that step, with a new optimizer state.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from safetensors.torch import save_file

from tfswa_sep.audio.atomic_file import atomic_write
from tfswa_sep.inference.metadata import KEY
from training import checkpoint


def write_state(source: Path, target: Path) -> int:
    """Write the state file of a checkpoint; return its step.

    Raises:
        InputError: The checkpoint cannot be read.
    """
    stored = checkpoint.read(source)
    weights = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in stored["average"].items()
        if not key.endswith("num_batches_tracked")
    }
    metadata = {"config": stored["shape"], "step": stored["step"], "run": json.loads(stored["config"])}
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        save_file(weights, temporary, metadata={KEY: json.dumps(metadata)})
    return int(stored["step"])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m training.release.state",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="last.ckpt of a run")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    options = parser.parse_args(arguments)
    step = write_state(options.checkpoint, options.out)
    print(f"{options.out}: averaged weights of step {step}, {options.out.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
