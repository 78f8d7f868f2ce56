// The five charts: what each reads out of the samples, and how it says it.

import { Chart } from "./charts.js";
import { byId, h, setText } from "./dom.js";
import { bytes, count, milliseconds, percent, precise } from "./format.js";
import { rise, runs } from "./history.js";

const LINES = 5;
const FIRST = ["recall_memories", "search_memories", "store_memory", "store_memories"]; // what most people ask for
const spoken = (name) => name.replaceAll("_", " ");

/** Of the seconds of a bucket: the mean of the medians by their counts, and the highest of the other two. */
function latencies(bucket, name) {
  const seconds = runs(bucket, name);
  const total = seconds.reduce((sum, run) => sum + run.count, 0);
  if (!total) return [null, null, null];
  return [
    seconds.reduce((sum, run) => sum + run.p50_ms * run.count, 0) / total,
    Math.max(...seconds.map((run) => run.p95_ms)),
    Math.max(...seconds.map((run) => run.p99_ms)),
  ];
}

const turned = (rows, width) => Array.from({ length: width }, (_, k) => rows.map((row) => row[k]));
const last = (line) => line.findLast((value) => value !== null) ?? null;
const top = (line) => line.reduce((most, value) => (value === null ? most : Math.max(most ?? value, value)), null);

export class Instruments {
  #charts;
  #operation = null;
  #chosen = false;
  #offered = "";

