"""Draw the spectrograms of the demo song and of the stems that tfswa-sep separates it into.

    python -m examples.demo.picture

writes `docs/images/spectrograms.png`, the picture at the top of README.md. It needs Pillow.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import tfswa_sep

SONG = Path(__file__).parent / "demo.ogg"
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "spectrograms.png"

WINDOW = 8192  # samples per frame: long enough to tell the bass's harmonics apart
LOWEST, HIGHEST = 45.0, 16_000.0  # Hz, the ends of the logarithmic frequency axis
FLOOR = -66.0  # dB below the loudest, drawn as background
TILT = 3.0  # dB per octave that high frequencies are raised by, since music has less and less of them

SIZE = (1400, 700)  # pixels
MIXTURE = (70, 64, 590, 644)  # left, top, right, bottom
STEMS_LEFT, STEMS_RIGHT, STEM_HEIGHT = 760, 1360, 112
COLORS = {
    "song": (160, 168, 208),
    "vocals": (255, 94, 138),
    "drums": (255, 176, 59),
    "bass": (70, 168, 255),
    "other": (61, 214, 158),
}
CARD, PANEL, TEXT = (17, 20, 33), (10, 12, 22), (165, 173, 198)

Pixels = NDArray[np.float64]


def spectrogram(samples: NDArray[np.floating], rate: int, width: int, height: int) -> Pixels:
    """Levels of (c, n) samples in dB, tilted by TILT, as (height, width); high frequencies on top."""
    mono = np.pad(samples.mean(axis=0), WINDOW // 2)
    starts = np.linspace(0, mono.size - WINDOW, width).astype(int)
    frames = np.stack([mono[start : start + WINDOW] for start in starts]) * np.hanning(WINDOW)
    power = np.abs(np.fft.rfft(frames)) ** 2 / (WINDOW / 4) ** 2
    edges = np.geomspace(HIGHEST, LOWEST, height + 1) * WINDOW / rate
    rows = []
    for high, low in itertools.pairwise(edges):
        first, last = int(np.ceil(low)), int(np.floor(high))
        if last > first:  # several bins per row: the loudest
            rows.append(power[:, first : last + 1].max(axis=1))
        else:  # several rows per bin: in between
            middle = (low + high) / 2
            left = int(middle)
            share = middle - left
            rows.append((1 - share) * power[:, left] + share * power[:, left + 1])
    levels: Pixels = 10 * np.log10(np.stack(rows) + 1e-12) + TILT * np.log2(edges[1:, None] / edges[-1])
    return levels


def panel(levels: Pixels, loudest: float, color: tuple[int, int, int]) -> Image.Image:
    """The levels from the background through `color` to white."""
    shade = np.clip(1 - (levels - loudest) / FLOOR, 0, 1)[..., None] ** 1.5
    stops = np.array([0.0, 0.62, 1.0])
    points = np.array([PANEL, color, (255, 255, 255)], dtype=float)
    mixed = np.concatenate([np.interp(shade, stops, points[:, channel]) for channel in range(3)], axis=2)
    return Image.fromarray(mixed.round().astype(np.uint8))


def draw(song: NDArray[np.floating], stems: tfswa_sep.Stems, rate: int) -> Image.Image:
    """The whole picture: the song on the left, its stems on the right."""
    scale = 2  # lines and corners are drawn at twice the size and scaled down, which smooths them
    image = Image.new("RGBA", (SIZE[0] * scale, SIZE[1] * scale), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle((0, 0, image.width - 1, image.height - 1), 28 * scale, fill=CARD)
    tops = np.linspace(MIXTURE[1], MIXTURE[3] - STEM_HEIGHT, len(stems)).round().astype(int)
    start = (MIXTURE[1] + MIXTURE[3]) / 2
    for name, top in zip(stems, tops, strict=True):
        t = np.linspace(0, 1, 80)
        x = MIXTURE[2] + 8 + (STEMS_LEFT - 16 - MIXTURE[2]) * t
        y = start + (top + STEM_HEIGHT / 2 - start) * t**2 * (3 - 2 * t)
        pen.line([(a * scale, b * scale) for a, b in zip(x, y, strict=True)], fill=COLORS[name], width=6)
    image = image.resize(SIZE, Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(image)
    small, large = (ImageFont.load_default(size) for size in (17, 21))

    def place(samples: NDArray[np.floating], name: str, box: tuple[int, int, int, int]) -> None:
        levels = spectrogram(samples, rate, box[2] - box[0], box[3] - box[1])
        mask = Image.new("L", (box[2] - box[0], box[3] - box[1]), 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 10, fill=255)
        image.paste(panel(levels, float(np.percentile(levels, 99.9)), COLORS[name]), box[:2], mask)

    place(song, "song", MIXTURE)
    pen.text((MIXTURE[0], MIXTURE[1] - 14), "song", COLORS["song"], large, anchor="ls")
    for hertz, label in ((100, "100 Hz"), (1000, "1 kHz"), (10_000, "10 kHz")):
        height = np.log(HIGHEST / hertz) / np.log(HIGHEST / LOWEST)
        y = round(MIXTURE[1] + (MIXTURE[3] - MIXTURE[1]) * height)
        pen.text((MIXTURE[0] - 8, y), label, TEXT, small, anchor="rm")
    seconds = song.shape[-1] / rate
    for left, right in ((MIXTURE[0], MIXTURE[2]), (STEMS_LEFT, STEMS_RIGHT)):
        for second in range(0, round(seconds) + 1, 5):
            place_x = round(left + (right - left) * second / seconds)
            pen.text((place_x, MIXTURE[3] + 12), f"{second} s", TEXT, small, anchor="ma")
    for (name, samples), top in zip(stems.items(), tops, strict=True):
        place(samples, name, (STEMS_LEFT, int(top), STEMS_RIGHT, int(top) + STEM_HEIGHT))
        pen.text((STEMS_LEFT, int(top) - 9), name, COLORS[name], large, anchor="ls")
    return image


def main() -> None:
    """Separate the demo song and draw it."""
    parser = argparse.ArgumentParser(description="Draw the demo song and its separated stems.")
    parser.add_argument("--out", type=Path, default=PICTURE, help="PNG file to write")
    options = parser.parse_args()
    samples, rate = soundfile.read(SONG, dtype="float32", always_2d=True)
    stems = tfswa_sep.Separator(precision="fp32").separate(samples.T, rate)
    image = draw(samples.T, stems, rate)
    image.quantize(200, dither=Image.Dither.NONE).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
