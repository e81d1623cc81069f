// The page's back end without a server: the same methods as page/server.js, in whose place it is built. Songs are
// separated one after another by a worker (separator.ts); another one keeps their stems (library.ts).

import * as Comlink from "comlink";
import { FORMATS, type Format } from "./formats";
import type { Library } from "./library";
import type { Opened, Separator } from "./separator";

// See JobView in tfswa_sep/server/app.py.
export interface Job {
  id: string;
  name: string;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  model: string;
  stems: string[];
  created: number; // Unix time
  seconds: number | null;
  frames: number | null;
  sample_rate: number;
  channels: number;
  progress: number;
  seconds_left: number | null;
  playable: number;
  warnings: string[];
  error: { message: string } | null;
}

interface Watcher {
  jobs(list: Job[]): void;
  job(one: Job): void;
  deleted(id: string): void;
  connected(yes: boolean): void;
}

interface Choice {
  model: string;
  stems: string; // separated by commas, "" for all
}

const MODEL_STEMS = ["vocals", "drums", "bass", "other"];
const MODELS = {
  "small, int8": { model: "small.int8.onnx", provider: "wasm" },
  "small, float32": { model: "small.onnx", provider: "wasm" },
  "small, on the GPU (untested)": { model: "small.onnx", provider: "webgpu" },
} as const;
const DEFAULT = "small, int8"; // a quarter of the download, and two thirds of the time (measured)
const MOST_THREADS = 4; // more hardly help
const RELOAD_PAUSE = 10_000; // milliseconds in which a page that gets no threads is not reloaded again
const threads = crossOriginIsolated
  ? Number(new URLSearchParams(location.search).get("threads")) ||
    Math.min(MOST_THREADS, navigator.hardwareConcurrency)
  : 1;

export class Server {
  #library = Comlink.wrap<Library>(worker("library.js"));
  #separator: { worker: Worker; api: Comlink.Remote<Separator> } | null = null;
  #jobs = new Map<string, Job>();
  #songs = new Map<string, { file: File; choice: Choice }>(); // of this visit
  #watchers = new Set<Watcher>();
  #queue: Job[] = [];
  #running: { job: Job; cancel: () => void } | null = null;
  #begun: Promise<void> = Promise.resolve(); // of the running song: its files are there
  #listed: Promise<void>;

