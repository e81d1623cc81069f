// The player of one song: what is seen and pressed; engine.js makes the sound.

import { Engine } from "./engine.js";
import { Waveform } from "./waveform.js";
import { clock, fromTemplate, remember, remembered } from "./page.js";

const COLORS = { vocals: "#3d9bd6", drums: "#009e73", bass: "#d55e00", other: "#bf6a98" };
const MORE_COLORS = ["#b58900", "#7a68c4", "#6a8a22", "#8a5a44"];
const STEP = 5; // seconds

export class Player {
  #job;
  #source;
  #engine;
  #links;
  #tracks = [];
  #loop = { from: 0, to: 0, on: false };
  #frame;
  #closing = new AbortController();

  constructor(job, server, formats) {
    this.#job = job;
    this.server = server;
    this.#source = server.source(job);
    this.element = fromTemplate("player-template");
    this.element.setAttribute("aria-label", `Player of ${job.name}`);
    this.#find = (selector) => this.element.querySelector(selector);
    this.#build(formats);
  }

  #find;

  get playing() {
    return this.#engine?.playing ?? false;
  }

  // For tests: the node whose output is heard.
  get engine() {
    return this.#engine;
  }

  async #start() {
    this.#starting ??= (async () => {
      this.#engine = await Engine.create(this.#source);
      this.#engine.addEventListener("time", () => this.#show());
      this.#sendGains();
      this.#sendLoop();
      await this.#sendSpeed();
    })();
    await this.#starting;
  }

  #starting;

  #build(formats) {
    const on = (selector, event, act) => this.#find(selector).addEventListener(event, act);
    for (const [number, stem] of this.#source.stems.entries()) this.#addTrack(stem, number);
    on(".play", "click", () => this.toggle());
    on(".loop", "click", () => this.#toggleLoop());
    on(".position input", "input", ({ target }) => this.seek(Number(target.value)));
    on(".speed", "input", () => this.#sendSpeed());
    on(".pitch", "input", () => this.#sendSpeed());
    on(".reset", "click", () => {
      this.#find(".speed").value = 1;
      this.#find(".pitch").value = 0;
      this.#sendSpeed();
    });
    const format = this.#find(".format");
    for (const name of formats.names) format.append(new Option(name, name));
    format.value = formats.names.includes(remembered("format")) ? remembered("format") : "wav";
    format.addEventListener("change", () => {
      remember("format", format.value);
      this.#updateLinks();
    });
    const four = ["vocals", "drums", "bass", "other"];
    this.#find(".stem-file").hidden =
      !formats.stemFile || four.some((stem) => !this.#source.stems.includes(stem)) || this.#source.stems.length !== 4;
    this.#listenToPointer();
    const redraw = new ResizeObserver(() => {
      for (const { waveform } of this.#tracks) waveform.draw();
      this.#show();
    });
    redraw.observe(this.#find(".tracks"));
    this.#closing.signal.addEventListener("abort", () => redraw.disconnect());
    this.#showSpeed();
    this.update(this.#job);
  }

  #addTrack(stem, number) {
    const element = fromTemplate("track-template");
    const find = (selector) => element.querySelector(selector);
    const color = COLORS[stem] ?? MORE_COLORS[number % MORE_COLORS.length];
    element.setAttribute("aria-label", stem);
    find(".stem").textContent = stem;
    element.style.setProperty("--stem", color);
    find(".volume").setAttribute("aria-label", `Volume of ${stem}`);
    for (const name of ["mute", "solo"]) {
      find(`.${name}`).setAttribute("aria-label", `${name === "mute" ? "Mute" : "Solo"} ${stem}`);
      find(`.${name}`).addEventListener("click", () => this.#toggle(number, name));
    }
    find(".download").setAttribute("aria-label", `Save ${stem}`);
    find(".volume").addEventListener("input", () => this.#sendGains());
    find(".volume").addEventListener("dblclick", ({ target }) => {
      target.value = 1;
      this.#sendGains();
    });
    const all = () => this.#tracks.map(({ waveform }) => waveform);
    this.#tracks.push({ stem, element, find, waveform: new Waveform(find("canvas"), this.#source, stem, color, all) });
    this.#find(".tracks").append(element);
  }

  // The job has changed: there may be more to play.
  update(job) {
    const done = job.state === "done" && this.#job.state !== "done";
    this.#job = job;
    this.#source.update(job);
    this.#find(".length").textContent = clock(this.#source.seconds);
    this.#find(".position input").max = this.#source.seconds;
    this.#find(".downloads").classList.toggle("waiting", job.state !== "done");
    this.#engine?.update();
    for (const { waveform } of this.#tracks) waveform.update();
    if (done) setTimeout(() => this.#tracks.forEach(({ waveform }) => waveform.update()), 500);
    this.#updateLinks();
  }

  async close() {
    this.#closing.abort();
    cancelAnimationFrame(this.#frame);
    this.element.remove();
    await this.#starting;
    await this.#engine?.close();
  }

  async toggle() {
    await this.#start();
    if (this.#engine.playing) this.#engine.pause();
    else await this.#engine.play();
    this.#show();
  }

  async seek(seconds) {
    await this.#start();
    this.#engine.seek(seconds);
    this.#show(seconds);
  }

  key(event) {
    const number = event.code?.match(/^(?:Digit|Numpad)([1-9])$/)?.[1];
    const now = this.#engine?.position ?? 0;
    if (number && number <= this.#tracks.length) this.#toggle(number - 1, event.shiftKey ? "solo" : "mute");
    else if (event.key === " ") this.toggle();
    else if (event.key === "ArrowLeft") this.seek(now - STEP);
    else if (event.key === "ArrowRight") this.seek(now + STEP);
    else if (event.key === "l" || event.key === "L") this.#toggleLoop();
    else if (event.key === "[") this.#setLoop(now, Math.max(now + 0.1, this.#loop.to), true);
    else if (event.key === "]") this.#setLoop(Math.min(this.#loop.from, now - 0.1), now, true);
    else return false;
    return true;
  }

  gains() {
    const pressed = ({ find }, name) => find(`.${name}`).getAttribute("aria-pressed") === "true";
    const solo = this.#tracks.some((track) => pressed(track, "solo"));
    return this.#tracks.map((track) =>
      (solo ? pressed(track, "solo") : !pressed(track, "mute")) ? Number(track.find(".volume").value) : 0,
    );
  }

  #toggle(number, name) {
    const button = this.#tracks[number].find(`.${name}`);
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
    this.#sendGains();
  }

  #sendGains() {
    const gains = this.gains();
    this.#tracks.forEach(({ element }, number) => element.classList.toggle("silent", gains[number] === 0));
    this.#engine?.setGains(gains);
    this.#updateLinks();
  }

  async #sendSpeed() {
    this.#showSpeed();
    await this.#engine?.setSpeed(Number(this.#find(".speed").value), Number(this.#find(".pitch").value));
  }

  #showSpeed() {
    const speed = this.#find(".speed");
    const pitch = this.#find(".pitch");
    const semitones = Number(pitch.value);
    speed.nextElementSibling.textContent = `${Math.round(speed.value * 100)} %`;
    pitch.nextElementSibling.textContent = semitones > 0 ? `+${semitones}` : `${semitones}`.replace("-", "−");
    pitch.setAttribute("aria-valuetext", `${semitones} semitones`);
    speed.setAttribute("aria-valuetext", `${Math.round(speed.value * 100)} percent`);
  }

  #toggleLoop() {
    const { from, to, on } = this.#loop;
    if (to > from) this.#setLoop(from, to, !on);
    else this.#setLoop(0, this.#source.seconds, true);
  }

  #setLoop(from, to, on) {
    this.#loop = { from: Math.max(0, from), to: Math.min(this.#source.seconds, to), on };
    this.#sendLoop();
    this.#show();
  }

  #sendLoop() {
    const { from, to, on } = this.#loop;
    this.#find(".loop").setAttribute("aria-pressed", String(on));
    const region = this.#find(".region");
    region.hidden = to <= from;
    region.classList.toggle("on", on);
    region.style.left = `${(100 * from) / this.#source.seconds}%`;
    region.style.width = `${(100 * (to - from)) / this.#source.seconds}%`;
    this.#engine?.setLoop(on ? [from, to] : null);
  }

  // A click on the waveforms seeks, a drag chooses the loop.
  #listenToPointer() {
    const overlay = this.#find(".overlay");
    const at = ({ clientX }) => {
      const { left, width } = overlay.getBoundingClientRect();
      return Math.max(0, Math.min(1, (clientX - left) / width)) * this.#source.seconds;
    };
    let began = null;
    overlay.addEventListener("pointerdown", (event) => {
      began = { x: event.clientX, seconds: at(event), dragged: false };
      overlay.setPointerCapture(event.pointerId);
    });
    overlay.addEventListener("pointermove", (event) => {
      if (!began || (!began.dragged && Math.abs(event.clientX - began.x) < 6)) return;
      began.dragged = true;
      const [from, to] = [began.seconds, at(event)].sort((a, b) => a - b);
      this.#setLoop(from, to, true);
    });
    overlay.addEventListener("pointerup", (event) => {
      if (began && !began.dragged) this.seek(at(event));
      else if (began) this.seek(this.#loop.from);
      began = null;
    });
    overlay.addEventListener("pointercancel", () => (began = null));
  }

  #show(seconds = this.#engine?.position ?? 0) {
    cancelAnimationFrame(this.#frame);
    this.#frame = requestAnimationFrame(() => {
      const play = this.#find(".play");
      play.textContent = this.playing ? "Pause" : "Play";
      play.classList.toggle("busy", this.playing && Boolean(this.#engine.waiting));
      this.#find(".now").textContent = clock(seconds);
      const position = this.#find(".position input");
      position.value = seconds;
      position.setAttribute("aria-valuetext", clock(seconds));
      this.#find(".cursor").style.left = `${(100 * seconds) / Math.max(this.#source.seconds, 1e-3)}%`;
    });
  }

  #updateLinks() {
    const format = this.#find(".format").value;
    const links = this.server.links(this.#job, format);
    const gains = this.gains();
    const heard = Object.fromEntries(
      this.#tracks.map(({ stem }, number) => [stem, gains[number]]).filter(([, gain]) => gain > 0),
    );
    const ready = this.#job.state === "done";
    const set = (link, address, usable = ready) => {
      if (usable) link.href = address;
      else link.removeAttribute("href");
      link.setAttribute("aria-disabled", String(!usable));
    };
    for (const { stem, find } of this.#tracks) set(find(".download"), links.stem(stem));
    set(this.#find(".zip"), links.zip);
    set(this.#find(".stem-file"), links.stemFile);
    set(this.#find(".mix"), links.mix(heard), ready && Object.keys(heard).length > 0);
  }
}
