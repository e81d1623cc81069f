// A stem's waveform on a canvas: the peaks pale, the loudness (RMS) strong.

const BUCKET = 1024; // samples per value

export class Waveform {
  #canvas;
  #color;
  #source;
  #stem;
  #values = new Uint8Array(0);
  #loading = false;
  #together;

  // The tallest wave of all `together` fills its canvas.
  constructor(canvas, source, stem, color, together) {
    this.loudest = 0;
    this.#together = together;
    this.#canvas = canvas;
    this.#source = source;
    this.#stem = stem;
    this.#color = color;
  }

  // Fetch what has been added, and draw.
  async update() {
    if (this.#loading) return;
    this.#loading = true;
    try {
      const more = await this.#source.peaks(this.#stem, this.#values.length / 2);
      if (more.length) {
        const all = new Uint8Array(this.#values.length + more.length);
        all.set(this.#values);
        all.set(more, this.#values.length);
        this.#values = all;
        for (let i = 0; i < more.length; i += 2) this.loudest = Math.max(this.loudest, more[i]);
        for (const each of this.#together()) each.draw();
      }
    } finally {
      this.#loading = false;
    }
  }

  draw() {
    const ratio = devicePixelRatio || 1;
    const width = Math.round(this.#canvas.clientWidth * ratio);
    const height = Math.round(this.#canvas.clientHeight * ratio);
    if (!width) return;
    Object.assign(this.#canvas, { width, height });
    const paint = this.#canvas.getContext("2d");
    const buckets = Math.max(1, (this.#source.seconds * this.#source.sampleRate) / BUCKET);
    const full = Math.max(24, ...this.#together().map(({ loudest }) => loudest)); // silence stays flat
    const known = this.#values.length / 2;
    paint.fillStyle = this.#color;
    for (let x = 0; x < width; x += 1) {
      const from = Math.floor((x / width) * buckets);
      const to = Math.max(from + 1, Math.floor(((x + 1) / width) * buckets));
      if (from >= known) break;
      let peak = 0;
      let power = 0;
      for (let i = from; i < to && i < known; i++) {
        peak = Math.max(peak, this.#values[2 * i]);
        power += this.#values[2 * i + 1] ** 2;
      }
      const rms = Math.sqrt(power / (to - from));
      for (const [value, alpha] of [
        [peak, 0.4],
        [rms, 1],
      ]) {
        const tall = Math.max(ratio, Math.min(1, value / full) * height);
        paint.globalAlpha = alpha;
        paint.fillRect(x, (height - tall) / 2, 1, tall);
      }
    }
  }
}
