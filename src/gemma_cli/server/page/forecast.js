// What will leave, and when.

import { api } from "./api.js";
import { byId, h, icon, s, setText } from "./dom.js";
import { count, day, firstWords, isolated, plural, relative, slot } from "./format.js";
import { openMemory, pin, tierMark } from "./memories.js";
import { TIERS, tierName } from "./tiers.js";
import { failed, toast } from "./toasts.js";
import { tableToggle } from "./tables.js";

const DAYS = 7;
const EVERY = 60_000;
const AFTER = 3_000;
const FEW = 5;
const [WIDTH, HEIGHT] = [480, 100];

export class Forecast {
  #timer = 0;
  #due = 0;
  #all = false;
  #losses = [];
  #timeline = [];

  constructor() {
    this.figure = byId("forecast-figure");
    this.picture = h("div", { class: "timeline", role: "img", "aria-labelledby": "forecast-words" });
    this.readout = h("p", { class: "readout", "aria-hidden": "true" });
    this.days = h("div", { class: "days", "aria-hidden": "true" });
    this.key = h("ul", { class: "key" });
    this.figure.append(
      this.readout,
      this.picture,
      this.days,
      h(
        "div",
        { class: "under" },
        this.key,
        tableToggle(this.figure, "Forgetting forecast", () => this.#table()),
      ),
    );
    byId("losses-more").addEventListener("click", () => {
      this.#all = !this.#all;
      this.#list();
    });
    document.addEventListener("visibilitychange", () => document.hidden || this.soon());
  }

  /** Reads it anew in a moment; many calls make one reading. */
  soon(after = AFTER) {
    if (this.#timer && this.#due <= Date.now() + after) return;
    clearTimeout(this.#timer);
    this.#due = Date.now() + after;
    this.#timer = setTimeout(() => this.#read(), after);
  }

  async #read() {
    this.#timer = 0;
    if (document.hidden) return;
    try {
      this.#show(await api.forecast(DAYS));
    } catch (error) {
      if (error.status !== 401) setText(byId("forecast-words"), error.message);
    }
    this.soon(EVERY);
  }

  #show(forecast) {
    const { total_losses: losses, total_moves: moves, timeline } = forecast;
    this.#timeline = timeline;
    this.#losses = forecast.losses;
    const words = [
      losses
        ? `In the next ${DAYS} days ${plural(losses, "memory", "memories")} will fade unless used.`
        : `Nothing will fade in the next ${DAYS} days.`,
    ];
    if (moves) words.push(`${plural(moves, "memory", "memories")} will move up at the next consolidation.`);
    setText(byId("forecast-words"), words.join(" "));
    this.figure.hidden = losses === 0;
    byId("losses-title").hidden = this.#losses.length === 0;
    if (losses) this.#draw();
    this.#list();
  }

  #draw() {
    const most = Math.max(...this.#timeline.map(total), 1);
    const step = WIDTH / this.#timeline.length;
    const bars = this.#timeline.map((slotOf, k) => {
      let y = HEIGHT;
      const stack = TIERS.filter((tier) => slotOf.losses[tier] > 0).map((tier) => {
        const high = Math.max((slotOf.losses[tier] / most) * (HEIGHT - 8), 2);
        y -= high;
        return s("rect", { class: "bar", data: { tier }, x: k * step + 1, y, width: step - 2, height: high });
      });
      return s(
        "g",
        { class: "slot" },
        s("rect", { class: "reach", x: k * step, y: 0, width: step, height: HEIGHT }),
        stack,
      );
    });
    const picture = s(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      bars,
    );
    bars.forEach((bar, k) =>
      bar.addEventListener("pointerenter", () => setText(this.readout, told(this.#timeline[k]))),
    );
    picture.addEventListener("pointerleave", () => this.#rest(most));
    this.picture.replaceChildren(picture);
    this.#rest(most);
    const start = new Date(this.#timeline[0].from).getTime();
    const end = new Date(this.#timeline.at(-1).until).getTime();
    const midnights = [];
    for (const date = new Date(start); ;) {
      date.setHours(24, 0, 0, 0);
      if (date.getTime() >= end - (end - start) / 14) break; // no room for its name
      midnights.push(new Date(date));
    }
    this.days.replaceChildren(
      ...midnights.map((date) =>
        h("span", { vars: { left: `${((date.getTime() - start) / (end - start)) * 100}%` } }, day(date)),
      ),
    );
    const present = TIERS.filter((tier) => this.#timeline.some((slotOf) => slotOf.losses[tier] > 0));
    this.key.replaceChildren(
      ...present.map((tier) =>
        h(
          "li",
          {},
          tierMark(tier),
          h("b", {}, count(this.#timeline.reduce((sum, slotOf) => sum + (slotOf.losses[tier] ?? 0), 0))),
        ),
      ),
    );
  }

  #rest(most) {
    setText(this.readout, `Peak: ${count(most)} in ${this.#hours()} hours`);
  }

  #hours() {
    const { from, until } = this.#timeline[0];
    return Math.round((new Date(until) - new Date(from)) / 360_000) / 10;
  }

  #table() {
    const present = TIERS.filter((tier) => this.#timeline.some((slotOf) => slotOf.losses[tier] > 0));
    return {
      head: ["From", ...present.map(tierName)],
      rows: this.#timeline
        .filter((slotOf) => total(slotOf) > 0)
        .map((slotOf) => [slot(slotOf.from), ...present.map((tier) => count(slotOf.losses[tier] ?? 0))]),
    };
  }

  #list() {
    const list = byId("losses");
    if (list.contains(document.activeElement)) return; // it does not change under somebody's hands
    const shown = this.#losses.slice(0, this.#all ? undefined : FEW);
    list.replaceChildren(...shown.map((loss) => lossItem(loss, () => this.soon(500))));
    const more = byId("losses-more");
    more.hidden = this.#losses.length <= FEW;
    setText(more, this.#all ? "Show fewer" : `Show the first ${count(this.#losses.length)}`);
  }
}

const total = (slotOf) => Object.values(slotOf.losses).reduce((sum, number) => sum + number, 0);

function told(slotOf) {
  const parts = TIERS.filter((tier) => slotOf.losses[tier] > 0).map(
    (tier) => `${count(slotOf.losses[tier])} ${tierName(tier).toLowerCase()}`,
  );
  return `${slot(slotOf.from)}: ${parts.join(", ") || "nothing"}`;
}

function lossItem({ memory, expires_at: end }, changed) {
  const keep = h(
    "button",
    {
      type: "button",
      class: "quiet keep",
      onclick: async () => {
        if (keep.getAttribute("aria-disabled") === "true") return;
        keep.setAttribute("aria-disabled", "true");
        try {
          await pin(memory, true);
          keep.lastChild.textContent = "Kept";
          toast(`Kept: “${isolated(firstWords(memory.content, 40))}”.`, {
            undo: () => pin(memory, false).then(changed, failed),
          });
          changed();
        } catch (error) {
          keep.removeAttribute("aria-disabled");
          failed(error);
        }
      },
    },
    icon("pin"),
    h("span", {}, "Keep"),
  );
  const item = h(
    "li",
    { data: { memory: memory.id } },
    h(
      "button",
      { type: "button", class: "content", dir: "auto", onclick: () => openMemory(memory) },
      firstWords(memory.content, 90),
    ),
    h(
      "p",
      { class: "facts" },
      tierMark(memory.tier),
      h("time", { datetime: end }, Date.parse(end) > Date.now() ? relative(end) : "leaving"),
    ),
    keep,
  );
  item.update = (after) => {
    item.hidden = after === null;
  };
  return item;
}
