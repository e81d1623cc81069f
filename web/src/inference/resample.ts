// Resample a stream to another rate, with a polyphase windowed sinc. The libraries for browsers either interpolate
// linearly or bring 2 MB.

const REACH = 64; // zero crossings of the sinc to either side
const ROLLOFF = 0.96; // the cutoff, of the lower rate's half
const BETA = 12; // of the Kaiser window: 118 dB of attenuation

type Samples = Float32Array[]; // [c], each (n)

// Blocks at `from` Hz to blocks at `to` Hz of the same total duration. Equal rates pass unchanged.
export async function* resample(blocks: AsyncIterable<Samples>, from: number, to: number): AsyncGenerator<Samples> {
  if (from === to) {
    yield* blocks;
    return;
  }
  const unit = gcd(from, to);
  const up = to / unit; // output sample i lies at input position i * down / up
  const down = from / unit;
  const cutoff = ROLLOFF * Math.min(1, to / from);
  const reach = Math.ceil(REACH / cutoff);
  const filters = Array.from({ length: up }, (_, phase) => filter(phase / up, reach, cutoff));
  let held: Samples = []; // from input position `start` on
  let start = -reach;
  let taken = 0;
  let given = 0;
  const ready = (): Samples => {
    const first = given;
    const position = (i: number) => Math.floor((i * down) / up);
    while (position(given) + reach - start < held[0]!.length && given < Math.round((taken * to) / from)) given++;
    const made = held.map((samples) => {
      const output = new Float32Array(given - first);
      for (let i = 0; i < output.length; i++) {
        const taps = filters[((first + i) * down) % up]!;
        const at = position(first + i) - reach + 1 - start;
        let sum = 0;
        for (let tap = 0; tap < taps.length; tap++) sum += taps[tap]! * samples[at + tap]!;
        output[i] = sum;
      }
      return output;
    });
    const drop = Math.max(0, position(given) - reach - start);
    held = held.map((samples) => samples.slice(drop));
    start += drop;
    return made;
  };
  for await (const block of blocks) {
    if (!held.length) held = block.map(() => new Float32Array(reach));
    taken += block[0]!.length;
    held = held.map((samples, c) => join(samples, block[c]!));
    yield ready();
  }
  if (!held.length) return;
  held = held.map((samples) => join(samples, new Float32Array(2 * reach)));
  yield ready();
}

// The taps for the input samples from -reach + 1 to reach around a position that is `fraction` past a sample.
function filter(fraction: number, reach: number, cutoff: number): Float32Array {
  const taps = Float64Array.from({ length: 2 * reach }, (_, i) => {
    const distance = i - reach + 1 - fraction;
    const x = Math.PI * cutoff * distance;
    const inside = 1 - (distance / reach) ** 2;
    return (x === 0 ? 1 : Math.sin(x) / x) * (inside > 0 ? bessel(BETA * Math.sqrt(inside)) : 0);
  });
  const sum = taps.reduce((a, b) => a + b);
  return Float32Array.from(taps, (tap) => tap / sum);
}

// The modified Bessel function of order 0.
function bessel(x: number): number {
  let sum = 1;
  for (let term = 1, k = 1; term > 1e-12 * sum; k++) sum += term *= (x / 2 / k) ** 2;
  return sum;
}

function gcd(a: number, b: number): number {
  return b ? gcd(b, a % b) : a;
}

function join(a: Float32Array, b: Float32Array): Float32Array<ArrayBuffer> {
  const joined = new Float32Array(a.length + b.length);
  joined.set(a);
  joined.set(b, a.length);
  return joined;
}
