// Read a song piece by piece: mediabunny finds the packets, the browser's WebCodecs decodes them.

import { ALL_FORMATS, AudioSampleSink, BlobSource, Input, MP3, OGG } from "mediabunny";

export interface Song {
  rate: number; // Hz
  channels: number;
  seconds: number; // may be an estimate
  blocks: AsyncIterable<Float32Array[]>; // [c], each (n)
}

const BLOCK = 65536; // samples; packets have a few thousand at most

export async function openSong(file: Blob): Promise<Song> {
  const input = new Input({ source: new BlobSource(file), formats: ALL_FORMATS });
  const track = await input.getPrimaryAudioTrack().catch(() => null);
  if (!track) throw new Error("this browser finds no sound in it");
  const codec = (await track.getCodec()) ?? "its codec";
  if (!(await track.canDecode())) throw new Error(`this browser cannot decode ${codec}`);
  const channels = await track.getNumberOfChannels();
  if (channels > 2) throw new Error(`it has ${channels} channels: mix it down to stereo`);
  const [format, rate, seconds] = await Promise.all([input.getFormat(), track.getSampleRate(), track.computeDuration()]);
  const padding = format === MP3 ? await mp3Padding(file) : { before: 0, after: 0 };
  // The last page of an Ogg file says how long it is; in other formats, what follows may be sound.
  const end = format === OGG || padding.after ? Math.round(seconds * rate) - padding.after : Infinity;
  return {
    rate,
    channels,
    seconds: seconds - (padding.before + padding.after) / rate,
    blocks: cut(blocks(new AudioSampleSink(track), channels), padding.before, end),
  };
}

const MP3_DECODER_DELAY = 529; // samples, of every decoder

// The samples that an MP3 encoder has put around the song: it tells in the first frame, if at all.
async function mp3Padding(file: Blob): Promise<{ before: number; after: number }> {
  const tag = new Uint8Array(await file.slice(0, 10).arrayBuffer());
  const isTag = tag[0] === 0x49 && tag[1] === 0x44 && tag[2] === 0x33; // ID3
  const start = isTag ? 10 + tag.slice(6).reduce((size, byte) => 128 * size + byte, 0) : 0;
  const frame = new Uint8Array(await file.slice(start, start + 512).arrayBuffer());
  const text = String.fromCharCode(...frame);
  const info = Math.max(text.indexOf("Xing"), text.indexOf("Info"));
  if (info < 0) return { before: 0, after: 0 };
  const flags = frame[info + 7]!;
  const optional = [4, 4, 100, 4].reduce((sum, size, i) => sum + (flags & (1 << i) ? size : 0), 0);
  const at = info + 8 + optional;
  if (!/^(LAME|Lavc|Lavf)/.test(text.slice(at))) return { before: 0, after: 0 };
  const [high, middle, low] = frame.subarray(at + 21, at + 24) as unknown as [number, number, number];
  const delay = (high << 4) | (middle >> 4);
  const padding = ((middle & 15) << 8) | low;
  return { before: delay + MP3_DECODER_DELAY, after: Math.max(0, padding - MP3_DECODER_DELAY) };
}

// The samples from `start` to `end` of a stream.
async function* cut(blocks: AsyncIterable<Float32Array[]>, start: number, end: number): AsyncGenerator<Float32Array[]> {
  let at = 0;
  for await (const block of blocks) {
    const from = Math.max(0, start - at);
    const to = end - at;
    at += block[0]!.length;
    if (from < Math.min(to, block[0]!.length)) yield block.map((samples) => samples.subarray(from, to));
  }
}

async function* blocks(sink: AudioSampleSink, channels: number): AsyncGenerator<Float32Array[]> {
  let held = Array.from({ length: channels }, () => new Float32Array(2 * BLOCK));
  let filled = 0;
  for await (const sample of sink.samples()) {
    // What lies before the song's start, as an encoder's delay, is not part of it.
    const skipped = Math.min(sample.numberOfFrames, Math.max(0, Math.round(-sample.timestamp * sample.sampleRate)));
    for (let done = skipped; done < sample.numberOfFrames; ) {
      const frameCount = Math.min(sample.numberOfFrames - done, 2 * BLOCK - filled);
      for (let c = 0; c < channels; c++)
        sample.copyTo(held[c]!.subarray(filled), { planeIndex: c, format: "f32-planar", frameOffset: done, frameCount });
      done += frameCount;
      filled += frameCount;
      if (filled < BLOCK) continue;
      yield held.map((samples) => samples.subarray(0, filled));
      held = held.map(() => new Float32Array(2 * BLOCK));
      filled = 0;
    }
    sample.close();
  }
  if (filled) yield held.map((samples) => samples.subarray(0, filled));
}
