// Separates songs, in a worker of its own: while the network runs, the worker answers nothing.

import * as Comlink from "comlink";
import type { InferenceSession, Tensor } from "onnxruntime-web";
import { openSong } from "./decode";
import { bandFeatures, featureCount } from "./inference/features";
import { applyMasks } from "./inference/mask_apply";
import { readMetadata, type Metadata } from "./inference/metadata";
import { overlapAdd, planSegments } from "./inference/overlap_add";
import { resample } from "./inference/resample";
import { Stft } from "./inference/stft";

export interface Request {
  file: Blob;
  model: string; // name of a file in models/
  provider: "wasm" | "webgpu";
  threads: number;
  stems: string[]; // [] for all of the model's
}

export interface Opened {
  stems: string[];
  sample_rate: number; // Hz
  channels: number;
  seconds: number; // may be an estimate
}

const ACCOMPANIMENT = "accompaniment"; // everything but the vocals

class Network {
  private constructor(
    readonly metadata: Metadata,
    readonly stft: Stft,
    private session: InferenceSession,
    private makeTensor: (values: Float32Array, shape: number[]) => Tensor,
  ) {}

  static async load({ model, provider, threads }: Pick<Request, "model" | "provider" | "threads">): Promise<Network> {
    const answer = await fetch(new URL(`models/${model}`, import.meta.url));
    if (!answer.ok) throw new Error(`the model is missing: ${answer.status}`);
    const file = new Uint8Array(await answer.arrayBuffer());
    const metadata = readMetadata(file);
    const ort = provider === "wasm" ? await import("onnxruntime-web/wasm") : await import("onnxruntime-web/webgpu");
    ort.env.wasm.wasmPaths = new URL("ort/", import.meta.url).href;
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    const session = await ort.InferenceSession.create(file, { executionProviders: [provider], enableMemPattern: false });
    const stft = new Stft(metadata.n_fft, metadata.hop, metadata.segment_samples);
    return new Network(metadata, stft, session, (values, shape) => new ort.Tensor("float32", values, shape));
  }

  // A segment [c] to stems [s][c].
  async separate(segment: Float32Array[]): Promise<Float32Array[][]> {
    const { metadata, stft } = this;
    if (!segment.some((samples) => samples.some((value) => value !== 0)))
      return metadata.stems.map(() => segment.map(({ length }) => new Float32Array(length)));
    const spectrum = stft.forward(segment);
    const inputs: Record<string, Tensor> = {};
    for (const [i, values] of bandFeatures(spectrum, metadata).entries()) {
      const band = metadata.config.bands[i]!;
      const shape = [1, featureCount(band), band.stop - band.start, spectrum.frames];
      inputs[`features_${i}`] = this.makeTensor(values, shape);
    }
    const outputs = await this.session.run(inputs);
    const masks = metadata.config.bands.map((_, i) => outputs[`masks_${i}`]!.data as Float32Array);
    const stems = applyMasks(masks, spectrum, segment, metadata, stft);
    for (const tensor of Object.values(outputs)) tensor.dispose();
    if (!stems.flat().every((samples) => Number.isFinite(samples.reduce((sum, value) => sum + value, 0))))
      throw new Error("the network returned values that are not finite");
    return stems;
  }

  release(): Promise<void> {
    return this.session.release();
  }
}

export class Separator {
  #network: Network | undefined;
  #loaded = "";
  #loading = Promise.resolve();

  // Load a model, perhaps in advance; one after another.
  load(request: Pick<Request, "model" | "provider" | "threads">): Promise<void> {
    const loaded = this.#loading.then(async () => {
      const name = `${request.model} ${request.provider} ${request.threads}`;
      if (this.#loaded === name) return;
      await this.#network?.release();
      this.#loaded = "";
      this.#network = await Network.load(request);
      this.#loaded = name;
    });
    this.#loading = loaded.catch(() => {});
    return loaded;
  }

  // Calls `opened` once, then `block` with interleaved samples of each stem, as often as there are some.
  async separate(
    request: Request,
    opened: (song: Opened) => Promise<void>,
    block: (stems: Float32Array<ArrayBuffer>[]) => Promise<void>,
  ): Promise<void> {
    const song = await openSong(request.file);
    await this.load(request);
    const { metadata } = this.#network!;
    const names = request.stems.length ? request.stems : metadata.stems;
    const parts = names.map((name) =>
      metadata.stems.flatMap((stem, i) =>
        name === stem || (name === ACCOMPANIMENT && stem !== "vocals") ? [i] : [],
      ),
    );
    await opened({
      stems: names,
      sample_rate: metadata.sample_rate,
      channels: song.channels,
      seconds: song.seconds,
    });
    const stereo = widen(resample(song.blocks, song.rate, metadata.sample_rate));
    for await (const stems of overlapAdd(stereo, (segment) => this.#network!.separate(segment), planSegments(metadata))) {
      const ready = parts.map((summed) => interleave(summed.map((s) => stems[s]!), song.channels));
      await block(Comlink.transfer(ready, ready.map(({ buffer }) => buffer)));
    }
  }
}

// Mono becomes two equal channels.
async function* widen(blocks: AsyncIterable<Float32Array[]>): AsyncGenerator<Float32Array[]> {
  for await (const block of blocks) yield block.length === 1 ? [block[0]!, block[0]!] : block;
}

// The sum of some stems, (n * channels); of a mono song, the mean of both channels.
function interleave(stems: Float32Array[][], channels: number): Float32Array<ArrayBuffer> {
  const length = stems[0]![0]!.length;
  const samples = new Float32Array(length * channels);
  for (const [left, right] of stems as [Float32Array, Float32Array][]) {
    if (channels === 1) for (let i = 0; i < length; i++) samples[i]! += (left[i]! + right[i]!) / 2;
    else
      for (let i = 0; i < length; i++) {
        samples[2 * i]! += left[i]!;
        samples[2 * i + 1]! += right[i]!;
      }
  }
  return samples;
}

Comlink.expose(new Separator());
