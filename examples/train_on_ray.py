"""Train a model on a Ray cluster: `training.train`, started by Ray Train instead of `torchrun`.

    python -m examples.train_on_ray --workers 8 --gpu data=musdb18hq data.root=/data/musdb18hq out=/shared/runs/one

The settings are those of `training.train`. Paths must be absolute, and the same on every machine.
"""

from __future__ import annotations

import argparse

import ray
from omegaconf import DictConfig
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from training.configuration import load_config
from training.train import train


def main() -> None:
    """Train, and wait for the end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--gpu", action="store_true", help="with a GPU each")
    parser.add_argument("--address", help="of the Ray cluster; by default one is started on this machine")
    arguments, settings = parser.parse_known_args()
    config = load_config(settings)  # here, so that a mistake is reported before anything is started
    ray.init(address=arguments.address or "local")
    TorchTrainer(
        _train,
        train_loop_config={"config": config},
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpu),
        run_config=RunConfig(storage_path=f"{config.out}/ray"),
    ).fit()


def _train(settings: dict[str, DictConfig]) -> None:
    """What each process does. Ray Train sets the same environment variables as `torchrun`."""
    train(settings["config"])


if __name__ == "__main__":
    main()
