// The network's input features. Twin of inference/features.py, for stereo and the features "advance".

import type { Band, Metadata } from "./metadata";
import type { Spectrum } from "./stft";

const COMPRESSION = 0.3; // exponent of the magnitude features
const POWER_FLOOR = 1e-6; // added to squared magnitudes
const MAGNITUDES = 4; // of left, right, mid and side

// (features, bins of the band, t) per band.
export function bandFeatures(spectrum: Spectrum, { config, n_fft, hop }: Metadata): Float32Array[] {
  return config.bands.map((band) => {
    const count = featureCount(band);
    const size = (band.stop - band.start) * spectrum.frames; // of one feature
    const target = new Float32Array(count * size);
    fillMagnitudes(spectrum, band, target.subarray((count - MAGNITUDES) * size));
    if (band.taps > 0) fillPhaseAdvance(spectrum, band, target, rotations(band, 1, n_fft, hop));
    return target;
  });
}

export function featureCount(band: Band): number {
  return band.taps > 0 ? 4 + MAGNITUDES : MAGNITUDES;
}

function fillMagnitudes({ real, imaginary, frames, bins }: Spectrum, band: Band, target: Float32Array): void {
  const size = (band.stop - band.start) * frames; // of one feature
  for (let bin = band.start; bin < band.stop; bin++) {
    for (let frame = 0; frame < frames; frame++) {
      const from = frame * bins + bin;
      const to = (bin - band.start) * frames + frame;
      const leftReal = real[0]![from]!;
      const leftImaginary = imaginary[0]![from]!;
      const rightReal = real[1]![from]!;
      const rightImaginary = imaginary[1]![from]!;
      target[to] = compress(leftReal, leftImaginary);
      target[size + to] = compress(rightReal, rightImaginary);
      target[2 * size + to] = compress((leftReal + rightReal) / 2, (leftImaginary + rightImaginary) / 2);
      target[3 * size + to] = compress((leftReal - rightReal) / 2, (leftImaginary - rightImaginary) / 2);
    }
  }
}

function compress(real: number, imaginary: number): number {
  return Math.exp((COMPRESSION / 2) * Math.log(real * real + imaginary * imaginary + POWER_FLOOR));
}

// The first features of a band with filters: how far each phase has moved since the previous frame, left and right.
function fillPhaseAdvance(spectrum: Spectrum, band: Band, target: Float32Array, rotation: Float32Array[]): void {
  const { frames, bins } = spectrum;
  const size = (band.stop - band.start) * frames;
  for (let c = 0; c < 2; c++) {
    const real = spectrum.real[c]!;
    const imaginary = spectrum.imaginary[c]!;
    const magnitude = (at: number) => Math.sqrt(real[at]! ** 2 + imaginary[at]! ** 2 + POWER_FLOOR);
    for (let bin = band.start; bin < band.stop; bin++) {
      const [cosine, sine] = rotation.map((part) => part[bin - band.start]!) as [number, number];
      for (let frame = 1; frame < frames; frame++) {
        const at = frame * bins + bin;
        const to = (bin - band.start) * frames + frame;
        const before = at - bins;
        const oldReal = real[before]! * cosine - imaginary[before]! * sine;
        const oldImaginary = real[before]! * sine + imaginary[before]! * cosine;
        const scale = target[(4 + c) * size + to]! / magnitude(at) / magnitude(before);
        target[c * size + to] = (real[at]! * oldReal + imaginary[at]! * oldImaginary) * scale;
        target[(2 + c) * size + to] = (imaginary[at]! * oldReal - real[at]! * oldImaginary) * scale;
      }
    }
  }
}

// The phase that a tone at each bin's centre advances in `steps` frames: cosines and sines.
export function rotations(band: Band, steps: number, size: number, hop: number): Float32Array[] {
  const angles = Array.from({ length: band.stop - band.start }, (_, i) => {
    const turned = ((band.start + i) * steps * hop) % size;
    return (2 * Math.PI * turned) / size;
  });
  return [Float32Array.from(angles, Math.cos), Float32Array.from(angles, Math.sin)];
}
