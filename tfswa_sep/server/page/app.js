// The page: songs are dropped, uploaded, listed, and opened in a player.

import { Player } from "./player.js";
import { Server } from "./server.js";
import { clock, fromTemplate, remember, remembered, timeLeft } from "./page.js";

const PARALLEL_UPLOADS = 2;
const SONGS = /\.(aac|ac3|aif[cf]?|alac|amr|ape|au|caf|flac|m4[abv]|mka|mkv|mov|mp[23]|mp4|mpe?g|oga|ogg|ogv|opus|ra|tta|w64|wav|webm|wma|wmv|wv)$/i;
const STATES = { queued: "waiting", running: "separating", failed: "failed", cancelled: "cancelled" };

const $ = (id) => document.getElementById(id);
const server = new Server();
const formats = { names: ["wav"], stemFile: false };
const rows = new Map(); // id of a job -> Row
const uploads = [];
let uploading = 0;
let stopWatching = null;
let open = null; // the row whose player is open

class Row {
  constructor(name) {
    this.element = fromTemplate("song-template");
    this.find = (selector) => this.element.querySelector(selector);
    this.name = name;
    this.find(".name").textContent = name;
    for (const action of ["cancel", "retry", "delete"]) {
      this.find(`.${action}`).setAttribute("aria-label", `${this.find(`.${action}`).textContent} ${name}`);
      this.find(`.${action}`).addEventListener("click", () => this[action]().catch((error) => complain(error.message)));
    }
    this.find("progress").setAttribute("aria-label", `Progress of ${name}`);
    this.find(".open").addEventListener("click", () => this.toggle());
    $("songs").prepend(this.element);
    $("empty").hidden = true;
  }

  show({ state, about, progress, notes = [], stems = 0 }) {
    this.element.dataset.state = state;
    this.find(".about").textContent = about;
    const bar = this.find("progress");
    bar.hidden = progress === null;
    if (progress !== null) bar.value = progress;
    this.find(".notes").replaceChildren(...notes.map((text) => Object.assign(document.createElement("span"), { textContent: text })));
    this.find(".open").disabled = !stems;
    this.find(".cancel").hidden = !["uploading", "queued", "running"].includes(state);
    this.find(".retry").hidden = !["failed", "cancelled"].includes(state);
    this.find(".delete").hidden = state === "uploading";
  }

  remove() {
    this.close();
    this.element.remove();
    $("empty").hidden = $("songs").children.length > 0;
  }

  close() {
    if (open === this) open = null;
    this.player?.close();
    this.player = null;
    this.find(".open").setAttribute("aria-expanded", "false");
  }

  toggle() {}
}

class UploadRow extends Row {
  constructor(file, choice) {
    super(file.name);
    Object.assign(this, { file, choice });
    this.abort = new AbortController();
    this.show({ state: "uploading", about: "waiting to be sent", progress: 0 });
  }

  async send() {
    try {
      const job = await server.add(
        this.file,
        this.choice,
        (part) => this.show({ state: "uploading", about: part < 1 ? "sending" : "sent", progress: part }),
        this.abort.signal,
      );
      showJob(job, this.element);
      this.remove();
    } catch (error) {
      if (this.abort.signal.aborted) this.remove();
      else this.show({ state: "failed", about: "not sent", progress: null, notes: [error.message] });
    }
  }

  async cancel() {
    this.abort.abort();
    if (uploads.includes(this)) {
      uploads.splice(uploads.indexOf(this), 1);
      this.remove();
    }
  }

  async retry() {
    this.abort = new AbortController();
    this.show({ state: "uploading", about: "waiting to be sent", progress: 0 });
    uploads.push(this);
    sendNext();
  }

  async delete() {
    this.remove();
  }
}

class JobRow extends Row {
  update(job) {
    const before = this.job;
    this.job = job;
    const about = [];
    if (job.seconds) about.push(clock(job.seconds));
    if (job.model) about.push(job.model);
    if (job.state === "running" && job.seconds_left !== null) about.push(timeLeft(job.seconds_left));
    else if (STATES[job.state]) about.push(STATES[job.state]);
    else about.push(job.stems.join(", "));
    this.show({
      state: job.state,
      about: about.join(" · "),
      progress: job.state === "running" ? job.progress : job.state === "queued" ? 0 : null,
      notes: job.error ? [job.error.message] : job.warnings,
      stems: ["running", "done"].includes(job.state) ? job.stems.length : 0,
    });
    if (this.player && ["running", "done"].includes(job.state)) this.player.update(job);
    else if (this.player) this.close();
    if (before && before.state !== job.state && job.state !== "running")
      $("status").textContent = `${job.name}: ${job.state}`;
  }

  toggle() {
    if (this.player) {
      this.close();
      return;
    }
    open?.close();
    open = this;
    this.player = new Player(this.job, server, formats);
    this.find(".open").setAttribute("aria-expanded", "true");
    this.find(".place").append(this.player.element);
  }

  cancel = () => server.cancel(this.job.id);
  retry = () => server.retry(this.job.id);

