// Waveform <-> complex spectrogram of stereo sound. Twin of inference/stft_numpy.py, with fft.js.
//
// One complex transform does both channels: left as the real part, right as the imaginary one.
// Axis letters: c channel, n samples, f bins (n_fft / 2 + 1), t frames (n / hop + 1).

import FFT from "fft.js";

export interface Spectrum {
  real: Float32Array[]; // [c], each (t, f)
  imaginary: Float32Array[];
  frames: number;
  bins: number; // f
}

export class Stft {
  readonly frames: number; // t
  readonly bins: number; // f
  #fft: FFT;
  #window: Float32Array;
  #inverse: Float32Array; // the reciprocal of the summed squared windows
  #samples: Float64Array; // of one frame, complex
  #transformed: Float64Array;

  // For segments of `length` samples.
  constructor(
    private size: number,
    private hop: number,
    private length: number,
  ) {
    this.frames = Math.floor(length / hop) + 1;
    this.bins = size / 2 + 1;
    this.#fft = new FFT(size);
    this.#window = Float32Array.from({ length: size }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / size));
    this.#samples = new Float64Array(2 * size);
    this.#transformed = new Float64Array(2 * size);
    const envelope = new Float64Array(length);
    for (let frame = 0; frame < this.frames; frame++) {
      const start = frame * hop - size / 2;
      for (let i = Math.max(0, -start); i < size && start + i < length; i++)
        envelope[start + i]! += this.#window[i]! ** 2;
    }
    this.#inverse = Float32Array.from(envelope, (sum) => (sum > 1e-11 ? 1 / sum : 0));
  }

  // (2, n) samples, with silence around them.
  forward([left, right]: Float32Array[]): Spectrum {
    const { size, bins, frames } = this;
    const spectrum: Spectrum = { real: [], imaginary: [], frames, bins };
    for (let c = 0; c < 2; c++) {
      spectrum.real.push(new Float32Array(frames * bins));
      spectrum.imaginary.push(new Float32Array(frames * bins));
    }
    const [leftReal, rightReal] = spectrum.real;
    const [leftImaginary, rightImaginary] = spectrum.imaginary;
    const samples = this.#samples;
    const found = this.#transformed;
    for (let frame = 0; frame < frames; frame++) {
      const start = frame * this.hop - size / 2;
      for (let i = 0; i < size; i++) {
        const inside = start + i >= 0 && start + i < this.length;
        samples[2 * i] = inside ? left![start + i]! * this.#window[i]! : 0;
        samples[2 * i + 1] = inside ? right![start + i]! * this.#window[i]! : 0;
      }
      this.#fft.transform(found, samples);
      for (let bin = 0, to = frame * bins; bin < bins; bin++, to++) {
        const mirror = (size - bin) % size;
        const real = found[2 * bin]!;
        const imaginary = found[2 * bin + 1]!;
        const mirrorReal = found[2 * mirror]!;
        const mirrorImaginary = found[2 * mirror + 1]!;
        leftReal![to] = (real + mirrorReal) / 2;
        leftImaginary![to] = (imaginary - mirrorImaginary) / 2;
        rightReal![to] = (imaginary + mirrorImaginary) / 2;
        rightImaginary![to] = (mirrorReal - real) / 2;
      }
    }
    return spectrum;
  }

  // Add a frame's samples to (2, n), from the offset `at` in its spectrum. `finish` makes samples of the sums.
  add([left, right]: Float32Array[], frame: number, real: Float32Array[], imaginary: Float32Array[], at: number): void {
    const { size, bins } = this;
    const whole = this.#transformed;
    for (let bin = 0; bin < bins; bin++) {
      const edge = bin === 0 || bin === bins - 1; // which are real
      const leftReal = real[0]![at + bin]!;
      const rightReal = real[1]![at + bin]!;
      const leftImaginary = edge ? 0 : imaginary[0]![at + bin]!;
      const rightImaginary = edge ? 0 : imaginary[1]![at + bin]!;
      const mirror = (size - bin) % size;
      whole[2 * mirror] = leftReal + rightImaginary;
      whole[2 * mirror + 1] = rightReal - leftImaginary;
      whole[2 * bin] = leftReal - rightImaginary;
      whole[2 * bin + 1] = rightReal + leftImaginary;
    }
    const samples = this.#samples;
    this.#fft.inverseTransform(samples, whole);
    const start = frame * this.hop - size / 2;
    const end = Math.min(size, this.length - start);
    for (let i = Math.max(0, -start); i < end; i++) {
      left![start + i]! += samples[2 * i]! * this.#window[i]!;
      right![start + i]! += samples[2 * i + 1]! * this.#window[i]!;
    }
  }

  finish(channels: Float32Array[]): void {
    for (const samples of channels) for (let i = 0; i < samples.length; i++) samples[i]! *= this.#inverse[i]!;
  }
}
