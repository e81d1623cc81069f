// The stems of all songs, in the browser's private file system (OPFS), in a worker of its own: only workers may write
// there while others read. Each song has a folder with STEM.wav, STEM.peaks and, once it is done, job.json.

import * as Comlink from "comlink";
import { downloadZip } from "client-zip";
import { header, HEADER_BYTES, type Format } from "./formats";
import type { Job } from "./server";

const BUCKET = 1024; // samples per value of a waveform
const PIECE = 65536; // samples that are read at once

type Handle = FileSystemSyncAccessHandle;

// A stem that is being written.
class GrowingStem {
  #frames = 0;
  #peaks: number[] = []; // for each bucket the peak and the RMS, with 255 for full scale
  #peak = 0;
  #power = 0;
  #inBucket = 0;

  constructor(
    private file: Handle,
    private channels: number,
  ) {}

  append(samples: Float32Array<ArrayBuffer>): void {
    this.file.write(samples, { at: HEADER_BYTES + 4 * this.channels * this.#frames });
    this.#frames += samples.length / this.channels;
    for (const sample of samples) {
      this.#peak = Math.max(this.#peak, Math.abs(sample));
      this.#power += sample * sample;
      if (++this.#inBucket === BUCKET * this.channels) this.#endBucket();
    }
  }

  read(first: number, count: number): Float32Array<ArrayBuffer> {
    const samples = new Float32Array(count * this.channels);
    this.file.read(samples, { at: HEADER_BYTES + 4 * this.channels * first });
    return samples;
  }

  peaks(): Uint8Array<ArrayBuffer> {
    return Uint8Array.from(this.#peaks);
  }

  finish(rate: number): number {
    if (this.#inBucket) this.#endBucket();
    this.file.write(header(this.#frames, this.channels, rate), { at: 0 });
    this.close();
    return this.#frames;
  }

  close(): void {
    this.file.close();
  }

  #endBucket(): void {
    const level = (value: number) => Math.round(255 * Math.min(1, value));
    this.#peaks.push(level(this.#peak), level(Math.sqrt(this.#power / (BUCKET * this.channels))));
    this.#peak = this.#power = this.#inBucket = 0;
  }
}

export class Library {
  #growing = new Map<string, Map<string, GrowingStem>>(); // id -> stem -> file
  #locks = new Map<string, () => void>(); // id -> what gives up the song's lock

  // The finished songs. What an earlier visit left unfinished is deleted, except what another tab is working on.
  async list(): Promise<Job[]> {
    const busy = new Set((await navigator.locks.query()).held?.map(({ name }) => name));
    const jobs: Job[] = [];
    const root = await folder();
    for await (const [id, entry] of root.entries()) {
      const song = entry as FileSystemDirectoryHandle;
      try {
        jobs.push(JSON.parse(await (await open(song, "job.json")).text()) as Job);
      } catch {
        if (!busy.has(lockName(id))) await root.removeEntry(id, { recursive: true });
      }
    }
    return jobs.sort((a, b) => b.created - a.created);
  }

  async begin(id: string, stems: string[], channels: number): Promise<void> {
    await new Promise<void>((taken) => {
      void navigator.locks.request(lockName(id), () => {
        taken();
        return new Promise<void>((release) => this.#locks.set(id, release));
      });
    });
    const growing = new Map<string, GrowingStem>();
    this.#growing.set(id, growing);
    for (const stem of stems) growing.set(stem, new GrowingStem(await create(await folder(id), `${stem}.wav`), channels));
  }

  // The next samples of each stem, interleaved.
  append(id: string, blocks: Float32Array<ArrayBuffer>[]): void {
    let number = 0;
    for (const stem of this.#growing.get(id)?.values() ?? []) stem.append(blocks[number++]!);
  }

  // Returns the samples per channel.
  async finish(job: Job): Promise<number> {
    const song = await folder(job.id);
    let frames = 0;
    for (const [name, stem] of this.#growing.get(job.id)!) {
      frames = stem.finish(job.sample_rate);
      await write(song, `${name}.peaks`, stem.peaks());
    }
    await write(song, "job.json", new TextEncoder().encode(JSON.stringify({ ...job, frames })));
    this.#growing.delete(job.id);
    this.#release(job.id);
    return frames;
  }

  async remove(id: string): Promise<void> {
    for (const stem of this.#growing.get(id)?.values() ?? []) stem.close();
    this.#growing.delete(id);
    await (await folder()).removeEntry(id, { recursive: true }).catch(() => {}); // there may be nothing yet
    this.#release(id);
  }

  async read({ id, channels }: Job, stem: string, first: number, count: number): Promise<Float32Array<ArrayBuffer>> {
    const growing = this.#growing.get(id)?.get(stem);
    const samples = growing
      ? growing.read(first, count)
      : await readSamples(await open(await folder(id), `${stem}.wav`), channels, first, count);
    return Comlink.transfer(samples, [samples.buffer]);
  }

  // As page/server.js has them.
  async peaks({ id }: Job, stem: string, first: number): Promise<Uint8Array> {
    const growing = this.#growing.get(id)?.get(stem);
    if (growing) return growing.peaks().subarray(2 * first);
    const file = await open(await folder(id), `${stem}.peaks`);
    return new Uint8Array(await file.slice(2 * first).arrayBuffer());
  }

  // Each stem of a finished song as a file.
  async stem(job: Job, stem: string, format: Format): Promise<File> {
    return format === "wav" ? open(await folder(job.id), `${stem}.wav`) : this.mix(job, { [stem]: 1 }, format);
  }

  // The sum of stems with gains.
  async mix(job: Job, gains: Record<string, number>, format: Format): Promise<File> {
    const files = await Promise.all(
      Object.entries(gains).map(async ([stem, gain]) => ({
        file: await open(await folder(job.id), `${stem}.wav`),
        gain,
      })),
    );
    async function* mixed(): AsyncGenerator<Float32Array<ArrayBuffer>> {
      for (let first = 0; first < job.frames!; first += PIECE) {
        const count = Math.min(PIECE, job.frames! - first);
        const sum = new Float32Array(count * job.channels);
        for (const { file, gain } of files) {
          const samples = await readSamples(file, job.channels, first, count);
          for (let i = 0; i < sum.length; i++) sum[i]! += gain * samples[i]!;
        }
        yield sum;
      }
    }
    const { encode } = await import("./encode");
    return made((file) => encode(mixed(), job, format, file));
  }

  async zip(job: Job, format: Format, name: (stem: string) => string): Promise<File> {
    const stems = job.stems;
    const entries = async function* (library: Library) {
      for (const stem of stems) yield { name: await name(stem), input: await library.stem(job, stem, format) };
    };
    return made(async (file) => {
      let at = 0;
      for await (const chunk of downloadZip(entries(this)).body!) at += file.write(chunk, { at });
    });
  }

  #release(id: string): void {
    this.#locks.get(id)?.();
    this.#locks.delete(id);
  }
}

const lockName = (id: string) => `tfswa-sep ${id}`;

// The folder of all songs, or that of one.
async function folder(id = ""): Promise<FileSystemDirectoryHandle> {
  const root = await (await navigator.storage.getDirectory()).getDirectoryHandle("tfswa-sep", { create: true });
  return id ? root.getDirectoryHandle(id, { create: true }) : root;
}

async function open(where: FileSystemDirectoryHandle, name: string): Promise<File> {
  return (await where.getFileHandle(name)).getFile();
}

async function create(where: FileSystemDirectoryHandle, name: string): Promise<Handle> {
  const file = await (await where.getFileHandle(name, { create: true })).createSyncAccessHandle();
  file.truncate(0);
  return file;
}

async function write(where: FileSystemDirectoryHandle, name: string, bytes: Uint8Array<ArrayBuffer>): Promise<void> {
  const file = await create(where, name);
  file.write(bytes);
  file.close();
}

async function readSamples(
  file: File,
  channels: number,
  first: number,
  count: number,
): Promise<Float32Array<ArrayBuffer>> {
  const at = HEADER_BYTES + 4 * channels * first;
  return new Float32Array(await file.slice(at, at + 4 * channels * count).arrayBuffer());
}

// A file for a download, in a folder that the next visit deletes since it has no job.json.
async function made(fill: (file: Handle) => Promise<void>): Promise<File> {
  const where = await folder("downloads");
  const name = crypto.randomUUID();
  const file = await create(where, name);
  try {
    await fill(file);
  } finally {
    file.close();
  }
  return open(where, name);
}

Comlink.expose(new Library());
