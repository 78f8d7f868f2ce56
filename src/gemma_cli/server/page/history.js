// The samples of the last quarter of an hour, and what can be read from them.

export const SPAN = 900;
const BUCKET = 10;

/** Samples, oldest first; `t` of each is its time in seconds. */
export class History {
  samples = [];
  #buckets = null;

  /** Takes what a server remembers. Where it remembers less than this page, the page's own samples stay before it. */
  load(samples) {
    const loaded = samples.map(stamped);
    const first = loaded.length ? loaded[0].t : Infinity;
    this.samples = [...this.samples.filter((sample) => sample.t < first), ...loaded];
    this.#trim();
  }

  push(sample) {
    this.samples.push(stamped(sample));
    this.#trim();
  }

  get last() {
    return this.samples.at(-1) ?? null;
  }

  #trim() {
    const oldest = (this.last?.t ?? 0) - SPAN;
    const keep = this.samples.findIndex((sample) => sample.t >= oldest);
    if (keep > 0) this.samples.splice(0, keep);
    this.#buckets = null;
  }

  /** What arrived in and left each tier in the last `seconds`: {tier: {arrived, left}}. */
  flow(seconds) {
    const since = (this.last?.t ?? 0) - seconds;
    const sums = {};
    for (let k = this.samples.length - 1; k >= 0 && this.samples[k].t > since; k--) {
      for (const [tier, { arrived = 0, left = 0 }] of Object.entries(this.samples[k].tiers ?? {})) {
        const sum = (sums[tier] ??= { arrived: 0, left: 0 });
        sum.arrived += arrived;
        sum.left += left;
      }
    }
    return sums;
  }

  /** Groups of samples, BUCKET seconds each, oldest first: [{t (middle), samples, before}]; `before`: the sample before. */
  buckets() {
    if (this.#buckets) return this.#buckets;
    const buckets = [];
    let current = null;
    let before = null;
    for (const sample of this.samples) {
      const start = Math.floor(sample.t / BUCKET) * BUCKET;
      if (current?.start !== start) buckets.push((current = { start, t: start + BUCKET / 2, samples: [], before }));
      current.samples.push(sample);
      before = sample;
    }
    this.#buckets = buckets;
    return buckets;
  }

  /** The operations that ran, the most frequent first. */
  operations() {
    const counts = new Map();
    for (const sample of this.samples) {
      for (const [name, { count }] of Object.entries(sample.operations ?? {})) {
        counts.set(name, (counts.get(name) ?? 0) + count);
      }
    }
    return [...counts].sort((a, b) => b[1] - a[1] || a[0].localeCompare(b[0])).map(([name]) => name);
  }
}

const stamped = (sample) => ({ ...sample, t: Date.parse(sample.time) / 1000 });

/** Runs of one operation in a bucket, each {count, p50_ms, …}. */
export const runs = (bucket, name) => bucket.samples.map((sample) => sample.operations?.[name]).filter(Boolean);

/** By how much totals rose within a bucket; null where the server began anew or they are not known. */
export function rise(bucket, read) {
  const end = read(bucket.samples.at(-1));
  const start = read(bucket.before ?? bucket.samples[0]);
  if (!end || !start) return null;
  const rises = {};
  for (const key of Object.keys(end)) {
    if (typeof end[key] !== "number") continue;
    rises[key] = end[key] - (start[key] ?? 0);
  }
  return rises;
}
