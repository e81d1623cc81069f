"""Check and decode the songs of a run before it: `python -m training.prepare data=musdb18hq data.root=FOLDER`.

Takes the settings of training.train. The songs are decoded into `data.cache`, so that no GPU has to wait for it, and
counted; one example is drawn to see that they can be trained on.
"""

from __future__ import annotations

import sys

import numpy as np
from omegaconf import DictConfig

from training.configuration import build_model_config, run_command
from training.data.loader import open_data, seconds_of, whole_seconds


def prepare(config: DictConfig) -> None:
    """Decode the songs, and print what a run would train on.

    Raises:
        TfswaError: The songs or settings are unusable.
        ValueError: A song is too short.
    """
    model = build_model_config(config.model)
    data = open_data(config.data, model.stems, seed=config.seed)
    examples = data.draw(whole_seconds(seconds_of(config.data), model))
    mixture, _, _ = examples.example(np.random.default_rng(config.seed))
    print(f"training: {data.about}")
    print(f"validation: {len(data.valid)} songs" if data.valid else "no validation: set data.valid")
    print(f"targets: {', '.join(data.targets)}; examples of {mixture.shape[-1] / model.sample_rate:.2f} s")


if __name__ == "__main__":
    sys.exit(run_command(prepare, about=__doc__))
