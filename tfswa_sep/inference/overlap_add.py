r"""Cut a stream of audio into segments with context, and cross-fade the results.

The network sees one segment at a time. Near its edges a segment lacks context, so `margin` samples at each end
are discarded; the kept parts of neighbouring segments overlap by `fade` samples and are cross-faded.

    segment 0   mmmm|KKKKKKKKKKKK\\\\|mmmm
    segment 1               mmmm|////KKKKKKKKKK\\\\|mmmm
    segment 2                             mmmm|////KKKKKKKKKKKKKK|mmmm
    weights          11111111111111111111111111111111111111111111

m context, discarded; K kept with weight 1; / and \ fade in and out with weights w and 1 - w, so each sample's
weights sum to one and an identity network returns the song. The fade is linear unless the plan has weights of its
own. Outside the song the context is zeros; the first segment does not fade in, and the last does not fade out.

Memory holds only the batches that worker threads compute and one more, so that the network never waits for
reading and writing.
Axis letters: b batch, s stem, c channel, n samples.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float32]
_Segment = tuple[Samples, int, int, bool]  # with where it is kept from, how much, and whether it is the last
_Batch = list[_Segment]
DEMUCS_OVERLAP = 0.25  # of a segment; also in audio-separator


@dataclass(frozen=True, kw_only=True)
class SegmentPlan:
    """How a song is cut into segments.

    Raises:
        ValueError: Margins and fades leave nothing of the segment.
    """

    segment: int  # samples per segment
    margin: int  # samples of context discarded at each end
    fade: int  # samples over which neighbours are cross-faded
    lead: int = 0  # samples of silence put before the song
    # (fade,) of fading in, for a network whose segments need the next one where they fade out; None: linear
    weights: Samples | None = field(default=None, compare=False)
    centred: bool = (
        False  # what remains at the song's end lies in the middle of a segment, after what precedes it
    )

    def __post_init__(self) -> None:
        if self.margin < 0 or self.fade < 0 or self.kept <= 0 or 2 * self.fade > self.kept:
            raise ValueError(
                f"a segment of {self.segment} samples cannot have margins of {self.margin} "
                f"and fades of {self.fade}"
            )

    @property
    def kept(self) -> int:
        """Samples of a segment that are kept."""
        return self.segment - 2 * self.margin

    @property
    def step(self) -> int:
        """Samples from one segment's start to the next one's."""
        return self.kept - self.fade

    @property
    def covered(self) -> int:
        """Samples, of those kept, after which a song may end without another segment."""
        return self.kept if self.weights is None else self.step

    @property
    def fade_in(self) -> Samples:
        """The weights with which a segment fades in, (fade,); its predecessor fades out with 1 minus them."""
        if self.weights is not None:
            return self.weights
        return ((np.arange(self.fade) + 0.5) / max(self.fade, 1)).astype(np.float32)


def plan_segments(*, segment: int, margin: int) -> SegmentPlan:
    """The plan for a model: fades of 1/64 of a segment (0.07 s of 4.4 s); longer ones scored no better."""
    return SegmentPlan(
        segment=segment, margin=margin, fade=min(segment // 64, max(0, segment - 2 * margin) // 2)
    )


def plan_triangles(segment: int) -> SegmentPlan:
    """The plan of demucs and unblend: segments overlap by a quarter, with triangular weights."""
    fade = segment - int((1 - DEMUCS_OVERLAP) * segment)
    weights = (np.arange(1, fade + 1) / (fade + 1)).astype(np.float32)
    return SegmentPlan(segment=segment, margin=0, fade=fade, weights=weights, centred=True)


def overlap_add(
    blocks: Iterable[Samples],
    process: Callable[[Samples], Samples],
    plan: SegmentPlan,
    *,
    batch_size: int = 1,
    workers: int = 1,
) -> Iterator[Samples]:
    """Apply `process` to a stream of any length, segment by segment.

    Args:
        blocks: (c, n) each, of any n.
        process: Maps segments (b, c, plan.segment) to stems (b, s, c, plan.segment).
        plan: How the stream is cut.
        batch_size: Segments per call, at most.
        workers: Threads that call `process`.

    Yields:
        (s, c, n), as many samples in total as came in.
    """
    fade_in = plan.fade_in
    faded_tail: Samples | None = None  # the previous segment's part of the overlap, already faded out
    batches = _batches(_segments(blocks, plan), batch_size)
    for batch, estimates in _in_order(batches, process, workers):
        for estimate, (_, start, samples, last) in zip(estimates, batch, strict=True):
            kept = estimate[..., start : start + samples]
            if faded_tail is not None and plan.fade:
                kept = kept if kept.flags.writeable else kept.copy()
                head = kept[..., : plan.fade]
                head *= fade_in[: head.shape[-1]]
                head += faded_tail
            if last:
                yield kept
            else:
                yield kept[..., : plan.step]
                tail = kept[..., plan.step :]
                faded_tail = tail * (1 - fade_in[: tail.shape[-1]])


def _in_order(
    batches: Iterable[_Batch], process: Callable[[Samples], Samples], workers: int
) -> Iterator[tuple[_Batch, Samples]]:
    """Each batch and its result, in order, while threads compute the following batches."""
    pending: deque[tuple[_Batch, Future[Samples]]] = deque()

    def finish() -> tuple[_Batch, Samples]:
        batch, future = pending.popleft()
        return batch, future.result()

    with ThreadPoolExecutor(workers, thread_name_prefix="segment") as pool:
        try:
            for batch in batches:
                pending.append((batch, pool.submit(process, np.stack([segment for segment, *_ in batch]))))
                if len(pending) > workers:
                    yield finish()
            while pending:
                yield finish()
        finally:
            for _, future in pending:
                future.cancel()


def _segments(blocks: Iterable[Samples], plan: SegmentPlan) -> Iterator[_Segment]:
    """Yield each segment (c, plan.segment) with its first kept sample, their number, and whether it is the last."""
    stream = iter(blocks)
    before: Samples | None = None  # what precedes the coming segment, for centred ones
    held: Samples | None = None  # from the start of the coming segment's left context
    ended = False
    while True:
        while not ended and (
            held is None or held.shape[1] <= plan.segment
        ):  # one more than a segment: is it the last?
            block = next(stream, None)
            if block is None:
                ended = True
            elif held is None:
                held = np.concatenate([np.zeros((len(block), plan.margin), np.float32), block], axis=1)
            else:
                held = np.concatenate([held, block], axis=1)
        if held is None or held.shape[1] == plan.margin:  # not one sample came
            return
        inside = held.shape[1] - plan.margin  # samples of the song from the segment's first kept one on
        last = ended and inside <= plan.covered
        segment, start = held[:, : plan.segment], plan.margin
        missing = plan.segment - segment.shape[1]
        if missing > 0 and plan.centred:
            start += missing // 2
            earlier = before[:, before.shape[1] - missing // 2 :] if before is not None else segment[:, :0]
            segment = np.concatenate([earlier, segment], axis=1)
            segment = np.pad(segment, ((0, 0), (missing // 2 - earlier.shape[1], missing - missing // 2)))
        elif missing > 0:
            segment = np.pad(segment, ((0, 0), (0, missing)))
        yield segment, start, min(inside, plan.kept), last
        if last:
            return
        before = held[:, : plan.step] if plan.centred else None
        held = held[:, plan.step :]


def _batches(segments: Iterator[_Segment], batch_size: int) -> Iterator[_Batch]:
    batch: _Batch = []
    for segment in segments:
        batch.append(segment)
        if len(batch) == batch_size:
            yield batch
            batch = []
    if batch:
        yield batch
