"""The configuration of the training commands: Hydra configs in `training/configs`, and `key=value` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
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
# Registered as a config like the files in CONFIGS, so that these defaults are defined only once.
ConfigStore.instance().store(name="mix_settings", node=dataclasses.asdict(MixSettings()))


def load_config(arguments: list[str], *, needs_data: bool = True) -> DictConfig:
    """Compose the configuration from command-line overrides.

    Args:
        arguments: Overrides such as `model=small` or `training.steps=1000`.
        needs_data: Whether mandatory settings must be present; some commands only use the model.

    Raises:
        UsageError: A key or config is unknown, or a mandatory setting is missing.
    """
    try:
        overrides = OverridesParser.create().parse_overrides(arguments)
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIGS)):
            chosen = [o for o in overrides if (CONFIGS / o.key_or_group).is_dir()]
            for override in chosen:
                files = [path.stem for path in (CONFIGS / override.key_or_group).glob("*.yaml")]
                _check_name(str(override.value()), files, f"config for {override.key_or_group}")
            known = _settings_of(tuple(o.input_line for o in chosen if o.input_line))
            lines = []
            for override in overrides:
                key, line = override.key_or_group, override.input_line or ""
                if override not in chosen:
                    _check_name(key, known, "setting")
                # Keys of model.changes are valid but not in the config yet: ++ overrides or adds.
                plain = override in chosen or override.is_delete()
                lines.append(line if plain else "++" + line.lstrip("+"))
            config = compose("config", overrides=lines)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(" ".join(str(error).split())) from error
    if needs_data and (missing := sorted(OmegaConf.missing_keys(config))):
        raise UsageError(f"missing setting {missing[0]}: add {missing[0]}=...")
    return config


def build_model_config(settings: DictConfig) -> ModelConfig:
    """Apply `model.changes` to the preset. Raises ValueError for inconsistent values."""
    changes: Any = OmegaConf.to_container(settings.changes)
    return ModelConfig.from_json(PRESETS[settings.preset].to_json() | changes)


def run_command(command: Callable[[DictConfig], Any], *, about: str | None, needs_data: bool = True) -> int:
    """Run a command with the configuration from sys.argv, report user errors in one line, return the exit code."""
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(about, f"\n\nConfigs are in {CONFIGS}; --config prints the configuration and exits.")
        return 0
    try:
        config = load_config([a for a in arguments if a != "--config"], needs_data=needs_data)
        if "--config" in arguments:
            print(OmegaConf.to_yaml(config), flush=True)
            return 0
        command(config)
    except Stopped as stopped:
        return stopped.exit_code
    except BrokenPipeError:  # as in --config | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to flush at exit
        return 141
    except (TfswaError, ValueError) as error:
        print_error(str(error))
        return error.exit_code if isinstance(error, TfswaError) else UsageError.exit_code
    except KeyboardInterrupt:
        print_error("interrupted; run the same command to resume from the last checkpoint")
        return 130
    return 0


@functools.cache
def _settings_of(groups: tuple[str, ...]) -> list[str]:
    """List the settings that exist when these configs are chosen."""
    known = set(_keys(OmegaConf.to_container(compose("config", overrides=list(groups)))))
    return sorted(known | {f"model.changes.{field.name}" for field in dataclasses.fields(ModelConfig)})


def _check_name(name: str, known: list[str], kind: str) -> None:
    if name not in known:
        near = _nearest(name, known)
        hint = f"did you mean {near!r}?" if near else f"choose from {', '.join(sorted(known)[:12])}"
        raise UsageError(f"unknown {kind} {name!r}: {hint}")


def _nearest(name: str, known: list[str]) -> str | None:
    """Guess the intended key: the same one in another group, an abbreviation, or a misspelling.

    Keys in the same group come first: training.lr is training.learning_rate.
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
