// Apply the network's masks and filters to the mixture. Twin of inference/mask_apply.py, for stereo and masks "signed".
//
// Axis letters: s stem, c channel, f bins, t frames, n samples, p bins per token.

import { rotations } from "./features";
import type { Band, Metadata } from "./metadata";
import type { Spectrum, Stft } from "./stft";

const SHARE_FLOOR = 1e-3; // added to a mask's magnitude when the masks' remainder is shared out
const TILE_FRAMES = 32; // whose stems fit into the core's cache

// The stems' spectra in the frames from `first` to `last`, TILE_FRAMES at most.
interface Tile {
  first: number;
  last: number;
  stems: { real: Float32Array[]; imaginary: Float32Array[] }[]; // [c], each (t, f); all but the last: it is what is left
}

// The network's output, (s * parts * p, tokens, t) per band, to the stems' waveforms [s][c], each (n).
export function applyMasks(
  masks: Float32Array[],
  spectrum: Spectrum,
  mixture: Float32Array[],
  metadata: Metadata,
  stft: Stft,
): Float32Array[][] {
  const { frames, bins } = spectrum;
  const length = mixture[0]!.length;
  const channels = (size: number) => [new Float32Array(size), new Float32Array(size)];
  const made = metadata.stems.slice(1);
  const waves = made.map(() => channels(length));
  const spectra = made.map(() => ({ real: channels(TILE_FRAMES * bins), imaginary: channels(TILE_FRAMES * bins) }));
  const turns = metadata.config.bands.map((band) =>
    Array.from({ length: band.taps }, (_, tap) =>
      rotations(band, Math.floor(band.taps / 2) - tap, metadata.n_fft, metadata.hop),
    ),
  );
  for (let first = 0; first < frames; first += TILE_FRAMES) {
    const last = Math.min(first + TILE_FRAMES, frames);
    const tile = { first, last, stems: spectra };
    for (const [i, band] of metadata.config.bands.entries()) {
      multiplyMasks(masks[i]!, band, spectrum, tile);
      if (band.taps) addFilters(masks[i]!, band, spectrum, tile, turns[i]!);
    }
    for (const [stem, { real, imaginary }] of spectra.entries())
      for (let frame = first; frame < last; frame++)
        stft.add(waves[stem]!, frame, real, imaginary, (frame - first) * bins);
  }
  for (const stem of waves) stft.finish(stem);
  const rest = mixture.map((samples, c) => {
    const left = samples.slice();
    for (const stem of waves) for (let i = 0; i < length; i++) left[i]! -= stem[c]![i]!;
    return left;
  });
  return [...waves, rest];
}

// The sizes of a band's output: stems, tokens, and values per stem.
function sizes({ start, stop, stride, taps }: Band, frames: number, tile: Tile) {
  const tokens = (stop - start) / stride;
  return { stems: tile.stems.length + 1, tokens, perStem: (2 * stride + 4 * stride * taps) * tokens * frames };
}

// Masks are between -1 and 1. What they lack to sum to one over the stems is shared out by magnitude.
function multiplyMasks(values: Float32Array, band: Band, spectrum: Spectrum, tile: Tile): void {
  const { frames, bins } = spectrum;
  const { first, last } = tile;
  const { stride } = band;
  const { stems, tokens, perStem } = sizes(band, frames, tile);
  const gains = new Float64Array(stems);
  for (let c = 0; c < 2; c++) {
    const real = spectrum.real[c]!;
    const imaginary = spectrum.imaginary[c]!;
    const madeReal = tile.stems.map((stem) => stem.real[c]!);
    const madeImaginary = tile.stems.map((stem) => stem.imaginary[c]!);
    for (let bin = band.start; bin < band.stop; bin++) {
      const token = Math.floor((bin - band.start) / stride);
      const row = ((c * stride + ((bin - band.start) % stride)) * tokens + token) * frames;
      for (let frame = first; frame < last; frame++) {
        let sum = 0;
        let magnitude = 0;
        for (let s = 0; s < stems; s++) {
          const gain = 1 - 2 / (Math.exp(2 * values[s * perStem + row + frame]!) + 1); // tanh, in half the time
          gains[s] = gain;
          sum += gain;
          magnitude += Math.abs(gain) + SHARE_FLOOR;
        }
        const scale = (1 - sum) / magnitude;
        const from = frame * bins + bin;
        const to = (frame - first) * bins + bin;
        for (let s = 0; s < stems - 1; s++) {
          const mask = gains[s]! + (Math.abs(gains[s]!) + SHARE_FLOOR) * scale;
          madeReal[s]![to] = mask * real[from]!;
          madeImaginary[s]![to] = mask * imaginary[from]!;
          if (bin === bins - 2) {
            // The Nyquist bin shares its neighbour's mask.
            madeReal[s]![to + 1] = mask * real[from + 1]!;
            madeImaginary[s]![to + 1] = mask * imaginary[from + 1]!;
          }
        }
      }
    }
  }
}

// Each stem's complex filter over neighbouring frames, less the mean of all stems'. Phases are rotated back by the
// advance of a tone at its bin's centre from frame to frame.
function addFilters(values: Float32Array, band: Band, spectrum: Spectrum, tile: Tile, turns: Float32Array[][]): void {
  const { frames, bins } = spectrum;
  const { first, last } = tile;
  const { stride, taps } = band;
  const { stems, tokens, perStem } = sizes(band, frames, tile);
  const clip = (value: number) => Math.max(-1, Math.min(1, value));
  for (let c = 0; c < 2; c++) {
    const real = spectrum.real[c]!;
    const imaginary = spectrum.imaginary[c]!;
    for (let tap = 0; tap < taps; tap++) {
      const shift = tap - Math.floor(taps / 2);
      const [cosines, sines] = turns[tap] as [Float32Array, Float32Array];
      for (let bin = band.start; bin < band.stop; bin++) {
        const place = bin - band.start;
        const token = Math.floor(place / stride);
        const part = (i: number) =>
          ((2 * stride + ((c * taps + tap) * 2 + i) * stride + (place % stride)) * tokens + token) * frames;
        const [realRow, imaginaryRow] = [part(0), part(1)];
        const cosine = cosines[place]!;
        const sine = sines[place]!;
        for (let frame = Math.max(first, -shift); frame < Math.min(last, frames - shift); frame++) {
          const from = (frame + shift) * bins + bin;
          const nearReal = real[from]! * cosine - imaginary[from]! * sine;
          const nearImaginary = real[from]! * sine + imaginary[from]! * cosine;
          let meanReal = 0;
          let meanImaginary = 0;
          for (let s = 0; s < stems; s++) {
            meanReal += clip(values[s * perStem + realRow + frame]!) / stems;
            meanImaginary += clip(values[s * perStem + imaginaryRow + frame]!) / stems;
          }
          const to = (frame - first) * bins + bin;
          for (let s = 0; s < stems - 1; s++) {
            const tapReal = clip(values[s * perStem + realRow + frame]!) - meanReal;
            const tapImaginary = clip(values[s * perStem + imaginaryRow + frame]!) - meanImaginary;
            tile.stems[s]!.real[c]![to]! += tapReal * nearReal - tapImaginary * nearImaginary;
            tile.stems[s]!.imaginary[c]![to]! += tapReal * nearImaginary + tapImaginary * nearReal;
          }
        }
      }
    }
  }
}
