// The ribbon: what happened last.

import { byId, h, icon, setText, still } from "./dom.js";
import { moment, relative } from "./format.js";
import { openById } from "./memories.js";
import { TIERS, isUp, tierName } from "./tiers.js";

const KEPT = 60;
const FEW = 3;

const WORDS = { stored: "Arrived", updated: "Changed", faded: "Faded", evicted: "Made room", forgotten: "Forgotten" };
const ALIVE = new Set(["stored", "updated", "moved"]);
const GONE = new Set(["faded", "evicted"]); // by themselves: what was told of them stays

const up = (event) => event.kind !== "moved" || isUp(event.from_tier, event.tier);

function words(event) {
  if (event.kind === "moved") return up(event) ? "Moved up" : "Moved down";
  return WORDS[event.kind] ?? event.kind;
}

function where(event) {
  const tier = tierName(event.tier);
  return event.kind === "moved" && event.from_tier ? `${tierName(event.from_tier)} → ${tier}` : tier;
}

export class Activity {
  #events = [];
  #open = false;

  constructor() {
    this.list = byId("activity-list");
    const more = byId("activity-more");
    more.addEventListener("click", () => {
      this.#open = !this.#open;
      more.setAttribute("aria-expanded", String(this.#open));
      setText(more, this.#open ? "Show less" : "Show more");
      this.#draw();
    });
    new ResizeObserver(() => this.#draw()).observe(this.list);
    setInterval(() => this.#ages(), 5_000);
  }

  load(events) {
    this.#events = [...events].reverse().slice(0, KEPT);
    this.#draw();
  }

  /** `more`: how many came before `events` and are not told, so that what is known of earlier ones may be old. */
  add(events, more) {
    const now = new Map(events.filter((event) => !GONE.has(event.kind)).map((event) => [event.id, event.text]));
    const old = (event) => event.text !== undefined && now.has(event.id) && now.get(event.id) !== event.text;
    const kept = more ? [] : this.#events.map((event) => (old(event) ? { ...event, text: undefined } : event));
    this.#events = [...[...events].reverse(), ...kept].slice(0, KEPT);
    this.#draw();
  }

  #draw() {
    const columns = getComputedStyle(this.list).gridTemplateColumns.split(" ").length;
    const row = columns * Math.ceil(FEW / columns);
    const shown = this.#events.slice(0, this.#open ? KEPT : row);
    const known = new Map([...this.list.children].map((item) => [item.event, item]));
    const items = shown.map((event) => known.get(event) ?? item(event));
    const before = new Map([...known.values()].map((each) => [each, [each.offsetLeft, each.offsetTop]]));
    items.forEach(
      (each, k) => each !== this.list.children[k] && this.list.insertBefore(each, this.list.children[k] ?? null),
    );
    while (this.list.children.length > items.length) this.list.lastChild.remove();
    if (!this.#open) slide(before);
    byId("activity-none").hidden = this.#events.length > 0;
    byId("activity-more").hidden = this.#events.length <= row;
    this.#ages();
  }

  #ages() {
    for (const item of this.list.children) setText(item.querySelector("time"), relative(item.event.time));
  }
}

/** Lets items glide from where they were to where they are. */
function slide(before) {
  if (still.matches || document.hidden) return;
  for (const [each, [left, top]] of before) {
    const [x, y] = [left - each.offsetLeft, top - each.offsetTop];
    if (!each.isConnected || (x === 0 && y === 0)) continue;
    if (y !== 0) each.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 400 });
    else
      each.animate([{ transform: `translateX(${x}px)` }, { transform: "none" }], {
        duration: 450,
        easing: "cubic-bezier(.3,.7,.2,1)",
      });
  }
}

function item(event) {
  const tier = TIERS.includes(event.tier) ? event.tier : "semantic";
  const glyph = event.kind === "moved" && !up(event) ? "lowered" : event.kind;
  const inside = [
    h(
      "span",
      { class: "what" },
      icon(glyph in KINDS ? glyph : "updated"),
      h("b", {}, words(event)),
      h("time", { datetime: event.time, title: moment(event.time) }),
    ),
    h("span", { class: "said", dir: "auto" }, event.text ?? (event.kind === "forgotten" ? "Its words are gone." : "")),
    h("span", { class: "through" }, where(event)),
  ];
  const node = h(
    "li",
    { class: `event ${event.kind in KINDS ? event.kind : ""}`, vars: { "--tier": `var(--${tier})` } },
    ALIVE.has(event.kind)
      ? h("button", { type: "button", onclick: () => openById(event.id) }, inside)
      : h("div", {}, inside),
  );
  node.event = event;
  return node;
}

const KINDS = { stored: 1, updated: 1, moved: 1, lowered: 1, faded: 1, evicted: 1, forgotten: 1 };
