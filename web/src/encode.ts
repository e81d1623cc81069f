// Write sound in the formats that a browser can make.

import { registerFlacEncoder } from "@mediabunny/flac-encoder";
import { registerMp3Encoder } from "@mediabunny/mp3-encoder";
import {
  AudioSample,
  AudioSampleSource,
  FlacOutputFormat,
  Mp3OutputFormat,
  Output,
  QUALITY_VERY_HIGH,
  StreamTarget,
  type StreamTargetChunk,
  WavOutputFormat,
  canEncodeAudio,
} from "mediabunny";
import type { Format } from "./formats";

// `blocks` are interleaved.
export async function encode(
  blocks: AsyncIterable<Float32Array<ArrayBuffer>>,
  { channels, sample_rate: sampleRate }: { channels: number; sample_rate: number },
  format: Format,
  file: FileSystemSyncAccessHandle,
): Promise<void> {
  if (format === "flac" && !(await canEncodeAudio("flac"))) registerFlacEncoder();
  if (format === "mp3" && !(await canEncodeAudio("mp3"))) registerMp3Encoder();
  const container = { wav: WavOutputFormat, flac: FlacOutputFormat, mp3: Mp3OutputFormat }[format];
  const codec = format === "wav" ? "pcm-f32" : format;
  const written = new WritableStream<StreamTargetChunk>({
    write: ({ data, position }) => void file.write(data, { at: position }),
  });
  const output = new Output({ format: new container(), target: new StreamTarget(written) });
  const source = new AudioSampleSource({ codec, quality: QUALITY_VERY_HIGH });
  output.addAudioTrack(source);
  await output.start();
  let frames = 0;
  for await (const data of blocks) {
    const timestamp = frames / sampleRate;
    const sample = new AudioSample({ data, format: "f32", numberOfChannels: channels, sampleRate, timestamp });
    await source.add(sample);
    sample.close();
    frames += data.length / channels;
  }
  await output.finalize();
}
