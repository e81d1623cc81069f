"""Small studio effects for rendered stems, numpy only: equalizers, rooms, drive, compression."""

import numpy as np
from numpy.typing import NDArray

from training.corpus.recorded.sources import SAMPLE_RATE, Audio, frame_levels

EQ_TAPS = 1023  # linear phase; the delay of half its length is taken off again


def tilt(hertz: NDArray[np.float64], db: float) -> NDArray[np.float64]:
    """Gain that falls (or rises) from +db at 100 Hz to -db at 10 kHz, straight over log frequency."""
    return np.asarray(10 ** (-db * np.clip(np.log10(np.maximum(hertz, 1.0) / 1000.0), -1.3, 1.3) / 20))


def low_pass(hertz: NDArray[np.float64], corner: float, order: int = 4) -> NDArray[np.float64]:
    """Magnitude of a Butterworth low-pass."""
    return np.asarray(1 / np.sqrt(1 + (hertz / corner) ** (2 * order)))


def high_pass(hertz: NDArray[np.float64], corner: float, order: int = 2) -> NDArray[np.float64]:
    """Magnitude of a Butterworth high-pass."""
    return np.asarray(1 / np.sqrt(1 + (corner / np.maximum(hertz, 1e-3)) ** (2 * order)))


def bell(hertz: NDArray[np.float64], centre: float, db: float, octaves: float = 1.0) -> NDArray[np.float64]:
    """Gain of db around a centre, falling off as a Gaussian over octaves."""
    distance = np.log2(np.maximum(hertz, 1.0) / centre) / octaves
    return np.asarray(10 ** (db * np.exp(-(distance**2)) / 20))


def eq_grid() -> NDArray[np.float64]:
    """Frequencies in Hz at which an equalizer's gain is given."""
    return np.asarray(np.fft.rfftfreq(EQ_TAPS + 1, 1 / SAMPLE_RATE), np.float64)


def impulse(gain: NDArray[np.float64]) -> NDArray[np.float32]:
    """Linear-phase impulse response, (EQ_TAPS,), of a gain over eq_grid()."""
    response = np.fft.fftshift(np.fft.irfft(gain))[1:]
    return np.asarray(response * np.hanning(EQ_TAPS), np.float32)


def room(generator: np.random.Generator, *, seconds: float, wet_db: float) -> NDArray[np.float32]:
    """A made-up room, (n, 2): direct sound, early echoes and noise that decays by 60 dB in `seconds`."""
    n = int(seconds * SAMPLE_RATE)
    time = np.arange(n) / SAMPLE_RATE
    tail = generator.standard_normal((n, 2)) * 10 ** (-3 * time / seconds)[:, None]
    tail[: int(generator.uniform(0.003, 0.02) * SAMPLE_RATE)] = 0
    for _ in range(6):
        tail[generator.integers(200, min(n, 2500)), generator.integers(0, 2)] += generator.uniform(-12, 12)
    spectrum = np.fft.rfft(tail, axis=0)
    hertz = np.asarray(np.fft.rfftfreq(n, 1 / SAMPLE_RATE), np.float64)
    tail = np.fft.irfft(spectrum * low_pass(hertz, generator.uniform(3000, 10000), 1)[:, None], n, axis=0)
    tail *= 10 ** (wet_db / 20) / np.sqrt((tail**2).sum(axis=0).mean())
    tail[0] += 1
    return np.asarray(tail, np.float32)


def convolve(audio: Audio, response: NDArray[np.float32], *, delay: int = 0) -> Audio:
    """Overlap-add convolution, cut to the input's length after dropping `delay` samples.

    audio (n, c); response (m,) or (m, 2); a mono signal becomes stereo with a stereo response.
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
    """Filter with a zero-phase gain over eq_grid()."""
    return convolve(audio, impulse(gain), delay=EQ_TAPS // 2)


def drive(audio: Audio, amount: float) -> Audio:
    """tanh saturation; `amount` is the gain into it relative to the signal's 99.5th percentile."""
    scale = float(np.percentile(np.abs(audio[::7]), 99.5)) if len(audio) else 0.0
    return np.asarray(np.tanh(audio * np.float32(amount / max(scale, 1e-6))), np.float32)


def compress(audio: Audio, *, threshold_db: float, ratio: float, release: float = 0.15) -> Audio:
    """Feed-forward compression on 5 ms levels; threshold relative to the loudest 5 ms."""
    frame = SAMPLE_RATE // 200
    levels = frame_levels(audio, frame)
    over = np.maximum(levels - levels.max(initial=-120) - threshold_db, 0) * (1 - 1 / ratio)
    keep = np.exp(-1 / (200 * release))
    held = np.empty_like(over)
    last = 0.0
    for i, value in enumerate(over):
        last = max(value, last * keep)
        held[i] = last
    gain = 10 ** (-np.interp(np.arange(len(audio)), (np.arange(len(held)) + 0.5) * frame, held) / 20)
    return np.asarray(audio * gain[:, None], np.float32)


def cabinet(generator: np.random.Generator, *, corner: float = 5000.0) -> NDArray[np.float64]:
    """Gain over eq_grid() of a guitar loudspeaker: no deep bass, a presence hump, little above ~5 kHz."""
    hertz = eq_grid()
    gain = low_pass(hertz, corner * generator.uniform(0.8, 1.25), 4) * high_pass(
        hertz, generator.uniform(60, 120)
    )
    gain *= bell(hertz, generator.uniform(100, 180), generator.uniform(0, 5), 0.7)
    gain *= bell(hertz, generator.uniform(400, 900), generator.uniform(-7, 1), 0.8)
    return gain * bell(hertz, generator.uniform(2000, 3500), generator.uniform(0, 7), 0.6)


def amp(audio: Audio, generator: np.random.Generator, *, amount: float) -> Audio:
    """A guitar amplifier: band before the drive, tanh, loudspeaker after it."""
    hertz = eq_grid()
    before = high_pass(hertz, generator.uniform(80, 250), 1) * low_pass(hertz, 7000, 2)
    return equalize(drive(equalize(audio, before), amount), cabinet(generator))


def colour(audio: Audio, generator: np.random.Generator, *, wet: float = 0.5) -> Audio:
    """Random EQ tilt and bell, and in a share `wet` of the calls a short room (the result is then stereo)."""
    hertz = eq_grid()
    gain = tilt(hertz, generator.uniform(-3, 3))
    gain *= bell(hertz, 10 ** generator.uniform(2, 3.8), generator.uniform(-4, 4))
    audio = equalize(audio, gain)
    if generator.random() < wet:
        seconds = generator.uniform(0.2, 1.0)
        audio = convolve(audio, room(generator, seconds=seconds, wet_db=generator.uniform(-22, -8)))
    return audio
