r"""Separate sound as it arrives: the network sees a window that ends now, and only its newest part is used.

    past                                          now
     |------------------- window ------------------|
                              |--- new ---|- ahead -|        what the previous window gave is already played
                              |/\|                           previous window fades out, this one in

`ahead` is the look-ahead: a sample is played when the network has heard that much of what follows it, since results
are worst at a window's end. The previous window's result reaches into its own look-ahead, so the fade costs no time.

Axis letters: k requested stem, c channel, n samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.errors import ModelError
from tfswa_sep.inference.backend import AnyLength, Backend
from tfswa_sep.inference.overlap_add import Samples

FADE_SECONDS = 0.01  # at most: between the results of two windows


class LiveWindows:
    """A stream that is separated one hop at a time; see the module. Deterministic: nothing depends on time.

    Args:
        model: The loaded model.
        stem_matrix: (k, s + 1), as in `separate_blocks`.
        window: Samples that the network sees, at least; rounded up to a length that the model takes.
        lookahead: Samples by which results lag behind their input.
    """

    def __init__(
        self, model: Backend, stem_matrix: NDArray[np.float32], *, window: int, lookahead: int
    ) -> None:
        self._model = model
        self._model_part, self._song_part = stem_matrix[:, :-1], stem_matrix[:, -1]
        self._is_identity = np.array_equal(self._model_part, np.eye(len(model.stems)))
        self.window = model.fit_segment(window) if isinstance(model, AnyLength) else model.plan.segment
        self.lookahead = min(lookahead, self.window // 2)
        self.longest = self.window - self.lookahead  # samples per `advance`
        # With which a result follows another, or silence; (fade,).
        fade = min(self.lookahead, round(FADE_SECONDS * model.sample_rate))
        self.fade_in = ((np.arange(fade) + 0.5) / max(fade, 1)).astype(np.float32)
        self._heard = np.zeros((model.channels, self.window), np.float32)
        self._tail = np.zeros((len(stem_matrix), model.channels, fade), np.float32)  # of the previous result

    def advance(self, block: Samples) -> Samples:
        """Hear a block (c, n), n at most `longest`, and return the stems (k, c, n) up to `lookahead` before its end.

        Raises:
            ModelError: The network fails, or returns NaN or infinite values.
            DeviceError: Out of memory.
        """
        n = block.shape[1]
        self._hear(block)
        stems = self._separate(n + self.lookahead)
        kept = stems[..., :n]
        fade = min(len(self.fade_in), n)
        weights = self.fade_in[:fade]
        kept[..., :fade] *= weights
        kept[..., :fade] += self._tail[..., :fade] * (1 - weights)
        self._tail = stems[..., n : n + len(self.fade_in)].copy()
        return kept

    def skip(self, block: Samples) -> Samples:
        """Hear a block (c, n) without separating it, for want of time: the stems (k, c, n) fade to silence."""
        self._hear(block)
        stems = np.zeros((len(self._tail), *block.shape), np.float32)
        fade = min(len(self.fade_in), block.shape[1])
        stems[..., :fade] = self._tail[..., :fade] * (1 - self.fade_in[:fade])
        self._tail = np.zeros_like(self._tail)
        return stems

    def song(self, n: int) -> Samples:
        """What was heard in place of the last n samples that `advance` or `skip` returned, (c, n)."""
        end = self.window - self.lookahead
        return self._heard[:, end - n : end].copy()

    def _hear(self, block: Samples) -> None:
        n = block.shape[1]
        self._heard[:, : self.window - n] = self._heard[:, n:].copy()
        self._heard[:, self.window - n :] = block

    def _separate(self, newest: int) -> Samples:
        """The stems of the last `newest` samples heard, (k, c, newest), in an array of their own."""
        heard = self._heard[None]
        if not heard.any():  # the stems of silence are silent, whatever the network's biases
            return np.zeros((len(self._song_part), heard.shape[1], newest), np.float32)
        matrix = None if self._is_identity else self._model_part
        stems: Samples
        if isinstance(self._model, AnyLength):
            stems = self._model.newest(heard, newest, stem_matrix=matrix)[0]
        else:
            stems = self._model(heard, stem_matrix=matrix)[0, ..., -newest:]
        if not np.isfinite(stems.sum()):
            raise ModelError("the network returned NaN or infinite values: choose another model with --model")
        if self._song_part.any():
            stems = stems + self._song_part[:, None, None] * self._heard[:, -newest:]
        return stems if stems.flags.writeable else stems.copy()