  constructor() {
    this.#listed = this.#library.list().then((jobs) => {
      for (const job of jobs) this.#jobs.set(job.id, job);
    });
    addEventListener("beforeunload", (event) => {
      if (this.#running || this.#queue.length) event.preventDefault();
    });
    document.addEventListener("click", (event) => this.#download(event));
    this.#prepare().catch(() => {}); // the first song reports it
  }

  async info(): Promise<{ formats: readonly string[]; stem_file: boolean }> {
    if (!isSecureContext) throw new Error("This page works only over https:// or on this machine.");
    if (!("AudioDecoder" in globalThis)) throw new Error("This browser cannot decode songs: update it.");
    return { formats: FORMATS, stem_file: false };
  }

  limits(): string {
    return "Songs never leave this device; the stems are kept in this browser until you delete them.";
  }

  async models(): Promise<{ name: string; stems: string[]; default: boolean }[]> {
    const names = Object.keys(MODELS).filter((name) => "gpu" in navigator || !name.includes("GPU"));
    return names.map((name) => ({ name, stems: MODEL_STEMS, default: name === DEFAULT }));
  }

  watch(watcher: Watcher): () => void {
    this.#watchers.add(watcher);
    const list = () => watcher.jobs([...this.#jobs.values()].sort((a, b) => b.created - a.created));
    this.#listed.then(list, list);
    return () => this.#watchers.delete(watcher);
  }

  async add(file: File, choice: Choice, onProgress: (part: number) => void): Promise<Job> {
    onProgress(1);
    const job: Job = {
      id: crypto.randomUUID(),
      name: file.name,
      state: "queued",
      model: choice.model || DEFAULT,
      stems: [],
      created: Date.now() / 1000,
      seconds: null,
      frames: null,
      sample_rate: 0,
      channels: 0,
      progress: 0,
      seconds_left: null,
      playable: 0,
      warnings: [],
      error: null,
    };
    this.#songs.set(job.id, { file, choice });
    this.#enqueue(job);
    void navigator.storage.persist();
    return job;
  }

  async cancel(id: string): Promise<void> {
    if (this.#running?.job.id === id) this.#running.cancel();
    else {
      this.#queue = this.#queue.filter((job) => job.id !== id);
      this.#change(id, { state: "cancelled" });
    }
  }

  async retry(id: string): Promise<void> {
    const job = this.#jobs.get(id)!;
    this.#enqueue({ ...job, state: "queued", stems: [], progress: 0, playable: 0, frames: null, error: null });
  }

  async remove(id: string): Promise<void> {
    await this.cancel(id);
    await this.#library.remove(id);
    this.#jobs.delete(id);
    this.#songs.delete(id);
    for (const watcher of this.#watchers) watcher.deleted(id);
  }

  source(job: Job): Source {
    return new Source(job, this.#library);
  }

  // Addresses that #download makes files for.
  links(job: Job, format: Format) {
    const link = (kind: string, detail: object = {}) =>
      `#download=${encodeURIComponent(JSON.stringify({ id: job.id, kind, format, ...detail }))}`;
    return {
      stem: (stem: string) => link("stem", { stem }),
      zip: link("zip"),
      stemFile: "",
      mix: (gains: Record<string, number>) => link("mix", { gains }),
    };
  }

  async #download(event: MouseEvent): Promise<void> {
    const link = (event.target as Element).closest<HTMLAnchorElement>("a[href^='#download=']");
    if (!link) return;
    event.preventDefault();
    if (link.ariaBusy) return;
    link.ariaBusy = "true";
    try {
      const { id, kind, format, stem, gains } = JSON.parse(decodeURIComponent(link.hash.slice("#download=".length)));
      const job = this.#jobs.get(id)!;
      const title = job.name.replace(/\.\w{1,5}$/, "");
      const named = (what: string) => `${title} - ${what}.${format}`;
      if (kind === "stem") save(await this.#library.stem(job, stem, format), named(stem));
      else if (kind === "mix") save(await this.#library.mix(job, gains, format), named("mix"));
      else save(await this.#library.zip(job, format, Comlink.proxy((each) => named(each))), `${title}.zip`);
    } finally {
      link.ariaBusy = null;
    }
  }

  // Threads need headers that a plain host does not send, but that the service worker adds from the next load on.
  async #prepare(): Promise<void> {
    if ("serviceWorker" in navigator) {
      await navigator.serviceWorker.register("service-worker.js").catch(() => {}); // not over plain http
      const reloaded = Number(sessionStorage.getItem("reloaded"));
      if (!crossOriginIsolated && Date.now() - reloaded > RELOAD_PAUSE) {
        await navigator.serviceWorker.ready;
        if (!this.#songs.size) {
          sessionStorage.setItem("reloaded", `${Date.now()}`);
          location.reload();
          return;
        }
      }
    }
    await this.#load().api.load({ ...MODELS[DEFAULT], threads }); // so that the first song starts at once
  }

  #load() {
    if (!this.#separator) {
      const made = worker("separator.js");
      this.#separator = { worker: made, api: Comlink.wrap<Separator>(made) };
    }
    return this.#separator;
  }

  #enqueue(job: Job): void {
    this.#jobs.set(job.id, job);
    this.#queue.push(job);
    this.#change(job.id, {});
    void this.#work();
  }

  async #work(): Promise<void> {
    while (!this.#running && this.#queue.length) {
      const job = this.#queue.shift()!;
      const cancelled = new Promise<never>((_, reject) => {
        this.#running = { job, cancel: () => reject(new DOMException("cancelled", "AbortError")) };
      });
      try {
        await Promise.race([this.#separate(job.id), cancelled]);
      } catch (error) {
        this.#separator?.worker.terminate(); // it cannot be told while the network runs
        this.#separator = null;
        await this.#begun.catch(() => {});
        await this.#library.remove(job.id);
        const stopped = error instanceof DOMException && error.name === "AbortError";
        this.#change(job.id, {
          state: stopped ? "cancelled" : "failed",
          stems: [],
          error: stopped ? null : { message: explain(error) },
        });
      } finally {
        this.#running = null;
      }
    }
  }

  async #separate(id: string): Promise<void> {
    const { file, choice } = this.#songs.get(id)!;
    const setting = MODELS[(choice.model || DEFAULT) as keyof typeof MODELS];
    const stems = choice.stems ? choice.stems.split(",") : [];
    const separator = this.#load().api;
    this.#change(id, { state: "running" });
    let began = 0;
    let frames = 0;
    const opened = async (song: Opened) => {
      this.#begun = this.#library.begin(id, song.stems, song.channels);
      await this.#begun;
      this.#change(id, song);
      began = performance.now();
    };
    const block = async (blocks: Float32Array<ArrayBuffer>[]) => {
      const { channels, sample_rate: rate, seconds } = this.#jobs.get(id)!;
      frames += blocks[0]!.length / channels;
      await this.#library.append(id, Comlink.transfer(blocks, blocks.map(({ buffer }) => buffer)));
      const playable = frames / rate;
      const left = Math.max(0, seconds! - playable);
      this.#change(id, {
        playable,
        progress: Math.min(1, playable / seconds!),
        seconds_left: (left * (performance.now() - began)) / 1000 / playable,
      });
    };
    await separator.separate({ file, ...setting, threads, stems }, Comlink.proxy(opened), Comlink.proxy(block));
    if (!frames) throw new Error("it contains no sound");
    const { sample_rate: rate } = this.#jobs.get(id)!;
    const done = { state: "done", progress: 1, seconds_left: null, frames, seconds: frames / rate } as const;
    await this.#library.finish({ ...this.#jobs.get(id)!, ...done });
    this.#change(id, done);
  }

  #change(id: string, change: Partial<Job>): void {
    const before = this.#jobs.get(id);
    if (!before) return; // deleted
    const job = { ...before, ...change };
    this.#jobs.set(id, job);
    for (const watcher of this.#watchers) watcher.job(job);
  }
}

