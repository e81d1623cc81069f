"""The command line of everything that trains: Hydra's configs and `key=value`.

`training/configs/{data,model,training}` are groups: `data=musdb18hq training=h100 training.steps=1000`.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tfswa_sep.cli.terminal import print_error
from tfswa_sep.errors import TfswaError, UsageError
from tfswa_sep.model.config import PRESETS, ModelConfig
from training.mixing.settings import MixSettings
from training.stop import Stopped

CONFIGS = Path(__file__).resolve().parent / "configs"
# Beside the files there, and the only place where these defaults stand.
ConfigStore.instance().store(name="mix_settings", node=dataclasses.asdict(MixSettings()))


def load_config(arguments: list[str], *, needs_data: bool = True) -> DictConfig:
    """The configuration that a command line gives.

    Raises UsageError for a key or config that is not there, naming the nearest, and for one that is missing
    (where `needs_data`: some commands look at the model alone).
    """
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            chosen = [o for o in overrides if (CONFIGS / o.key_or_group).is_dir()]
            for override in chosen:
                files = [path.stem for path in (CONFIGS / override.key_or_group).glob("*.yaml")]
                _check_name(str(override.value()), files, f"config for {override.key_or_group}")
            groups = [o.input_line for o in chosen if o.input_line]
            known = set(_keys(OmegaConf.to_container(compose("config", overrides=groups))))
            known |= {f"model.changes.{field.name}" for field in dataclasses.fields(ModelConfig)}
            lines = []
            for override in overrides:
                key, line = override.key_or_group, override.input_line or ""
                if override not in chosen:
                    _check_name(key, sorted(known), "setting")
                # One of model.changes is known, but not there yet: ++ changes or adds.
                plain = override in chosen or override.is_delete()
                lines.append(line if plain else "++" + line.lstrip("+"))
            config = compose("config", overrides=lines)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(" ".join(str(error).split())) from error
    if needs_data and (missing := sorted(OmegaConf.missing_keys(config))):
        raise UsageError(f"{missing[0]} is missing: add {missing[0]}=...")
    return config


def model_shape(settings: DictConfig) -> ModelConfig:
    """The preset of `model`, with its changes. Raises ValueError for numbers that do not fit together."""
    changes: Any = OmegaConf.to_container(settings.changes)
    return ModelConfig.from_json(PRESETS[settings.preset].to_json() | changes)


def run_command(command: Callable[[DictConfig], Any], *, about: str | None, needs_data: bool = True) -> int:
    """Run a command on the configuration of sys.argv; returns the exit code. A user's error is one line."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(about, f"\n\nConfigs are in {CONFIGS}; --config prints what a command line gives.")
        return 0
    try:
        config = load_config([a for a in arguments if a != "--config"], needs_data=needs_data)
        if "--config" in arguments:
            print(OmegaConf.to_yaml(config))
            return 0
        command(config)
    except Stopped as stopped:
        return stopped.exit_code
    except (TfswaError, ValueError) as error:
        print_error(str(error))
        return error.exit_code if isinstance(error, TfswaError) else UsageError.exit_code
    except KeyboardInterrupt:
        print_error("interrupted; the same command goes on from the last checkpoint")
        return 130
    return 0


def _check_name(name: str, known: list[str], kind: str) -> None:
    if name not in known:
        near = _nearest(name, known)
        hint = f"did you mean {near!r}?" if near else f"there is {', '.join(sorted(known)[:12])}"
        raise UsageError(f"unknown {kind} {name!r}: {hint}")


def _nearest(name: str, known: list[str]) -> str | None:
    """What `name` was meant to be: the right key at the wrong place, an abbreviation, or one misspelt.

    Of the latter two those under the same parent come first: training.lr is training.learning_rate.
    """
    parent, _, leaf = name.rpartition(".")
    leaves = {key: key.rpartition(".")[2] for key in known}
    siblings = {key: word for key, word in leaves.items() if key.rpartition(".")[0] == parent}
    for key, word in leaves.items():
        if word == leaf:
            return key
    for keys in (siblings, leaves):
        for key, word in keys.items():
            if "_" in word and "".join(part[0] for part in word.split("_") if part) == leaf:
                return key
    near = difflib.get_close_matches(leaf, siblings.values(), n=1, cutoff=0.6)
    if near:
        return next(key for key, word in siblings.items() if word == near[0])
    others = [key for key in known if key != parent]
    return next(iter(difflib.get_close_matches(name, others, n=1, cutoff=0.6)), None)


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
