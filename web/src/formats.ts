// The formats of downloads, and the header of WAV files of 32-bit floats.

export const FORMATS = ["wav", "flac", "mp3"] as const;
export type Format = (typeof FORMATS)[number];

export const HEADER_BYTES = 58;

export function header(frames: number, channels: number, rate: number): Uint8Array<ArrayBuffer> {
  const bytes = new Uint8Array(HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  const text = (at: number, word: string) => bytes.set(new TextEncoder().encode(word), at);
  const data = 4 * channels * frames;
  text(0, "RIFF");
  view.setUint32(4, HEADER_BYTES - 8 + data, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 18, true);
  view.setUint16(20, 3, true); // floats
  view.setUint16(22, channels, true);
  view.setUint32(24, rate, true);
  view.setUint32(28, 4 * channels * rate, true);
  view.setUint16(32, 4 * channels, true);
  view.setUint16(34, 32, true);
  text(38, "fact");
  view.setUint32(42, 4, true);
  view.setUint32(46, frames, true);
  text(50, "data");
  view.setUint32(54, data, true);
  return bytes;
}
