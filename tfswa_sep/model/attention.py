"""The three attentions of a TFSWA block.

TSA attends over time within one frequency, FSA over frequency within one frame, and SW-MSA within small windows of
(frequency, time), shifted by half a window in every other block.

Sources: TFSWA-ResUNet, EURASIP JASP 2025:39 (the three together); Liu et al., Swin Transformer,
arXiv:2103.14030, section 3.2 (shifted windows and their mask, relative position bias).
Axis letters: see `tfswa_sep.model.config`.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional


class QueryKeyValue(nn.Linear):
    """Queries, keys and values from one matrix (3 * d, d)."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        """(..., d) -> queries, keys and values, (..., d) each."""
        return super().forward(x).chunk(3, dim=-1)


class _Attention(nn.Module):
    """The input and output projections that the attentions have in common.

    Features are the last axis, so that rearranging moves whole feature vectors: otherwise it costs more than the
    attention itself (measured in ONNX Runtime).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = QueryKeyValue(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)


class TimeAttention(_Attention):
    """TSA: each frequency attends over all its frames."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, f, t, d) -> (b, f, t, d)."""
        f = x.shape[1]
        q, k, v = (rearrange(y, "b f t (h e) -> (b f) h t e", h=self.heads) for y in self.qkv(x))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.project(rearrange(y, "(b f) h t e -> b f t (h e)", f=f))  # type: ignore[no-any-return]


class FrequencyAttention(_Attention):
    """FSA: each frame attends over all its frequencies."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, f, t, d) -> (b, f, t, d)."""
        t = x.shape[2]
        q, k, v = (rearrange(y, "b f t (h e) -> (b t) h f e", h=self.heads) for y in self.qkv(x))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.project(rearrange(y, "(b t) h f e -> b f t (h e)", t=t))  # type: ignore[no-any-return]


class ShiftedWindowAttention(_Attention):
    """SW-MSA: each position attends within its window of (frequency, time).

    With `shifted`, the windows are shifted by half a window along both axes: the map is rolled, and a mask
    separates positions that only the roll made neighbours (Swin, figure 4).
    """

    relative_index: Tensor

    def __init__(self, dim: int, heads: int, *, window: tuple[int, int], shifted: bool) -> None:
        super().__init__(dim, heads)
        self.window = window
        self.shift = (window[0] // 2, window[1] // 2) if shifted else (0, 0)
        wf, wt = window
        self.bias_table = nn.Parameter(torch.zeros((2 * wf - 1) * (2 * wt - 1), heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        index = torch.empty(wf * wt, wf * wt, dtype=torch.long)
        if (
            not index.is_meta
        ):  # only shapes are checked; index arithmetic on meta tensors imports slow modules
            row, column = torch.arange(wf * wt) // wt, torch.arange(wf * wt) % wt
            index = (row[:, None] - row + wf - 1) * (2 * wt - 1) + column[:, None] - column + wt - 1
        self.register_buffer("relative_index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(b, f, t, d) -> (b, f, t, d); f and t are multiples of the window's."""
        _, f, t, _ = x.shape
        (wf, wt), (sf, st), h = self.window, self.shift, self.heads
        if sf or st:
            x = torch.roll(x, (-sf, -st), dims=(1, 2))
        # ONNX's attention has four axes. Unshifted windows share one bias, so they join the batch axis; shifted
        # ones have a mask each, so they join the heads.
        rows = "b (nf nt h)" if sf or st else "(b nf nt) h"
        sizes = {"nf": f // wf, "nt": t // wt, "wf": wf, "h": h}
        windows = f"b (nf wf) (nt wt) (h e) -> {rows} (wf wt) e"
        q, k, v = (rearrange(y, windows, **sizes) for y in self.qkv(x))
        bias = rearrange(self.bias_table[self.relative_index], "i j h -> h i j").to(q.dtype)
        if sf or st:
            bias = (bias + self._mask(f, t, q)[:, None]).flatten(0, 1)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        y = rearrange(y, f"{rows} (wf wt) e -> b (nf wf) (nt wt) (h e)", **sizes)
        if sf or st:
            y = torch.roll(y, (sf, st), dims=(1, 2))
        return self.project(y)  # type: ignore[no-any-return]

    def _mask(self, f: int, t: int, like: Tensor) -> Tensor:
        """(window, i, j): 0 within a region of the rolled map, a large negative number across regions."""
        (wf, wt), (sf, st) = self.window, self.shift
        row, column = torch.arange(f, device=like.device), torch.arange(t, device=like.device)
        # The last window of an axis holds two regions: its own, and what was rolled round from the start.
        region = (row >= f - sf).long()[:, None] * 2 + (column >= t - st).long()[None, :]
        region = rearrange(region, "(nf wf) (nt wt) -> (nf nt) (wf wt)", wf=wf, wt=wt)
        # Not minus infinity, which half precision and quantized graphs handle badly.
        return (region[:, :, None] != region[:, None, :]).to(like.dtype) * -1e4