  // The first press asks, the second within a few seconds deletes.
  async delete() {
    const button = this.find(".delete");
    if (button.dataset.sure) {
      await server.remove(this.job.id);
      return;
    }
    const say = (word) => {
      button.textContent = word;
      button.setAttribute("aria-label", `${word} ${this.name}`);
    };
    button.dataset.sure = "yes";
    say("Really delete?");
    setTimeout(() => {
      delete button.dataset.sure;
      say("Delete");
    }, 4000);
  }
}

function showJob(job, before = null) {
  let row = rows.get(job.id);
  if (!row) {
    row = new JobRow(job.name);
    rows.set(job.id, row);
    if (before) before.before(row.element);
  }
  row.update(job);
}

function forget(id) {
  rows.get(id)?.remove();
  rows.delete(id);
}

function watch() {
  stopWatching = server.watch({
    jobs(list) {
      const ids = new Set(list.map((job) => job.id));
      for (const id of [...rows.keys()]) if (!ids.has(id)) forget(id);
      for (const job of list.reverse()) showJob(job);
    },
    job: (job) => showJob(job),
    deleted: forget,
    connected(yes) {
      complain(yes ? "" : "The server does not answer. Trying again …");
    },
  });
}

function complain(message) {
  $("banner").textContent = message;
  $("banner").hidden = !message;
}

// Adding songs

function add(files) {
  const choice = { model: $("model").value, stems: $("stems").value };
  for (const file of files) uploads.push(new UploadRow(file, choice));
  sendNext();
}

async function sendNext() {
  while (uploading < PARALLEL_UPLOADS && uploads.length) {
    uploading++;
    uploads
      .shift()
      .send()
      .finally(() => {
        uploading--;
        sendNext();
      });
  }
}

// All songs in what was dropped, folders included.
async function droppedFiles(items) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  const found = [];
  const walk = async (entry, inFolder) => {
    if (entry.isFile) {
      if (!inFolder || SONGS.test(entry.name)) found.push(await new Promise((yes, no) => entry.file(yes, no)));
      return;
    }
    const reader = entry.createReader();
    for (;;) {
      const some = await new Promise((yes, no) => reader.readEntries(yes, no)); // a hundred at a time
      if (!some.length) return;
      for (const each of some.sort((a, b) => a.name.localeCompare(b.name))) await walk(each, true);
    }
  };
  for (const entry of entries) await walk(entry, false);
  return found;
}

function listenForSongs() {
  $("choose-files").addEventListener("click", () => $("files").click());
  $("choose-folder").addEventListener("click", () => $("folder").click());
  $("files").addEventListener("change", ({ target }) => {
    add(target.files);
    target.value = "";
  });
  $("folder").addEventListener("change", ({ target }) => {
    add([...target.files].filter(({ name }) => SONGS.test(name)));
    target.value = "";
  });
  let depth = 0; // dragenter and dragleave come for every element under the pointer
  const mark = (change) => {
    depth = Math.max(0, depth + change);
    document.body.classList.toggle("dragging", depth > 0);
  };
  addEventListener("dragenter", () => mark(1));
  addEventListener("dragleave", () => mark(-1));
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    event.preventDefault();
    mark(-depth);
    const { items, files } = event.dataTransfer;
    const plain = [...files];
    const found = items.length ? await droppedFiles(items) : [];
    add(found.length ? found : plain);
  });
  addEventListener("beforeunload", (event) => {
    if (uploading) event.preventDefault();
  });
}

function listenForKeys() {
  addEventListener("keydown", (event) => {
    if (!open?.player || event.ctrlKey || event.metaKey || event.altKey) return;
    const { target } = event;
    if (target.matches("select, input:not([type=range])")) return;
    if (target.matches("button, a, summary") && event.key === " ") return;
    if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
    if (open.player.key(event)) event.preventDefault();
  });
}

// A connection is a scarce thing: a browser has six per server, for all its tabs.
function restWhenHidden() {
  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !stopWatching) watch();
    else if (document.hidden && stopWatching && !open?.player?.playing && !uploading) {
      stopWatching();
      stopWatching = null;
    }
  });
}

// The choice of stems that a model offers.
function offerStems(model) {
  const select = $("stems");
  const before = select.value || remembered("stems") || "";
  select.replaceChildren(new Option(`all ${model.stems.length || ""}`.trim(), ""));
  if (model.stems.includes("vocals")) select.append(new Option("vocals and accompaniment", "vocals,accompaniment"));
  for (const stem of model.stems) select.append(new Option(`only ${stem}`, stem));
  if ([...select.options].some(({ value }) => value === before)) select.value = before;
}

async function begin() {
  listenForSongs();
  listenForKeys();
  restWhenHidden();
  watch();
  const [info, models] = await Promise.all([server.info(), server.models()]);
  formats.names = info.formats;
  formats.stemFile = info.stem_file;
  $("limits").textContent = server.limits(info);
  for (const model of models) $("model").append(new Option(model.name, model.default ? "" : model.name));
  const chosen = () => models.find(({ name }) => name === $("model").value) ?? models[0];
  $("model").addEventListener("change", () => offerStems(chosen()));
  $("stems").addEventListener("change", ({ target }) => remember("stems", target.value));
  offerStems(chosen());
}

// For tests, and for the curious at the console.
globalThis.tfswa = { player: () => open?.player, rows };

begin().catch((error) => complain(error.message));
