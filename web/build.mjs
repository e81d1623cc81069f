// Write the static page to dist/: the modules of tfswa_sep/server/page as they are, but with a server.js that separates
// in the browser.

import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const PACKAGE = new URL("../tfswa_sep/", import.meta.url).pathname;
const ORT = new URL("node_modules/onnxruntime-web/dist/", import.meta.url).pathname;
const DIST = new URL("dist/", import.meta.url).pathname;
const ONLY_ON_THE_SERVER = /(^|\/)(docs|login)\.|server\.js$/;
const POLICY =
  "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
  "worker-src 'self' blob:; manifest-src 'self'; base-uri 'none'; form-action 'none'";

rmSync(DIST, { recursive: true, force: true });
for (const name of ["models", "ort"]) mkdirSync(`${DIST}${name}`, { recursive: true });
cpSync(`${PACKAGE}server/page`, DIST, { recursive: true, filter: (path) => !ONLY_ON_THE_SERVER.test(path) });
for (const name of ["small.onnx", "small.int8.onnx"]) cpSync(`${PACKAGE}weights/${name}`, `${DIST}models/${name}`);
for (const name of ["", ".asyncify"]) // on the CPU; on the GPU
  for (const end of ["mjs", "wasm"]) cpSync(`${ORT}ort-wasm-simd-threaded${name}.${end}`, `${DIST}ort/ort-wasm-simd-threaded${name}.${end}`);

const page = readFileSync(`${DIST}index.html`, "utf8");
const change = (text, from, to) => {
  if (!text.includes(from)) throw new Error(`index.html has no ${from}`);
  return text.replace(from, to);
};
const head =
  `<meta http-equiv="Content-Security-Policy" content="${POLICY}">\n` +
  `  <link rel="manifest" href="manifest.webmanifest">\n  <title>`;
writeFileSync(`${DIST}index.html`, change(change(page, "<title>", head), '    <a href="docs">API</a>\n', ""));
writeFileSync(
  `${DIST}manifest.webmanifest`,
  JSON.stringify({
    name: "tfswa-sep: songs into stems",
    short_name: "tfswa-sep",
    start_url: ".",
    display: "standalone",
    background_color: "#101418",
    theme_color: "#101418",
    icons: [{ src: "icon.svg", sizes: "any", type: "image/svg+xml" }],
  }),
);

const options = {
  absWorkingDir: new URL(".", import.meta.url).pathname,
  bundle: true,
  minify: true,
  outdir: DIST,
  target: "es2022",
  legalComments: "eof",
};
await build({
  ...options,
  entryPoints: ["server", "separator", "library"].map((name) => `src/${name}.ts`),
  format: "esm",
  splitting: true,
  chunkNames: "chunks/[hash]",
  conditions: ["onnxruntime-web-use-extern-wasm"],
});
const files = readdirSync(DIST, { recursive: true }).filter((name) => statSync(DIST + name).isFile()).sort();
const version = createHash("sha256");
for (const name of files) version.update(name).update(readFileSync(DIST + name));
await build({
  ...options,
  entryPoints: ["src/service-worker.ts"],
  define: {
    VERSION: JSON.stringify(version.digest("hex").slice(0, 12)),
    FILES: JSON.stringify([".", ...files.filter((name) => !/^(models|ort)\//.test(name))]),
  },
});
