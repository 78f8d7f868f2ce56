// What moves in the air between the vessels: drops, vapour, what runs over. Transforms and opacity alone.

import { s, still } from "./dom.js";
import { TIERS, isUp } from "./tiers.js";

const MOST = 8; // things in the air at once; more would be noise
const APART = 180; // ms between two of one kind

const DROP = "M0 -8c3.500 4.300 6 7 6 10a6 6 0 0 1-12 0c0-3 2.500-5.700 6-10z";
const WISPS = ["M0 0c-5-7 5-11 0-19s4-10 0-17", "M-7 2c-4-6 4-9 0-15", "M7 1c-4-6 4-9 0-14"];

export class Motion {
  #flying = 0;
  #next = 0;

  constructor(air, stage, vessels) {
    Object.assign(this, { air, stage, vessels, seen: true });
    new IntersectionObserver(([entry]) => (this.seen = entry.isIntersecting)).observe(stage);
  }

  /** Shows events that just happened. */
  show(events) {
    if (still.matches || document.hidden || !this.seen) return;
    const arrivals = {};
    for (const event of events) {
      if (!TIERS.includes(event.tier)) continue;
      if (event.kind === "stored" || event.kind === "moved") arrivals[event.tier] = (arrivals[event.tier] ?? 0) + 1;
      this.#later(event);
    }
    for (const [tier, number] of Object.entries(arrivals)) {
      setTimeout(() => this.vessels.ripple(tier, number / 6), 650);
    }
  }

  #later(event) {
    if (this.#flying >= MOST) return;
    const play = PLAYS[event.kind];
    if (!play) return;
    this.#flying += 1;
    const now = performance.now();
    const start = Math.max(now, this.#next);
    this.#next = start + APART;
    setTimeout(async () => {
      try {
        await play(this, event);
      } finally {
        this.#flying -= 1;
      }
    }, start - now);
  }

  /** Moves a drawing along keyframes and takes it away. */
  async fly(paths, kind, colour, frames, options) {
    const drawing = s(
      "svg",
      { class: `flying ${kind}`, viewBox: "-20 -40 40 60", vars: { "--tier": colour } },
      paths.map((d) => s("path", { d })),
    );
    this.air.append(drawing);
    try {
      await drawing.animate(frames, { fill: "both", ...options }).finished;
    } catch {
      // cancelled: the page is going away
    } finally {
      drawing.remove();
    }
  }

  at(tier) {
    return this.vessels.place(tier, this.stage);
  }
}

const to = (x, y, scale = 1) => `translate(${x.toFixed(1)}px, ${y.toFixed(1)}px) scale(${scale})`;

const PLAYS = {
  stored: (motion, { tier }) => {
    const { middle, rim, surface, colour } = motion.at(tier);
    return motion.fly(
      [DROP],
      "drop",
      colour,
      [
        { transform: to(middle, rim - 46, 0.5), opacity: 0 },
        { transform: to(middle, rim - 34), opacity: 1, offset: 0.35, easing: "cubic-bezier(.5,0,.9,.6)" },
        { transform: to(middle, surface), opacity: 1, offset: 0.95 },
        { transform: to(middle, surface + 4, 0.6), opacity: 0 },
      ],
      { duration: 900 },
    );
  },

  moved: (motion, { tier, from_tier: from }) => {
    if (!TIERS.includes(from) || from === tier) return PLAYS.stored(motion, { tier });
    const start = motion.at(from);
    const end = motion.at(tier);
    const high = Math.min(start.rim, end.rim) - (isUp(from, tier) ? 40 : 20);
    const frames = [];
    const above = Math.max(start.surface - start.rim, 0);
    for (let k = 0; k <= 12; k++) {
      const at = k / 12;
      // Out of the water, an arc over the rims, into the other: a quadratic curve through the top.
      const x = start.middle + (end.middle - start.middle) * at;
      const line =
        (1 - at) ** 2 * (start.surface - above * 0.4) +
        2 * at * (1 - at) * (2 * high - (start.rim + end.surface) / 2) +
        at ** 2 * end.surface;
      frames.push({ offset: at, transform: to(x, line, 1.15), opacity: k === 0 || k === 12 ? 0 : 1 });
    }
    return motion.fly([DROP], "drop", end.colour, frames, { duration: 1500, easing: "cubic-bezier(.45,.05,.55,.95)" });
  },

  faded: (motion, { tier }) => {
    const { middle, surface, rim, colour } = motion.at(tier);
    const top = Math.min(surface, rim + 20);
    return motion.fly(
      WISPS,
      "wisp",
      colour,
      [
        { transform: to(middle, top, 0.7), opacity: 0 },
        { transform: to(middle + 3, top - 22, 1), opacity: 0.75, offset: 0.3 },
        { transform: to(middle - 3, rim - 52, 1.3), opacity: 0 },
      ],
      { duration: 2200, easing: "ease-out" },
    );
  },

  evicted: (motion, { tier }) => {
    const { right, rim, foot, colour } = motion.at(tier);
    const edge = right - 4;
    return motion.fly(
      [DROP],
      "drop",
      colour,
      [
        { transform: to(edge - 12, rim - 2, 0.5), opacity: 0 },
        { transform: to(edge + 1, rim - 4, 0.8), opacity: 1, offset: 0.25 },
        { transform: to(edge + 5, rim + 10, 0.8), opacity: 1, offset: 0.45, easing: "ease-in" },
        { transform: to(edge + 6, foot - 6, 0.7), opacity: 0.9, offset: 0.9 },
        { transform: to(edge + 6, foot, 0.3), opacity: 0 },
      ],
      { duration: 1300 },
    );
  },

  forgotten: (motion, { tier }) => {
    const { middle, foot, colour } = motion.at(tier);
    return motion.fly(
      [DROP],
      "drop",
      colour,
      [
        { transform: to(middle, foot - 4, 0.4), opacity: 0 },
        { transform: to(middle, foot + 6, 0.8), opacity: 1, offset: 0.3, easing: "ease-in" },
        { transform: to(middle, foot + 34, 0.7), opacity: 0 },
      ],
      { duration: 1000 },
    );
  },
};
