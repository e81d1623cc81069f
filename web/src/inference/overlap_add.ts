// Cut a stream of stereo sound into segments with context, and cross-fade the results. Twin of
// inference/overlap_add.py, which draws it. Samples are [c], each (n).

import type { Metadata } from "./metadata";

type Samples = Float32Array[];

export interface Plan {
  segment: number; // samples per segment
  margin: number; // samples of context discarded at each end
  kept: number;
  fade: number; // samples over which neighbours are cross-faded
  step: number; // samples from one segment's start to the next one's
}

export function planSegments({ segment_samples: segment, margin_samples: margin }: Metadata): Plan {
  const kept = segment - 2 * margin;
  const fade = Math.min(Math.floor(segment / 64), Math.floor(kept / 2));
  return { segment, margin, kept, fade, step: kept - fade };
}

// `process` maps a segment to stems [s][c]. Yields stems of as many samples in total as came in.
export async function* overlapAdd(
  blocks: AsyncIterable<Samples>,
  process: (segment: Samples) => Promise<Samples[]>,
  plan: Plan,
): AsyncGenerator<Samples[]> {
  const fadeIn = Float32Array.from({ length: plan.fade }, (_, i) => (i + 0.5) / plan.fade);
  let tail: Samples[] | null = null; // the previous segment's part of the overlap, already faded out
  for await (const { segment, inside, last } of cut(blocks, plan)) {
    const stems = (await process(segment)).map((stem) =>
      stem.map((samples) => samples.subarray(plan.margin, plan.margin + inside)),
    );
    each(tail, (faded, s, c) => {
      const samples = stems[s]![c]!;
      for (let i = 0; i < Math.min(plan.fade, inside); i++) samples[i] = samples[i]! * fadeIn[i]! + faded[i]!;
    });
    if (last) {
      yield stems;
      return;
    }
    yield stems.map((stem) => stem.map((samples) => samples.subarray(0, plan.step)));
    tail = stems.map((stem) => stem.map((samples) => samples.slice(plan.step)));
    each(tail, (samples) => samples.forEach((value, i) => (samples[i] = value * (1 - fadeIn[i]!))));
  }
}

function each(stems: Samples[] | null, act: (samples: Float32Array, s: number, c: number) => void): void {
  stems?.forEach((stem, s) => stem.forEach((samples, c) => act(samples, s, c)));
}

// Each segment, how many samples of it are kept after the margin, and whether it is the last.
async function* cut(
  blocks: AsyncIterable<Samples>,
  { segment: size, margin, kept, step }: Plan,
): AsyncGenerator<{ segment: Samples; inside: number; last: boolean }> {
  let held = [new Float32Array(margin), new Float32Array(margin)]; // from the start of the coming segment on
  let any = false;
  const take = () => held.map((samples) => {
    const segment = new Float32Array(size);
    segment.set(samples.subarray(0, size));
    return segment;
  });
  for await (const block of blocks) {
    if (!block[0]!.length) continue;
    any = true;
    held = held.map((samples, c) => join(samples, block[c]!));
    while (held[0]!.length > size) {
      // One more than a segment: it is not the last.
      yield { segment: take(), inside: kept, last: false };
      held = held.map((samples) => samples.slice(step));
    }
  }
  while (any) {
    const inside = held[0]!.length - margin;
    const last = inside <= kept;
    yield { segment: take(), inside: Math.min(inside, kept), last };
    if (last) return;
    held = held.map((samples) => samples.slice(step));
  }
}

function join(a: Float32Array, b: Float32Array): Float32Array<ArrayBuffer> {
  const joined = new Float32Array(a.length + b.length);
  joined.set(a);
  joined.set(b, a.length);
  return joined;
}
