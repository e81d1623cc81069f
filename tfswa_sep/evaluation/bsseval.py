"""BSSEval: version 4, which is the official one, and a fast approximation.

    museval  SDR, ISR, SIR, SAR per second, with distortion filters of 512 taps fitted once to the whole song
             (Stöter, Liutkus, Ito 2018, "The 2018 Signal Separation Evaluation Campaign"); computed by
             bsseval_v4.py, or by the museval package itself as "museval-reference"
    fast     SDR by museval's own definition, which needs no filter: the energy of the true stem over that of
             the error, second by second. SIR and SAR by fast_bss_eval (Scheibler 2022): version 3, mixed down
             to mono, filters fitted to every 30 s. They differ from museval's.

Signals are (n, c) float64, samples first as in museval.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import ACCOMPANIMENT, VOCALS
from tfswa_sep.evaluation.bsseval_v4 import TAPS, References
from tfswa_sep.evaluation.optional_packages import need

Signal = NDArray[np.float64]
Signals = Mapping[str, Signal]  # stem -> (n, c)
Frames = dict[str, NDArray[np.float64]]  # metric -> (frames,)

HIGHEST_SAR = 80.0  # dB; above it, SAR measures rounding errors
FAST_SECONDS = 30  # of fast_bss_eval's windows
FAST_STEPS = 30  # of its conjugate gradients
ALONE = "only SDR: SIR and SAR need a second stem that can be scored"


def usable(references: Signals, estimates: Signals) -> tuple[list[str], dict[str, str]]:
    """(stems that museval can score, {stem: why not} for the others).

    museval raises for a silent reference, a silent estimate, and a song too short for its filters.
    """
    stems, skipped = [], {}
    for stem, reference in references.items():
        samples, channels = reference.shape
        if samples < TAPS * channels * len(references):
            skipped[stem] = f"{samples} samples are too few for BSSEval's filters"
        elif not np.any(reference.sum(axis=1)):  # as museval tests it: a pure side signal is silent, too
            skipped[stem] = "BSSEval is undefined for a stem that is silent in this song"
        elif not np.any(estimates[stem].sum(axis=1)):
            skipped[stem] = "BSSEval is undefined for a silent estimate"
        else:
            stems.append(stem)
    return stems, skipped


def round_to_16_bits(reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round to 16 bits, as musdb decodes true stems.

    Without this noise floor a stem from a lossy file has no energy in the highest octave, and museval's
    normal equations are singular: its SIR and SAR are then off by 10 dB and more.
    """
    return np.round(reference * 2**15) / 2**15


def museval_frames(
    references: Signals, estimates: Signals, rate: int, *, factored: deque[References] | None = None
) -> tuple[dict[str, Frames], dict[str, str]]:
    """museval's metrics in frames of 1 s: ({stem: {"sdr", "isr", "sir", "sar": (frames,)}}, {stem: why not}).

    Stems are grouped as in museval.eval_mus_track: the four with each other, and vocals against accompaniment,
    which is where the vocals' scores come from if both exist. An estimate counts up to the length of its
    reference. A frame in which a stem of the group is silent is NaN. SAR is at most HIGHEST_SAR: if an estimate,
    such as the mixture, consists of nothing but true stems, its artefacts are rounding errors, 90 to 200 dB below it
    depending on the song and the program.

    Args:
        references: True stems.
        estimates: Estimates of these stems.
        rate: Sample rate in Hz.
        factored: What earlier calls for the same song have prepared; new groups are added.

    Raises:
        UsageError: scipy is not installed.
    """
    known = deque[References]() if factored is None else factored

    def ratios(true: Sequence[Signal], guess: Sequence[Signal], wanted: Sequence[int]) -> Signal:
        stacked = np.stack(true)
        group = next((group for group in known if np.array_equal(group.references, stacked)), None)
        if group is None:
            group = References(stacked, rate)
            known.append(group)
        return group.ratios(np.stack(guess), wanted)

    return _by_group(references, estimates, rate, ratios)


def package_frames(
    references: Signals, estimates: Signals, rate: int
) -> tuple[dict[str, Frames], dict[str, str]]:
    """The same as `museval_frames`, by the museval package.

    Raises:
        UsageError: museval is not installed.
    """
    museval = need("museval", "BSSEval")

    def ratios(true: Sequence[Signal], guess: Sequence[Signal], wanted: Sequence[int]) -> Signal:
        return np.array(museval.evaluate(true, guess, win=rate, hop=rate))[:, wanted]

    return _by_group(references, estimates, rate, ratios)


