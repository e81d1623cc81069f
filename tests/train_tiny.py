"""`training.train` on as little network as there can be, for tests that need processes of their own.

The argument is a JSON list of command lines, each a list of words; the runs follow one another. With a second
one, `presets`, the presets stay what they are.
"""

from __future__ import annotations

import json
import sys

from tiny_model import TINY

from tfswa_sep.model.config import PRESETS
from training.configuration import load_config
from training.stop import Stopped
from training.train import train

if __name__ == "__main__":
    if "presets" not in sys.argv[2:]:
        PRESETS["small"] = TINY
    try:
        for words in json.loads(sys.argv[1]):
            train(load_config(words))
    except Stopped as stopped:  # as `run_command` does
        sys.exit(stopped.exit_code)