// See engine.js.
class Source {
  constructor(
    private job: Job,
    private library: Comlink.Remote<Library>,
  ) {}

  update(job: Job): void {
    this.job = job;
  }

  get stems() {
    return this.job.stems;
  }

  get sampleRate() {
    return this.job.sample_rate;
  }

  get channels() {
    return this.job.channels;
  }

  get whole() {
    return this.job.state === "done";
  }

  get frames() {
    return this.job.frames ?? Math.floor(this.job.playable * this.job.sample_rate);
  }

  get seconds() {
    return this.job.seconds ?? this.job.playable;
  }

  read = (stem: string, first: number, count: number) => this.library.read(this.job, stem, first, count);
  peaks = (stem: string, first: number) => this.library.peaks(this.job, stem, first);
}

function worker(name: string): Worker {
  return new Worker(new URL(name, import.meta.url), { type: "module" });
}

function explain(error: unknown): string {
  const { name, message } = error as Error;
  if (name === "QuotaExceededError") return "the browser has no room for more stems: delete songs";
  if (error instanceof RangeError || /memory|alloc/i.test(message)) return "out of memory: close other tabs";
  return message;
}

function save(file: File, name: string): void {
  const address = URL.createObjectURL(file);
  Object.assign(document.createElement("a"), { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}
