// The server's REST API, as the page needs it. The page without a server has web/src/server.ts instead.

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const told = await answer.json().catch(() => null);
  throw new Error(told?.error?.message ?? `the server answered ${answer.status}`);
}

export class Server {
  info = () => ask("/v1/server");
  models = () => ask("/v1/models");
  cancel = (id) => ask(`/v1/jobs/${id}/cancel`, { method: "POST" });
  retry = (id) => ask(`/v1/jobs/${id}/retry`, { method: "POST" });
  remove = (id) => ask(`/v1/jobs/${id}`, { method: "DELETE" });

  limits = ({ max_minutes: minutes, max_size: size, keep }) =>
    `Up to ${Math.round(minutes)} minutes and ${Math.round(size)} MB per song. ` +
    `Songs are deleted after ${Math.round(keep)} days.`;

  // Call jobs(list), job(one) and deleted(id) at every change, and connected(yes or no). Returns what ends it.
  watch({ jobs, job, deleted, connected }) {
    const events = new EventSource("/v1/events");
    events.onopen = () => connected(true);
    events.onerror = () => {
      connected(false);
      if (events.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000); // logged out
    };
    events.addEventListener("jobs", ({ data }) => jobs(JSON.parse(data).jobs));
    events.addEventListener("job", ({ data }) => job(JSON.parse(data)));
    events.addEventListener("deleted", ({ data }) => deleted(JSON.parse(data).id));
    return () => events.close();
  }

  // Send a song. onProgress(0..1); the signal aborts it. A full queue is tried again.
  async add(file, { model, stems }, onProgress, signal) {
    for (;;) {
      const { status, body, retryAfter } = await this.#upload(file, { model, stems }, onProgress, signal);
      if (status === 201) return body;
      if (status !== 503) throw new Error(body?.error?.message ?? `the server answered ${status}`);
      await new Promise((resolve) => setTimeout(resolve, 1000 * (Number(retryAfter) || 10)));
      signal.throwIfAborted();
    }
  }

  #upload(file, fields, onProgress, signal) {
    return new Promise((resolve, reject) => {
      const form = new FormData();
      for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
      form.append("file", file, file.name);
      const request = new XMLHttpRequest(); // fetch cannot tell how far an upload is
      request.open("POST", "/v1/jobs");
      request.responseType = "json";
      request.upload.onprogress = ({ loaded, total }) => onProgress(total ? loaded / total : 0);
      request.onload = () =>
        resolve({
          status: request.status,
          body: request.response,
          retryAfter: request.getResponseHeader("retry-after"),
        });
      request.onerror = () => reject(new Error("the connection broke"));
      request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
      signal.addEventListener("abort", () => request.abort());
      request.send(form);
    });
  }

  source = (job) => new ServerSource(job);

  links(job, format) {
    const at = `/v1/jobs/${job.id}`;
    return {
      stem: (stem) => `${at}/stems/${encodeURIComponent(stem)}?format=${format}`,
      zip: `${at}/stems.zip?format=${format}`,
      stemFile: `${at}/stem.mp4`,
      mix: (gains) =>
        `${at}/mix?format=${format}&gains=${encodeURIComponent(
          Object.entries(gains)
            .map(([stem, gain]) => `${stem}:${gain}`)
            .join(","),
        )}`,
    };
  }
}

// The stems of a song on the server, read in pieces by HTTP Range; see engine.js.
class ServerSource {
  #job;

  constructor(job) {
    this.#job = job;
  }

  update(job) {
    this.#job = job;
  }

  get stems() {
    return this.#job.stems;
  }

  get sampleRate() {
    return this.#job.sample_rate;
  }

  get channels() {
    return this.#job.channels;
  }

  get whole() {
    return this.#job.state === "done";
  }

  get frames() {
    return this.#job.frames ?? Math.floor(this.#job.playable * this.#job.sample_rate);
  }

  // Of the whole song, which may not be separated yet.
  get seconds() {
    return this.#job.seconds ?? this.#job.playable;
  }

  async read(stem, first, count, signal) {
    const size = 4 * this.channels;
    const range = `bytes=${first * size}-${(first + count) * size - 1}`;
    const answer = await fetch(`/v1/jobs/${this.#job.id}/pcm/${encodeURIComponent(stem)}`, {
      headers: { range },
      signal,
    });
    if (answer.status !== 206) throw new Error(`the server answered ${answer.status}`);
    const bytes = await answer.arrayBuffer();
    if (bytes.byteLength !== count * size) throw new Error("too few samples");
    return new Float32Array(bytes);
  }

  // Two bytes for each 1,024 samples, peak and RMS, from value `first` on.
  async peaks(stem, first) {
    const answer = await fetch(`/v1/jobs/${this.#job.id}/peaks/${encodeURIComponent(stem)}?first=${first}`);
    return answer.ok ? new Uint8Array(await answer.arrayBuffer()) : new Uint8Array();
  }
}
