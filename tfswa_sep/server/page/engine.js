// Plays the stems of a song, all in step, without ever holding more than a few seconds of them.
//
// A source has: stems, sampleRate, channels, frames (that can be read by now), whole (whether these are all), and
// read(stem, first, count) -> Promise of interleaved floats. It may be a server (server.js) or anything else.

const PIECE = 32768; // samples that are fetched at once: 0.7 s
const AHEAD = 10; // pieces that are fetched before they are played

export class Engine extends EventTarget {
  #source;
  #context;
  #mixer;
  #stretch;
  #wanted = new Map(); // number of a piece -> AbortController or null once it has arrived
  #position = 0;
  #playing = false;
  #loop = null;
  #rate = 1;
  #semitones = 0;
  #latency = 0; // seconds, of the pitch shifter

  static async create(source) {
    const engine = new Engine();
    engine.#source = source;
    const context = (engine.#context = new AudioContext({ sampleRate: source.sampleRate, latencyHint: "playback" }));
    await context.audioWorklet.addModule(new URL("mixer.worklet.js", import.meta.url));
    engine.#mixer = new AudioWorkletNode(context, "mixer", {
      numberOfInputs: 0,
      outputChannelCount: [2],
      processorOptions: { stems: source.stems.length, channels: source.channels, piece: PIECE },
    });
    engine.output = context.createGain();
    engine.output.connect(context.destination);
    engine.#mixer.connect(engine.output);
    engine.#mixer.port.onmessage = ({ data }) => engine.#report(data);
    engine.update();
    return engine;
  }

  get context() {
    return this.#context;
  }

  // Seconds of what is heard now.
  get position() {
    return Math.max(0, this.#position / this.#source.sampleRate - this.#latency * this.#rate);
  }

  get playing() {
    return this.#playing;
  }

  async play() {
    await this.#context.resume();
    if (this.#source.whole && this.#position >= this.#source.frames - 1) this.seek(0);
    this.#playing = true;
    this.#mixer.port.postMessage({ playing: true });
  }

  pause() {
    this.#playing = false;
    this.#mixer.port.postMessage({ playing: false });
  }

  seek(seconds) {
    const latest = Math.max(0, this.#source.frames - 1);
    this.#position = Math.max(0, Math.min(latest, Math.round(seconds * this.#source.sampleRate)));
    this.#mixer.port.postMessage({ position: this.#position });
    this.#fetch();
  }

  // One per stem, 1 for unchanged.
  setGains(gains) {
    this.#mixer.port.postMessage({ gains });
  }

  // [from, to] in seconds, or null.
  setLoop(loop) {
    this.#loop = loop && loop.map((seconds) => Math.round(seconds * this.#source.sampleRate));
    this.#mixer.port.postMessage({ loop: this.#loop });
    this.#fetch();
  }

  // The speed is changed by playing faster, which raises the pitch; shifting it back costs one stretcher for all stems.
  async setSpeed(rate, semitones) {
    this.#rate = rate;
    this.#semitones = semitones - 12 * Math.log2(rate);
    const shift = Math.abs(this.#semitones) > 1e-6;
    if (shift && !this.#stretch) this.#stretch = this.#makeStretch();
    const stretch = await this.#stretch;
    this.#mixer.port.postMessage({ rate: this.#rate });
    this.#mixer.disconnect();
    if (shift) {
      stretch.schedule({ active: true, semitones: this.#semitones, tonalityHz: this.#source.sampleRate / 2 });
      this.#mixer.connect(stretch);
      this.#latency = stretch.seconds;
    } else {
      this.#mixer.connect(this.output);
      this.#latency = 0;
    }
  }

  async #makeStretch() {
    const { default: SignalsmithStretch } = await import("./vendor/signalsmith-stretch.mjs");
    SignalsmithStretch.moduleUrl = new URL("vendor/signalsmith-stretch.mjs", import.meta.url).href; // no blob: needed
    const stretch = await SignalsmithStretch(this.#context);
    stretch.seconds = await stretch.latency();
    stretch.connect(this.output);
    return stretch;
  }

  // The source has more to read.
  update() {
    this.#mixer.port.postMessage({ end: this.#source.frames, whole: this.#source.whole });
    this.#fetch();
  }

  async close() {
    for (const request of this.#wanted.values()) request?.abort();
    this.#wanted.clear();
    this.#mixer.port.onmessage = null;
    await this.#context.close();
  }

  #report({ position, playing, waiting }) {
    this.#position = position;
    if (this.#playing && !playing && this.#source.whole && position >= this.#source.frames - 1) this.#playing = false;
    this.waiting = waiting;
    this.#fetch();
    this.dispatchEvent(new Event("time"));
  }

  // Ask for the pieces that will be played next, and forget the others.
  #fetch() {
    const needed = new Set();
    const last = Math.floor((this.#source.frames - 1) / PIECE);
    const add = (frame, count) => {
      const first = Math.max(0, Math.floor(frame / PIECE));
      for (let number = first; number < first + count && number <= last; number++) {
        // The last one may still grow.
        if (this.#source.whole || (number + 1) * PIECE <= this.#source.frames) needed.add(number);
      }
    };
    add(this.#position - 2, AHEAD);
    if (this.#loop) add(this.#loop[0], 4);
    const drop = [];
    for (const [number, request] of this.#wanted) {
      if (needed.has(number)) continue;
      request?.abort();
      this.#wanted.delete(number);
      drop.push(number);
    }
    if (drop.length) this.#mixer.port.postMessage({ drop });
    for (const number of needed) if (!this.#wanted.has(number)) this.#read(number);
  }

  async #read(number) {
    const request = new AbortController();
    this.#wanted.set(number, request);
    const first = number * PIECE;
    const count = Math.min(PIECE, this.#source.frames - first);
    try {
      const samples = await Promise.all(
        this.#source.stems.map((stem) => this.#source.read(stem, first, count, request.signal)),
      );
      if (this.#wanted.get(number) !== request) return;
      this.#wanted.set(number, null);
      this.#mixer.port.postMessage({ piece: number, samples }, samples.map((each) => each.buffer));
    } catch (error) {
      if (request.signal.aborted) return;
      setTimeout(() => this.#wanted.get(number) === request && this.#wanted.delete(number), 500); // then again
    }
  }
}
