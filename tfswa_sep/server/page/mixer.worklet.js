// Mixes the stems of a song, sample by sample in step, and plays them at any speed. In the audio thread.
//
// Samples come in pieces, [stem] -> interleaved floats. The mix is made at the song's own speed and then read at
// `rate`, which shifts the pitch too; stretch moves it back (see engine.js). At rate 1 the mix passes unchanged.

const RAMP = 1 / 1024; // change of a gain per sample: no clicks
const REPORT_SECONDS = 0.04;

class Mixer extends AudioWorkletProcessor {
  constructor({ processorOptions: { stems, channels, piece } }) {
    super();
    Object.assign(this, { stems, channels, piece });
    this.pieces = new Map(); // number -> [stem] -> samples
    this.gains = new Float32Array(stems).fill(1);
    this.targets = new Float32Array(stems).fill(1);
    this.position = 0; // in samples of the song; a fraction at other speeds
    this.end = 0; // of what can be played
    this.whole = false; // nothing comes after the end
    this.rate = 1;
    this.playing = false;
    this.loop = null; // [from, to]
    this.reported = 0;
    this.mixed = [new Float32Array(4096), new Float32Array(4096)];
    this.port.onmessage = ({ data }) => this.receive(data);
  }

  receive(message) {
    if (message.piece !== undefined) this.pieces.set(message.piece, message.samples);
    if (message.drop) for (const number of message.drop) this.pieces.delete(number);
    for (const name of ["playing", "rate", "loop", "end", "whole", "position"])
      if (message[name] !== undefined) this[name] = message[name];
    if (message.gains) this.targets.set(message.gains);
    if (message.position !== undefined) this.gains.set(this.targets);
    if (message.piece === undefined) this.reported = 0; // tell at once
  }

  // Mix `count` samples from `first` on into this.mixed; false if some have not arrived.
  mix(first, count) {
    const [left, right] = this.mixed;
    left.fill(0, 0, count);
    right.fill(0, 0, count);
    for (let done = 0; done < count; ) {
      const frame = first + done;
      if (frame < 0) {
        done = Math.min(count, -first);
        continue;
      }
      if (frame >= this.end) return this.whole;
      const samples = this.pieces.get(Math.floor(frame / this.piece));
      if (!samples) return false;
      const from = frame % this.piece;
      const some = Math.min(count - done, this.piece - from, this.end - frame);
      for (let stem = 0; stem < this.stems; stem++) {
        const data = samples[stem];
        const other = this.channels - 1; // of a mono song, the same
        let gain = this.gains[stem];
        const target = this.targets[stem];
        for (let i = 0; i < some; i++) {
          if (gain !== target) gain += Math.max(-RAMP, Math.min(RAMP, target - gain));
          const at = (from + i) * this.channels;
          left[done + i] += gain * data[at];
          right[done + i] += gain * data[at + other];
        }
        this.gains[stem] = Math.abs(gain - target) < RAMP / 2 ? target : gain;
      }
      done += some;
    }
    return true;
  }

  process(inputs, [output]) {
    const count = output[0].length;
    let done = 0;
    let waiting = false;
    while (this.playing && done < count) {
      const [from, to] = this.loop ?? [0, 0];
      const stop = this.whole ? Math.min(to, this.end) : to;
      const looping = this.loop && this.position < stop; // after its end, the song goes on
      const end = looping ? Math.min(stop, this.end) : this.end;
      const some = Math.min(count - done, Math.ceil((end - this.position) / this.rate));
      if (some <= 0) {
        waiting = !this.whole;
        if (this.whole) {
          this.playing = false;
          this.position = this.end;
        }
        break;
      }
      if (this.rate === 1 && Number.isInteger(this.position)) {
        if (!this.mix(this.position, some)) {
          waiting = true;
          break;
        }
        output.forEach((channel, c) => channel.set(this.mixed[c].subarray(0, some), done));
      } else {
        const first = Math.floor(this.position) - 1;
        const last = Math.floor(this.position + (some - 1) * this.rate) + 2;
        if (!this.mix(first, last - first + 1)) {
          waiting = true;
          break;
        }
        output.forEach((channel, c) => this.read(this.mixed[c], first, channel, done, some));
      }
      this.position += some * this.rate;
      if (looping && this.position >= stop) this.position = from + this.position - stop;
      done += some;
    }
    if (this.rate === 1) this.position = Math.round(this.position);
    if (currentTime - this.reported >= REPORT_SECONDS || waiting !== this.waiting || !this.playing !== this.paused) {
      this.reported = currentTime;
      this.waiting = waiting;
      this.paused = !this.playing;
      this.port.postMessage({ position: this.position, playing: this.playing, waiting });
    }
    return true;
  }

  // Cubic interpolation between the samples (Catmull-Rom).
  read(mixed, first, channel, done, some) {
    for (let i = 0; i < some; i++) {
      const exact = this.position + i * this.rate;
      const whole = Math.floor(exact);
      const t = exact - whole;
      const at = whole - first;
      const a = mixed[at - 1];
      const b = mixed[at];
      const c = mixed[at + 1];
      const d = mixed[at + 2];
      channel[done + i] = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)));
    }
  }
}

registerProcessor("mixer", Mixer);
