// The five vessels: how much each tier holds, what came and what went.

import { h, s, setText, still } from "./dom.js";
import { compact, count, lasting, plural } from "./format.js";
import { TIERS, VESSELS, level, tierName } from "./tiers.js";

export const FLOW = 300;
const MARKS = [0.1, 0.5, 1];

/** Draws the vessels into a list; `open(tier)` is called where one is chosen. */
export class Vessels {
  #parts = new Map();

  constructor(list, open) {
    this.list = list;
    for (const tier of TIERS) list.append(this.#vessel(tier, open));
  }

  #vessel(tier, open) {
    const shape = VESSELS[tier];
    const [width, height] = shape.size;
    const depth = shape.empty - shape.full;
    const liquid = s(
      "g",
      { class: "liquid" },
      s("path", { class: "wave back", d: wave(width, 14) }),
      s("path", { class: "wave front", d: wave(width, 0) }),
      s("rect", { class: "body", x: -10, y: 0, width: width + 20, height: depth + 20, fill: `url(#water-${tier})` }),
    );
    const marks = MARKS.map((share) => {
      const y = shape.empty - Math.sqrt(share) * depth;
      return s("line", { class: "mark-line", x1: width / 2, x2: width, y1: y, y2: y });
    });
    const picture = s(
      "svg",
      { class: "vessel-picture", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
      s(
        "defs",
        {},
        s("clipPath", { id: `inside-${tier}` }, s("path", { d: `${shape.wall}Z` })),
        s("mask", { id: `near-${tier}` }, s("path", { class: "near", d: shape.wall })),
        s(
          "linearGradient",
          { id: `water-${tier}`, x1: 0, y1: 0, x2: 0, y2: 1 },
          s("stop", { offset: "0", class: "shallow" }),
          s("stop", { offset: "1", class: "deep" }),
        ),
      ),
      s("path", { class: "glass", d: `${shape.wall}Z` }),
      s("g", { "clip-path": `url(#inside-${tier})` }, liquid),
      s("g", { "clip-path": `url(#inside-${tier})` }, s("g", { mask: `url(#near-${tier})` }, marks)),
      s("path", { class: "wall", d: shape.wall }),
    );
    const number = h("span", { class: "count" }, "–");
    const room = h("span", { class: "room" });
    const life = h("span", { class: "life" });
    const came = h("span", { class: "came" }, "+0");
    const went = h("span", { class: "went" }, "−0");
    const cameWords = h("span", { class: "unseen" });
    const flow = h("span", { class: "flow" }, h("span", { "aria-hidden": "true" }, came, " ", went), cameWords);
    const button = h(
      "button",
      {
        type: "button",
        class: "vessel",
        "data-tier": tier,
        vars: { "--tier": `var(--${tier})`, "--breadth": shape.breadth },
        onclick: () => open(tier),
      },
      h("span", { class: "picture" }, picture),
      h("span", { class: "name" }, tierName(tier)),
      h("span", { class: "held" }, number, " ", room),
      life,
      flow,
      h("span", { class: "unseen" }, ". Show its memories"),
    );
    this.#parts.set(tier, {
      button,
      picture,
      liquid,
      number,
      room,
      life,
      came,
      went,
      cameWords,
      count: null,
      capacity: 1,
    });
    this.#raise(tier, 0);
    return h("li", {}, button);
  }

  #raise(tier, height) {
    const { full, empty } = VESSELS[tier];
    const depth = empty - full;
    // The drawing of the water begins at y = 0; empty, it lies below the bottom.
    const y = height <= 0 ? empty + 14 : empty - height * depth;
    this.#parts.get(tier).liquid.style.transform = `translateY(${y.toFixed(2)}px)`;
    this.#parts.get(tier).surface = y / VESSELS[tier].size[1];
  }

  /** Capacities and lifetimes, from the server's tiers. */
  describe(tiers) {
    for (const { name, capacity, ttl_seconds: ttl } of tiers) {
      const part = this.#parts.get(name);
      if (!part) continue;
      part.capacity = capacity;
      setText(part.room, `of ${count(capacity)}`);
      part.life.replaceChildren(h("span", { class: "kept" }, "kept "), lasting(ttl));
      if (part.count !== null) this.#raise(name, level(part.count, capacity));
    }
  }

  /** Counts of a sample, and what came and went lately. Returns the total. */
  show(tiers, flow) {
    let total = 0;
    for (const [tier, part] of this.#parts) {
      const now = tiers[tier]?.count ?? 0;
      total += now;
      if (now !== part.count) {
        setText(part.number, count(now));
        if (part.count !== null && still.matches) flash(part.number);
        part.count = now;
        this.#raise(tier, level(now, part.capacity));
      }
      const { arrived = 0, left = 0 } = flow[tier] ?? {};
      setText(part.came, `+${compact(arrived)}`);
      setText(part.went, `−${compact(left)}`);
      part.came.classList.toggle("none", arrived === 0);
      part.went.classList.toggle("none", left === 0);
      setText(
        part.cameWords,
        `. In the last 5 minutes ${plural(arrived, "memory", "memories")} arrived, ${count(left)} left`,
      );
    }
    return total;
  }

  /** Where things of a tier are on the screen: rim, surface and foot, in pixels from the corner of `stage`. */
  place(tier, stage) {
    const { picture, surface, button } = this.#parts.get(tier);
    const box = picture.getBoundingClientRect();
    const origin = stage.getBoundingClientRect();
    const left = box.left - origin.left;
    const top = box.top - origin.top;
    return {
      middle: left + box.width / 2,
      left,
      right: left + box.width,
      rim: top + (6 / VESSELS[tier].size[1]) * box.height,
      surface: top + Math.min(surface, 1) * box.height,
      foot: top + box.height,
      colour: getComputedStyle(button).getPropertyValue("--tier"),
    };
  }

  /** Lets the surface move; `strength` from 0 to 1. */
  ripple(tier, strength) {
    if (still.matches) return;
    const height = 0.35 + 0.65 * Math.min(strength, 1);
    this.#parts
      .get(tier)
      .liquid.querySelectorAll(".wave")
      .forEach((path, k) => {
        for (const running of path.getAnimations()) running.cancel();
        const way = k === 0 ? 40 : -40;
        path.animate(
          [0, 0.15, 0.4, 0.7, 1].map((at) => ({
            offset: at,
            transform: `translateX(${(way * at).toFixed(1)}px) scaleY(${(height * (at < 0.15 ? at / 0.15 : 1 - (at - 0.15) / 0.85)).toFixed(3)})`,
          })),
          { duration: 2600, easing: "ease-out" },
        );
      });
  }
}

function flash(node) {
  node.classList.remove("flash");
  requestAnimationFrame(() => requestAnimationFrame(() => node.classList.add("flash")));
}

/** Waves that stand on y = 0, wider than their vessel, so that they can pass through it; scaleY flattens them. */
function wave(width, shift) {
  const length = 40;
  const start = -length * 2 - shift;
  const end = width + length * 2;
  let path = `M${start} -3`;
  for (let x = start; x < end; x += length) path += `q${length / 4} -6 ${length / 2} 0t${length / 2} 0`;
  return `${path}V0.500H${start}Z`;
}
