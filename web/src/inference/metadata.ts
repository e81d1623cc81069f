// A model's metadata: one JSON object under the key "tfswa_sep" of its ONNX file. Twin of inference/metadata.py.

export interface Band {
  start: number; // first bin
  stop: number; // one past the last bin
  stride: number; // bins per token
  taps: number; // frames that each stem's complex filter spans; 0: masks only
}

export interface Metadata {
  format: number;
  stems: string[];
  sample_rate: number; // Hz
  channels: number;
  n_fft: number; // samples
  hop: number; // samples
  segment_samples: number; // samples per segment
  margin_samples: number; // samples of context discarded at each end of a segment
  config: { bands: Band[]; features: string; masks: string; mixture_consistent: boolean };
}

const METADATA_PROPS = 14; // number of the field in ONNX's ModelProto, a list of keys (1) and values (2)

export function readMetadata(model: Uint8Array): Metadata {
  for (const entry of fields(model, METADATA_PROPS)) {
    const [key, value] = [1, 2].map((number) => new TextDecoder().decode(fields(entry, number)[0]));
    if (key !== "tfswa_sep") continue;
    const metadata = JSON.parse(value!) as Metadata;
    const { features, masks, mixture_consistent: consistent } = metadata.config;
    if (metadata.format !== 2 || metadata.channels !== 2 || features !== "advance" || masks !== "signed" || !consistent)
      throw new Error("this kind of model runs only outside the browser");
    return metadata;
  }
  throw new Error("this is not a model of tfswa-sep");
}

// The values of a protocol buffer's fields with this number, which must be texts or messages.
function fields(message: Uint8Array, wanted: number): Uint8Array[] {
  const found: Uint8Array[] = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let scale = 1; ; scale *= 128) {
      const byte = message[at++]!;
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < message.length) {
    const key = varint();
    const length = varint(); // or, for a number, the value itself
    if ((key & 7) === 0) continue;
    if ((key & 7) !== 2) throw new Error("the model is damaged");
    if (key >> 3 === wanted) found.push(message.subarray(at, at + length));
    at += length;
  }
  return found;
}
