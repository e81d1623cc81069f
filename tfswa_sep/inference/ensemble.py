"""Models whose stems of the same name are averaged, such as `small+spleeter`.

Axis letters: s model stem, k requested stem.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.backend import Backend
from tfswa_sep.inference.stem_matrix import parse_stems, row_like

Part = tuple[Backend, NDArray[np.float32]]  # with the matrix (k, s + 1) of `parse_stems` for its stems


@dataclass(frozen=True)
class Ensemble:
    """Models that each see the whole song, cut in their own way.

    The stems are those of the first model. A stem, or a sum of stems, is the mean over the models that have it or can
    make it: with a second model of vocals and accompaniment, the drums are the first one's alone.

    Raises:
        ModelError: The models differ in sample rate.
    """

    models: tuple[Backend, ...]

    def __post_init__(self) -> None:
        if len({model.sample_rate for model in self.models}) > 1:
            rates = " and ".join(f"{model.sample_rate} Hz" for model in self.models)
            raise ModelError(f"models of different sample rates cannot be combined: {rates}")

    @property
    def stems(self) -> tuple[str, ...]:
        """The first model's stems."""
        return self.models[0].stems

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.models[0].sample_rate

    @property
    def channels(self) -> int:
        """Audio channels."""
        return self.models[0].channels

    @property
    def name(self) -> str:
        """The backends: "onnx", "torch" or both with a plus sign."""
        return _joined(model.name for model in self.models)

    @property
    def device(self) -> str:
        """The devices, as in `name`."""
        return _joined(model.device for model in self.models)

    @property
    def precision(self) -> str:
        """The precisions, as in `name`."""
        return _joined(model.precision for model in self.models)

    @property
    def workers(self) -> int:
        """As many as the model with the most; see Backend."""
        return max(model.workers for model in self.models)

    @property
    def notes(self) -> Sequence[str]:
        """See Backend."""
        return tuple(dict.fromkeys(note for model in self.models for note in model.notes))


def parts_for(model: Backend | Ensemble, names: Sequence[str]) -> list[Part]:
    """The models that make the stems `names`, which `parse_stems` has checked, and what each contributes."""
    if not isinstance(model, Ensemble):
        return [(model, parse_stems(names, model.stems)[1])]
    matrices = [np.zeros((len(names), len(each.stems) + 1), np.float32) for each in model.models]
    for k, name in enumerate(names):
        rows = {
            index: row
            for index, each in enumerate(model.models)
            if (row := row_like(name, model.stems, each.stems)) is not None
        }
        for index, row in rows.items():
            matrices[index][k] = row / len(rows)
    parts = zip(model.models, matrices, strict=True)
    return [(each, matrix) for each, matrix in parts if matrix.any()]


def _joined(names: Iterable[str]) -> str:
    return "+".join(dict.fromkeys(names))