def _by_group(
    references: Signals,
    estimates: Signals,
    rate: int,
    ratios: Callable[[Sequence[Signal], Sequence[Signal], Sequence[int]], Signal],
) -> tuple[dict[str, Frames], dict[str, str]]:
    """The scores of every group; `ratios` makes (4, wanted, frames) from references, estimates and wanted stems."""
    stems, skipped = usable(references, estimates)
    scores: dict[str, Frames] = {}
    groups = _groups(stems)
    for number, members in enumerate(groups):
        later = {stem for group in groups[number + 1 :] for stem in group}
        wanted = [index for index, stem in enumerate(members) if stem not in later]
        if not wanted:
            continue
        with _one_thread(), np.errstate(all="ignore"):
            found = ratios(
                [references[stem] for stem in members], [estimates[stem] for stem in members], wanted
            )
            found[3] = np.minimum(found[3], HIGHEST_SAR)
        for place, index in enumerate(wanted):
            scores[members[index]] = dict(zip(("sdr", "isr", "sir", "sar"), found[:, place], strict=True))
    return _with_lone_stems(scores, skipped, stems, references, estimates, rate)


def fast_ratios(
    references: Signals, estimates: Signals, rate: int
) -> tuple[dict[str, Frames], dict[str, str]]:
    """Fast metrics: ({stem: {"sdr": (frames,), "sir", "sar": (windows,)}}, {stem: why not}).

    Groups, lengths and errors are as in `museval_frames`.
    """
    fast = need("fast_bss_eval", "--metrics fast")
    stems, skipped = usable(references, estimates)
    scores: dict[str, Frames] = {}
    for members in _groups(stems):
        true = np.stack([references[stem].mean(axis=1) for stem in members])
        guess = np.stack([estimates[stem].mean(axis=1) for stem in members])
        windows = []
        for piece in _windows(true.shape[1], FAST_SECONDS * rate):
            ratios = np.full((2, len(members)), np.nan)  # stays so in a window with a silent stem
            if true[:, piece].any(axis=1).all() and guess[:, piece].any(axis=1).all():
                with _one_thread(), np.errstate(divide="ignore"):
                    # Conjugate gradients: the direct solver of 0.1.4 fails with NumPy 2.
                    _, *ratios = fast.bss_eval_sources(
                        true[:, piece], guess[:, piece], compute_permutation=False, use_cg_iter=FAST_STEPS
                    )
            windows.append(ratios)
        sirs, sars = np.moveaxis(np.array(windows), 0, -1)
        for index, stem in enumerate(members):
            sdr = frame_sdr(references[stem], estimates[stem], rate)
            scores[stem] = {"sdr": sdr, "sir": sirs[index], "sar": sars[index]}
    return _with_lone_stems(scores, skipped, stems, references, estimates, rate)


def _with_lone_stems(
    scores: dict[str, Frames],
    skipped: dict[str, str],
    stems: list[str],
    references: Signals,
    estimates: Signals,
    rate: int,
) -> tuple[dict[str, Frames], dict[str, str]]:
    """The scores and skipped stems, completed by the SDR of stems that have no group."""
    lone = [stem for stem in stems if stem not in scores]
    sdrs = {stem: {"sdr": frame_sdr(references[stem], estimates[stem], rate)} for stem in lone}
    return scores | sdrs, skipped | dict.fromkeys(lone, ALONE)


def frame_sdr(
    reference: NDArray[np.float64], estimate: NDArray[np.float64], rate: int
) -> NDArray[np.float64]:
    """museval's SDR in frames of 1 s, (frames,), NaN where reference or estimate is silent. It needs no filter."""
    ratios = []
    for piece in _windows(len(reference), rate):
        true, guess = reference[piece], estimate[piece]
        defined = np.any(true.sum(axis=1)) and np.any(guess.sum(axis=1))
        with np.errstate(divide="ignore"):
            ratio = 10 * np.log10(np.sum(true**2) / np.sum((guess - true) ** 2)) if defined else np.nan
        ratios.append(ratio)
    return np.array(ratios)


def _groups(stems: list[str]) -> list[list[str]]:
    """Groups of stems that are scored against each other; the last one counts for the vocals."""
    stems_apart = [stem for stem in stems if stem != ACCOMPANIMENT]
    pair = [stem for stem in (VOCALS, ACCOMPANIMENT) if stem in stems]
    return [members for members in (stems_apart, pair) if len(members) > 1]


def _windows(samples: int, length: int) -> list[slice]:
    """Consecutive whole windows, without the rest at the end; a short song is one window."""
    return [slice(start, start + length) for start in range(0, max(samples - length, 0) + 1, length)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """BLAS on one core, for results that do not depend on the number of cores or processes."""
    with need("threadpoolctl", "BSSEval").threadpool_limits(1, "blas"):
        yield
