// One chart over the common quarter of an hour: picture, caption, key with values, table.

import { h, s, setText } from "./dom.js";
import { clock } from "./format.js";
import { SPAN } from "./history.js";
import { tableToggle } from "./tables.js";

const HEIGHT = 168;
const SPOKEN = 60_000; // ms between two texts that a screen reader may speak
const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3], [1, 5], [8, 2]];

const resolved = new Map();

/** The colour that a custom property stands for now: a canvas knows no var(). */
function colour(name) {
  if (!resolved.has(name)) {
    const probe = document.body.appendChild(h("span", { vars: { color: `var(${name})` } }));
    resolved.set(name, getComputedStyle(probe).color);
    probe.remove();
  }
  return resolved.get(name);
}
document.addEventListener("theme", () => resolved.clear());

/**
 * An instrument: `read(history)` gives {labels, values}, one list of values for each label, at the middle of each bucket;
 * `format(value)` a value with its unit; `say(history, labels, values)` the caption. `scale`: log, or the top of a
 * linear axis. `controls`: what stands in its head.
 */
export class Chart {
  #plot = null;
  #labels = "";
  #data = null;
  #spoken = 0;
  #visible = false;
  #history = null;
  #width = 0;

  constructor({
    id,
    title,
    unit,
    read,
    format,
    say,
    scale = "linear",
    top = null,
    controls = [],
    none,
    stacked = false,
  }) {
    Object.assign(this, { id, title, read, format, say, scale, top, stacked });
    this.caption = h("figcaption", { class: "note", id: `${id}-caption` }, "Waiting for the first values.");
    this.picture = h("div", {
      class: "plot",
      role: "img",
      "aria-labelledby": `${id}-title`,
      "aria-describedby": `${id}-caption`,
    });
    this.none = h("p", { class: "nothing", hidden: true }, none);
    this.key = h("ul", { class: "key lines" });
    this.figure = h("figure", { class: "instrument", id, "aria-labelledby": `${id}-title` });
    this.figure.append(
      h(
        "div",
        { class: "instrument-head" },
        h("h3", { id: `${id}-title` }, title, " ", h("small", {}, unit)),
        controls,
      ),
      h("div", { class: "plot-room" }, this.picture, this.none),
      h(
        "div",
        { class: "under" },
        this.key,
        tableToggle(this.figure, title, () => this.#table()),
      ),
      this.caption,
    );
    // It speaks only while somebody is in it: five captions at once would be noise.
    this.figure.addEventListener("focusin", () => this.caption.setAttribute("aria-live", "polite"));
    this.figure.addEventListener("focusout", () => this.caption.removeAttribute("aria-live"));
    new IntersectionObserver(
      ([entry]) => {
        this.#visible = entry.isIntersecting;
        if (this.#visible && this.#history) this.show(this.#history);
      },
      { rootMargin: "100px" },
    ).observe(this.figure);
    new ResizeObserver(([entry]) => this.#resize(Math.floor(entry.contentRect.width))).observe(this.picture);
    document.addEventListener("theme", () => this.redraw());
  }

  #resize(width) {
    if (width === this.#width || width < 40) return;
    this.#width = width;
    if (this.#plot) this.#plot.setSize({ width, height: HEIGHT });
    else if (this.#history) this.show(this.#history);
  }

  redraw() {
    this.#plot?.destroy();
    this.#plot = null;
    this.#spoken = 0;
    if (this.#history) this.show(this.#history);
  }

  show(history) {
    this.#history = history;
    if (!this.#visible || document.hidden) return;
    const buckets = history.buckets();
    const { labels, values } = this.read(buckets, history);
    const empty = !values.some((line) => line.some((value) => value !== null));
    this.none.hidden = !empty;
    this.picture.classList.toggle("empty", empty);
    const times = buckets.map((bucket) => bucket.t);
    this.#data = [times, ...values];
    this.labels = labels;
    const key = labels.join("\n");
    if (key !== this.#labels || !this.#plot) this.#rebuild(labels, key);
    const now = history.last?.t ?? Date.now() / 1000;
    this.#plot?.batch(() => {
      this.#plot.setData(this.stacked ? [times, ...piled(values)] : this.#data, false);
      this.#plot.setScale("x", { min: now - SPAN, max: now });
    });
    if (this.#plot?.cursor.idx === null || this.#plot?.cursor.idx === undefined) this.#tell(null);
    if (Date.now() - this.#spoken >= SPOKEN || empty !== this.wasEmpty) {
      this.#spoken = Date.now();
      this.wasEmpty = empty;
      setText(this.caption, empty ? this.none.textContent : this.say(labels, values, history));
    }
  }

  #rebuild(labels, key) {
    if (!this.#width || !window.uPlot) return;
    this.#plot?.destroy();
    this.#labels = key;
    this.key.replaceChildren(
      ...labels.map((label, k) => h("li", {}, sample(k, this.stacked), h("span", {}, label), h("b", {}, "–"))),
    );
    this.#plot = new window.uPlot(this.#options(labels), [[], ...labels.map(() => [])], this.picture);
  }

  #options(labels) {
    const axis = {
      stroke: colour("--ink-2"),
      font: `11px ${getComputedStyle(document.body).fontFamily}`,
      ticks: { show: false },
    };
    const grid = { stroke: colour("--line"), width: 1 };
    const log = this.scale === "log";
    return {
      width: this.#width,
      height: HEIGHT,
      padding: [8, 8, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, sync: { key: "instruments" }, points: { size: 7 } },
      scales: {
        x: { time: true, auto: false },
        y: log
          ? { distr: 3, range: (_, low, high) => decades(low, high) }
          : { range: (_, low, high) => [0, this.top ?? Math.max(high * 1.15, this.least ?? 1)] },
      },
      axes: [
        {
          ...axis,
          grid: { show: false },
          space: 70,
          size: 26,
          values: (_, times) => times.map((time) => clock(time * 1000)),
        },
        {
          ...axis,
          grid,
          size: 62,
          space: 30,
          gap: 6,
          values: (_, values) => values.map((value) => (value === null ? "" : this.format(value))),
          ...(log && { splits: (_, __, low, high) => powers(low, high) }),
        },
      ],
      series: [
        {},
        ...labels.map((label, k) => ({
          label,
          ...(this.stacked
            ? { stroke: colour("--surface"), width: 1, fill: colour(`--line-${k + 1}`) }
            : { stroke: colour(`--line-${k + 1}`), width: k === 0 ? 2 : 1.5, dash: DASHES[k] }),
          spanGaps: true,
          points: { show: (plot, at, from, to) => to - from < 2, size: 4 },
        })),
      ],
      hooks: { setCursor: [(plot) => this.#tell(plot.cursor.idx)] },
    };
  }

  /** Puts the values at a place of the time axis into the key; null: the last that are known. */
  #tell(at) {
    if (!this.#data) return;
    [...this.key.children].forEach((item, k) => {
      const line = this.#data[k + 1] ?? [];
      const value = at === null || at === undefined ? line.findLast((each) => each !== null) : line[at];
      setText(item.lastChild, value === null || value === undefined ? "–" : this.format(value));
    });
  }

  #table() {
    const rows = [];
    const times = this.#data?.[0] ?? [];
    for (let k = times.length - 1; k >= 0; k -= 6) {
      // once a minute, the newest first
      rows.push([
        clock(times[k] * 1000),
        ...this.labels.map((_, line) => {
          const minute = this.#data[line + 1].slice(Math.max(k - 5, 0), k + 1).filter((value) => value !== null);
          return minute.length ? this.format(minute.at(-1)) : "–";
        }),
      ]);
    }
    return { head: ["Time", ...(this.labels ?? [])], rows };
  }
}

const decades = (low, high) => {
  const floor = 10 ** Math.floor(Math.log10(Math.max(low ?? 1, 1e-3)));
  const roof = 10 ** Math.ceil(Math.log10(Math.max(high ?? 10, 1e-2) * 1.001));
  return [floor, Math.max(roof, floor * 10)];
};

const powers = (low, high) => {
  const found = [];
  for (let power = Math.ceil(Math.log10(low) - 1e-9); power <= Math.log10(high) + 1e-9; power++)
    found.push(10 ** power);
  return found;
};

/** Values as they lie upon each other, the first line on top of all. */
function piled(values) {
  const sums = values.map((line) => [...line]);
  for (let k = sums.length - 2; k >= 0; k--)
    sums[k] = sums[k].map((value, at) => (value ?? 0) + (sums[k + 1][at] ?? 0));
  return sums;
}

/** What stands for a line in the key: its dashes, or a square of its area. */
const sample = (k, area) =>
  area
    ? h("span", { class: "swatch", vars: { "--line": `var(--line-${k + 1})` } })
    : s(
        "svg",
        { class: "line-sample", viewBox: "0 0 22 8", "aria-hidden": "true" },
        s("line", {
          x1: 1,
          x2: 21,
          y1: 4,
          y2: 4,
          "stroke-dasharray": DASHES[k].join(" "),
          stroke: `var(--line-${k + 1})`,
        }),
      );
