"""Studio effects for rendered stems, in numpy: equalizers, rooms, drive, compression."""

import numpy as np
from numpy.typing import NDArray

from tfswa_sep.constants import SAMPLE_RATE
from training.corpus.recorded.sources import Audio, frame_levels

EQ_TAPS = 1023  # linear phase; the delay of half of them is compensated


def tilt(frequencies: NDArray[np.float64], db: float) -> NDArray[np.float64]:
    """Gain from +db at 100 Hz to -db at 10 kHz, linear over log frequency."""
    return np.asarray(10 ** (-db * np.clip(np.log10(np.maximum(frequencies, 1.0) / 1000.0), -1.3, 1.3) / 20))


def low_pass(frequencies: NDArray[np.float64], corner: float, order: int = 4) -> NDArray[np.float64]:
    """Magnitude of a Butterworth low-pass."""
    return np.asarray(1 / np.sqrt(1 + (frequencies / corner) ** (2 * order)))


def high_pass(frequencies: NDArray[np.float64], corner: float, order: int = 2) -> NDArray[np.float64]:
    """Magnitude of a Butterworth high-pass."""
    return np.asarray(1 / np.sqrt(1 + (corner / np.maximum(frequencies, 1e-3)) ** (2 * order)))


def bell(
    frequencies: NDArray[np.float64], centre: float, db: float, octaves: float = 1.0
) -> NDArray[np.float64]:
    """Gain of db at a centre frequency, falling off as a Gaussian over octaves."""
    distance = np.log2(np.maximum(frequencies, 1.0) / centre) / octaves
    return np.asarray(10 ** (db * np.exp(-(distance**2)) / 20))


def eq_frequencies() -> NDArray[np.float64]:
    """Frequencies in Hz at which the gain of an equalizer is defined."""
    return np.asarray(np.fft.rfftfreq(EQ_TAPS + 1, 1 / SAMPLE_RATE), np.float64)


def impulse_response(gain: NDArray[np.float64]) -> NDArray[np.float32]:
    """Linear-phase impulse response (EQ_TAPS,) of a gain at eq_frequencies()."""
    response = np.fft.fftshift(np.fft.irfft(gain))[1:]
    return np.asarray(response * np.hanning(EQ_TAPS), np.float32)


def room_response(rng: np.random.Generator, *, seconds: float, wet_db: float) -> NDArray[np.float32]:
    """Impulse response of a random room, (n, 2): direct sound, early reflections, and a tail of RT60 `seconds`."""
    n = int(seconds * SAMPLE_RATE)
    time = np.arange(n) / SAMPLE_RATE
    tail = rng.standard_normal((n, 2)) * 10 ** (-3 * time / seconds)[:, None]
    tail[: int(rng.uniform(0.003, 0.02) * SAMPLE_RATE)] = 0
    for _ in range(6):
        tail[rng.integers(200, min(n, 2500)), rng.integers(0, 2)] += rng.uniform(-12, 12)
    spectrum = np.fft.rfft(tail, axis=0)
    frequencies = np.asarray(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), np.float64)
    tail = np.fft.irfft(spectrum * low_pass(frequencies, rng.uniform(3000, 10000), 1)[:, None], n, axis=0)
    tail *= 10 ** (wet_db / 20) / np.sqrt((tail**2).sum(axis=0).mean())
    tail[0] += 1
    return np.asarray(tail, np.float32)


def convolve(audio: Audio, response: NDArray[np.float32], *, delay: int = 0) -> Audio:
    """Convolve by overlap-add and cut to the input's length after dropping `delay` samples.

    audio (n, c); response (m,) or (m, 2), which makes a mono signal stereo.
    """
    kernel = response[:, None] if response.ndim == 1 else response
    size = 1 << max(16, (2 * len(kernel)).bit_length())
    step = size - len(kernel) + 1
    spectrum = np.fft.rfft(kernel, size, axis=0)
    channels = max(audio.shape[1], kernel.shape[1])
    out = np.zeros((len(audio) + size + delay, channels), np.float32)
    for start in range(0, len(audio), step):
        block = np.fft.rfft(audio[start : start + step], size, axis=0)
        out[start : start + size] += np.fft.irfft(block * spectrum, size, axis=0)
    return out[delay : delay + len(audio)]


def equalize(audio: Audio, gain: NDArray[np.float64]) -> Audio:
    """Filter with a zero-phase gain at eq_frequencies()."""
    return convolve(audio, impulse_response(gain), delay=EQ_TAPS // 2)


def drive(audio: Audio, amount: float) -> Audio:
    """tanh saturation with a gain of `amount` relative to the signal's 99.5th percentile."""
    scale = float(np.percentile(np.abs(audio[::7]), 99.5)) if len(audio) else 0.0
    return np.asarray(np.tanh(audio * np.float32(amount / max(scale, 1e-6))), np.float32)


def compress(audio: Audio, *, threshold_db: float, ratio: float, release: float = 0.15) -> Audio:
    """Feed-forward compression of 5 ms levels, with a threshold relative to the loudest."""
    frame = SAMPLE_RATE // 200
    levels = frame_levels(audio, frame)
    reduction = np.maximum(levels - levels.max(initial=-120) - threshold_db, 0) * (1 - 1 / ratio)
    decay = np.exp(-1 / (200 * release))
    for i in range(1, len(reduction)):
        reduction[i] = max(reduction[i], reduction[i - 1] * decay)
    centres = (np.arange(len(reduction)) + 0.5) * frame
    gain = 10 ** (-np.interp(np.arange(len(audio)), centres, reduction) / 20)
    return np.asarray(audio * gain[:, None], np.float32)


def cabinet_response(rng: np.random.Generator, *, corner: float = 5000.0) -> NDArray[np.float64]:
    """Gain of a guitar cabinet at eq_frequencies(): no deep bass, a presence peak, little above 5 kHz."""
    frequencies = eq_frequencies()
    gain = low_pass(frequencies, corner * rng.uniform(0.8, 1.25), 4)
    gain *= high_pass(frequencies, rng.uniform(60, 120))
    gain *= bell(frequencies, rng.uniform(100, 180), rng.uniform(0, 5), 0.7)
    gain *= bell(frequencies, rng.uniform(400, 900), rng.uniform(-7, 1), 0.8)
    return gain * bell(frequencies, rng.uniform(2000, 3500), rng.uniform(0, 7), 0.6)


def simulate_amp(audio: Audio, rng: np.random.Generator, *, amount: float) -> Audio:
    """A guitar amplifier: band-pass, drive, cabinet."""
    frequencies = eq_frequencies()
    band = high_pass(frequencies, rng.uniform(80, 250), 1) * low_pass(frequencies, 7000, 2)
    return equalize(drive(equalize(audio, band), amount), cabinet_response(rng))


def colour(audio: Audio, rng: np.random.Generator, *, wet: float = 0.5) -> Audio:
    """Random tilt and bell equalizers and, with probability `wet`, a short room, which makes the result stereo."""
    frequencies = eq_frequencies()
    gain = tilt(frequencies, rng.uniform(-3, 3))
    gain *= bell(frequencies, 10 ** rng.uniform(2, 3.8), rng.uniform(-4, 4))
    audio = equalize(audio, gain)
    if rng.random() < wet:
        seconds = rng.uniform(0.2, 1.0)
        audio = convolve(audio, room_response(rng, seconds=seconds, wet_db=rng.uniform(-22, -8)))
    return audio
