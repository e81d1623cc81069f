"""Perceptual metrics against what their reference implementations say of the same signals."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tfswa_sep.evaluation.methods import FolderMethod
from tfswa_sep.evaluation.multitrack import find_songs
from tfswa_sep.evaluation.perceptual import bleedless_fullness, log_wmse, si_sar
from tfswa_sep.evaluation.run import evaluate

RATE = 44_100
Signal = NDArray[np.float64]

# Of `signals()`, in float64, by torch-log-wmse 1.1.0,
# `LogWMSE()(mixture[None], estimate[None, :, None], stem[None, :, None])`, and by `bleed_full(stem, estimate)` of
# Music-Source-Separation-Training (2127d5e, librosa 0.11), which in its own float32 is up to 0.002 off.
REFERENCE = (
    # logWMSE, bleedless, fullness
    (18.360289, 56.158180, 50.059133),
    (18.353659, 45.444291, 49.674468),
    (18.342775, 3.722401, 28.689659),
)
SILENT_LOG_WMSE = 3.087286  # with zeros for the first stem


def signals() -> tuple[list[Signal], Signal, list[Signal]]:
    """Stems, mixture and estimates of 2 s, (2, n); stems of different colour and level, the last one rhythmic."""
    rng = np.random.default_rng(0)
    stems = [rng.normal(0, level, (2, 2 * RATE)) for level in (0.1, 0.05, 0.02)]
    stems[1][:, 1:] += 0.9 * stems[1][:, :-1]
    stems[2] *= np.sin(2 * np.pi * 3 * np.arange(2 * RATE) / RATE) > 0
    mixture = np.sum(stems, axis=0)
    return stems, mixture, [0.8 * stem + 0.1 * mixture + rng.normal(0, 0.002, stem.shape) for stem in stems]


def test_log_wmse_bleedless_and_fullness_are_those_of_their_authors() -> None:
    stems, mixture, estimates = signals()
    for stem, estimate, expected in zip(stems, estimates, REFERENCE, strict=True):
        found = (log_wmse(mixture, stem, estimate, RATE), *bleedless_fullness(stem, estimate, RATE))
        assert found == pytest.approx(expected, abs=1e-3)
    assert log_wmse(mixture, 0 * mixture, estimates[0], RATE) == pytest.approx(SILENT_LOG_WMSE, abs=1e-3)


def test_si_sar_is_museval_s_decomposition_with_filters_of_one_tap() -> None:
    from museval import metrics

    stems, _, estimates = signals()
    rows = np.stack([stem.ravel() for stem in stems])[..., None]
    gram, spectra = metrics._compute_reference_correlations(rows, 1)
    for index, (stem, estimate) in enumerate(zip(stems, estimates, strict=True)):
        guess = estimate.ravel()[:, None]
        gains = metrics._compute_projection_filters(gram, spectra, guess)
        gain = metrics._compute_projection_filters(gram[index, index], spectra[index], guess)
        true, spatial, _, artefacts = metrics._bss_decomp_mtifilt(rows, guess, index, gains, gain)
        expected = 10 * np.log10(np.sum((true + spatial) ** 2) / np.sum(artefacts**2))
        assert si_sar(stems, stem, estimate) == pytest.approx(expected, abs=1e-3)


def test_a_perfect_and_a_silent_estimate() -> None:
    stems, mixture, _ = signals()
    assert log_wmse(mixture, stems[0], stems[0], RATE) == pytest.approx(-4 * np.log(1e-8))
    assert bleedless_fullness(stems[0], stems[0], RATE) == (100, 100)
    perfect = si_sar(stems, stems[0], stems[0])
    assert perfect is not None and 90 < perfect < 130  # finite
    silence = np.zeros_like(mixture)
    assert log_wmse(mixture, mixture, silence, RATE) == pytest.approx(0, abs=1e-6)
    assert si_sar(stems, stems[0], silence) is None
    assert si_sar(stems, silence, stems[0]) is None
    assert np.isfinite(log_wmse(silence, silence, silence, RATE))


def test_they_are_in_the_record_also_of_a_silent_stem(tmp_path: Path) -> None:
    stems, _, estimates = signals()
    for folder, sides in (("data", stems), ("found", estimates)):
        (tmp_path / folder / "song").mkdir(parents=True)
        for name, samples in zip(("vocals", "drums", "bass"), sides, strict=True):
            soundfile.write(tmp_path / folder / "song" / f"{name}.wav", samples.T, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "found" / "song" / "other.wav", estimates[0].T, RATE, subtype="FLOAT")
    methods = [FolderMethod(tmp_path / "found", "found")]
    found = evaluate(find_songs(tmp_path / "data"), methods, data="data", metrics=("perceptual",))
    song = found.methods[0].songs[0]
    for name, (wmse, bleedless, fullness) in zip(("vocals", "drums", "bass"), REFERENCE, strict=True):
        assert song.stems[name]["log_wmse"] == pytest.approx(wmse, abs=1e-3)
        assert song.stems[name]["bleedless"] == pytest.approx(bleedless, abs=1e-2)  # files are in float32
        assert song.stems[name]["fullness"] == pytest.approx(fullness, abs=1e-2)
        assert song.stems[name]["si_sar"] is not None
    assert song.skipped["other"].endswith(f"logWMSE {SILENT_LOG_WMSE:.1f}")
    assert io.StringIO(found.to_csv()).readline().rstrip().endswith("log_wmse,si_sar,bleedless,fullness")