  constructor() {
    this.choice = h("select", {
      "aria-label": "Operation",
      onchange: (event) => {
        this.#operation = event.target.value;
        this.#chosen = true;
        this.#charts[0].redraw();
      },
    });
    this.#charts = [this.#latency(), this.#throughput(), CACHES(), BATCHES(), SIZES()];
    byId("figures").append(...this.#charts.map((chart) => chart.figure));
    document.addEventListener("visibilitychange", () => !document.hidden && this.#history && this.show(this.#history));
  }

  #history = null;

  show(history) {
    this.#history = history;
    this.#offer(history.operations());
    for (const chart of this.#charts) chart.show(history);
    const { process, viewers } = history.last ?? {};
    if (process)
      setText(
        byId("pulse"),
        `Processor ${percent(Math.max(process.cpu_percent, 0) / 100)} · memory ${bytes(process.rss_mb * 1e6)} · ${viewers === 1 ? "1 viewer" : `${count(viewers ?? 0)} viewers`}`,
      );
  }

  #offer(names) {
    if (!this.#chosen || (!names.includes(this.#operation) && document.activeElement !== this.choice)) {
      this.#operation = FIRST.find((name) => names.includes(name)) ?? names[0] ?? null;
    }
    const offered = [...names].sort();
    if (document.activeElement === this.choice) return;
    if (offered.join() === this.#offered) {
      this.choice.value = this.#operation ?? "";
      return;
    }
    this.#offered = offered.join();
    this.choice.replaceChildren(
      ...offered.map((name) => h("option", { value: name, selected: name === this.#operation }, spoken(name))),
    );
    this.choice.hidden = offered.length === 0;
  }

  #latency() {
    return new Chart({
      id: "latency",
      title: "Latency",
      unit: "of one operation, log scale",
      scale: "log",
      controls: this.choice,
      format: milliseconds,
      none: "No operation has run in the last 15 minutes.",
      read: (buckets) => ({
        labels: ["p50", "p95", "p99"],
        values: turned(
          buckets.map((bucket) => (this.#operation ? latencies(bucket, this.#operation) : [null, null, null])),
          3,
        ),
      }),
      say: (_, [p50, p95, p99]) =>
        `${spoken(this.#operation)}: half within ${milliseconds(last(p50))}, 95 % within ${milliseconds(last(p95))}; the slowest second of the last 15 minutes had a p99 of ${milliseconds(top(p99))}.`,
    });
  }

  #throughput() {
    return new Chart({
      id: "throughput",
      stacked: true,
      title: "Throughput",
      unit: "operations a second",
      format: (value) => (value === 0 ? "0" : precise(value)),
      none: "No operation has run in the last 15 minutes.",
      read: (buckets, history) => {
        const names = history.operations();
        // In the order of their names: an order by numbers would exchange colours from one second to the next.
        const shown = names.slice(0, names.length > LINES ? LINES - 1 : LINES).sort();
        const rest = names.slice(shown.length);
        const rate = (bucket, of) =>
          of.reduce((sum, name) => sum + runs(bucket, name).reduce((all, run) => all + run.count, 0), 0) /
          bucket.samples.length;
        const groups = [...shown.map((name) => [name]), ...(rest.length ? [rest] : [])];
        return {
          labels: [...shown.map(spoken), ...(rest.length ? ["others"] : [])],
          values: groups.map((group) => buckets.map((bucket) => rate(bucket, group))),
        };
      },
      say: (labels, values) =>
        `Now ${labels.map((label, k) => `${label} ${precise(last(values[k]) ?? 0)}`).join(", ")} a second; at most ${precise(Math.max(...values.map((line) => top(line) ?? 0)))}.`,
    });
  }
}

const CACHES = () =>
  new Chart({
    id: "caches",
    title: "Cache hits",
    unit: "share of look-ups",
    top: 1,
    format: percent,
    none: "Nothing was looked up in a cache in the last 15 minutes.",
    read: (buckets) => {
      const names = ["answers", "embeddings"];
      const values = names.map((name) =>
        buckets.map((bucket) => {
          const risen = rise(bucket, (sample) => sample.caches?.[name]);
          if (!risen || risen.hits < 0 || risen.misses < 0 || risen.hits + risen.misses === 0) return null;
          return risen.hits / (risen.hits + risen.misses);
        }),
      );
      return { labels: names, values };
    },
    say: (labels, values) =>
      labels
        .map((label, k) =>
          last(values[k]) === null
            ? `No look-ups of ${label}`
            : `${percent(last(values[k]))} of the latest look-ups of ${label} were hits`,
        )
        .join("; ")
        .concat("."),
  });

const BATCHES = () =>
  new Chart({
    id: "batches",
    title: "Embedding",
    unit: "texts in a batch, and waiting",
    format: (value) => precise(value),
    none: "The model has not been used in the last 15 minutes.",
    read: (buckets) => {
      const sizes = buckets.map((bucket) => {
        const risen = rise(bucket, (sample) => sample.embedder);
        return risen && risen.batches > 0 && risen.texts >= 0 ? risen.texts / risen.batches : null;
      });
      const waiting = buckets.map((bucket) =>
        bucket.samples.reduce(
          (most, { embedder }) => (embedder ? Math.max(most ?? 0, embedder.queue_length) : most),
          null,
        ),
      );
      return { labels: ["batch size", "queue"], values: [sizes, waiting] };
    },
    say: (_, [sizes, waiting]) =>
      `The latest batches held ${last(sizes) === null ? "nothing" : `${precise(last(sizes))} texts each`}; at most ${count(top(waiting) ?? 0)} waited.`,
  });

const SIZES = () =>
  new Chart({
    id: "sizes",
    title: "Size",
    unit: "log scale",
    scale: "log",
    format: bytes,
    none: "Nothing was measured yet.",
    read: (buckets) => {
      const line = (read) => buckets.map((bucket) => read(bucket.samples.at(-1)) || null);
      return {
        labels: ["process", "store", "index"],
        values: [
          line(({ process }) => (process?.rss_mb ?? 0) * 1e6),
          line(({ store }) => store?.size_bytes),
          line(({ store }) => store?.index_bytes),
        ],
      };
    },
    say: (labels, values) =>
      `${labels.map((label, k) => `The ${label} takes ${last(values[k]) === null ? "nothing" : bytes(last(values[k]))}`).join("; ")}.`,
  });
