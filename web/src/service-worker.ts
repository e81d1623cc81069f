// Keeps the page for use without a network, and adds the headers that let it use threads on any static host.

export type {}; // a module, for the type checker
declare const self: ServiceWorkerGlobalScope;
declare const FILES: string[]; // of the page; models and runtimes are kept when they are first used
declare const VERSION: string;

const CACHE = `tfswa-sep ${VERSION}`;
const HEADERS = {
  "cross-origin-embedder-policy": "require-corp",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
};

self.addEventListener("install", (event) => {
  const fresh = FILES.map((file) => new Request(file, { cache: "reload" }));
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(fresh)));
});

self.addEventListener("activate", (event) => {
  const old = caches.keys().then((names) => names.filter((name) => name.startsWith("tfswa-sep ") && name !== CACHE));
  event.waitUntil(old.then((names) => Promise.all(names.map((name) => caches.delete(name)))));
  event.waitUntil(self.clients.claim());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method === "GET" && request.url.startsWith(self.registration.scope)) event.respondWith(answer(request));
});

async function answer(request: Request): Promise<Response> {
  const cache = await caches.open(CACHE);
  const found = await cache.match(request, { ignoreSearch: true });
  const fresh = request.mode === "navigate" ? {} : { cache: "no-cache" as const }; // which navigations do not take
  const response = found ?? (await fetch(request, fresh));
  if (!found && response.status === 200) {
    const copy = response.clone();
    cache.put(request, copy).catch(() => {}); // no room: it works online
  }
  if (response.type === "opaqueredirect") return response;
  const headers = new Headers(response.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(response.body, { status: response.status, statusText: response.statusText, headers });
}
