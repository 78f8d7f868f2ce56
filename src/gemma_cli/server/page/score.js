// What a score is made of, and how sure an answer is.

import { byId, h, s } from "./dom.js";
import { part, percent } from "./format.js";

/** The parts of a score: what they are called, and what they say. Their order is that of the bar. */
const PARTS = {
  meaning: ["Meaning", "How close the memory's meaning is to the question's (cosine of their vectors)."],
  tokens: ["Tokens", "How well single words of the memory answer single words of the question, each in its context."],
  words: ["Words", "How many of the question's words stand in it, rare words counting more (BM25)."],
  words_window: ["Words around", "The same for it and the two before and after it, taken as one text."],
  words_nearby: ["Words nearby", "The same for the better of its neighbours in the session."],
  meaning_nearby: ["Meaning nearby", "How close the meaning of the better of its neighbours in the session is."],
  actor: ["Who", "Whether it comes from the one whom the question names."],
  date: ["When", "How well the time it happened fits a time that the question names."],
  importance: ["Importance", "How important it was said to be."],
  recency: ["Recency", "How recently it happened."],
  question: ["Is a question", "It ends with a question mark: who asks tells little, so this takes away."],
};

const nameOf = (key) => PARTS[key]?.[0] ?? key;
const SEEN = 0.005;

/** The parts that show, in the order of PARTS: [[key, value], …]. */
function partsOf(explanation) {
  const order = Object.keys(PARTS);
  return Object.entries(explanation ?? {})
    .filter(([, value]) => Math.abs(value) >= SEEN)
    .sort(([a], [b]) => ((order.indexOf(a) + 99) % 99) - ((order.indexOf(b) + 99) % 99));
}

/** A bar of the parts of a score; `most` is the score that fills the width. */
export function scoreBar(memory, most) {
  const parts = partsOf(memory.explanation);
  if (!parts.length) return null;
  const key = `score-${memory.id}`;
  const lost = parts.reduce((sum, [, value]) => sum + Math.min(value, 0), 0);
  const bar = h(
    "div",
    { class: "parts" },
    parts
      .filter(([, value]) => value > 0)
      .map(([name, value]) =>
        h("span", { class: "part", data: { part: name }, vars: { "flex-basis": `${(value / most) * 100}%` } }),
      ),
    lost < 0 &&
      h("span", { class: "part lost", vars: { "flex-basis": `${(-lost / most) * 100}%` }, data: { part: "question" } }),
  );
  const words = parts.map(([name, value]) => `${nameOf(name)} ${part(value)}`).join(", ");
  const button = h(
    "button",
    { type: "button", class: "score", id: key, "aria-label": `Score ${part(memory.score ?? 0)}: ${words}` },
    bar,
    h("span", { class: "sum" }, part(memory.score ?? 0)),
  );
  const show = (target) => showTip(button, breakdown(parts, target?.dataset?.part));
  button.addEventListener("pointerenter", (event) => show(event.target));
  button.addEventListener("pointerover", (event) => show(event.target));
  button.addEventListener("pointerleave", () => document.activeElement !== button && hideTip());
  button.addEventListener("focus", () => show(null));
  button.addEventListener("click", () => show(null));
  button.addEventListener("blur", hideTip);
  button.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !byId("tip").matches(":popover-open")) return;
    event.preventDefault();
    hideTip();
  });
  return button;
}

function breakdown(parts, marked) {
  return h(
    "dl",
    { class: "breakdown" },
    parts.flatMap(([name, value]) => [
      h(
        "dt",
        { class: name === marked ? "marked" : null },
        h("span", { class: "part", data: { part: name } }),
        nameOf(name),
        h("b", {}, part(value)),
      ),
      h("dd", {}, PARTS[name]?.[1] ?? ""),
    ]),
  );
}

let anchored = null;

function showTip(anchor, content) {
  const tip = byId("tip");
  tip.replaceChildren(content);
  const host = anchor.closest("dialog") ?? byId("content");
  if (tip.parentNode !== host) host.append(tip);
  if (!tip.matches(":popover-open")) tip.showPopover();
  anchored?.removeAttribute("aria-describedby");
  anchored = anchor;
  anchor.setAttribute("aria-describedby", "tip");
  place();
}

/** Puts the explanation beside what it explains; out of sight that explains nothing. */
function place() {
  if (!anchored) return;
  const tip = byId("tip");
  const box = anchored.getBoundingClientRect();
  if (!anchored.isConnected || box.bottom < 0 || box.top > innerHeight) {
    hideTip();
    return;
  }
  const room = tip.getBoundingClientRect();
  const below = box.bottom + 8 + room.height <= innerHeight;
  tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - room.width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - room.height - 8)}px`;
}

function hideTip() {
  const tip = byId("tip");
  if (tip.matches(":popover-open")) tip.hidePopover();
  anchored?.removeAttribute("aria-describedby");
  anchored = null;
}

addEventListener("scroll", place, { passive: true, capture: true });

/** The bar's key: which pattern is which part. */
export function partsKey(memories) {
  const names = Object.keys(PARTS).filter((name) =>
    memories.some((memory) => Math.abs(memory.explanation?.[name] ?? 0) >= SEEN),
  );
  return h(
    "ul",
    { class: "key", "aria-hidden": "true" },
    names.map((name) => h("li", {}, h("span", { class: "part", data: { part: name } }), nameOf(name))),
  );
}

const WORDS = [
  [0.2, "probably not there"],
  [0.4, "hardly likely to be there"],
  [0.6, "perhaps there"],
  [0.85, "probably there"],
  [Infinity, "very probably there"],
];

/** What a confidence means, in words. */
const sure = (confidence) =>
  confidence === null || confidence === undefined
    ? "how likely is not known with this model"
    : WORDS.find(([bound]) => confidence < bound)[1];

/** A drop that is filled as far as the answer is sure. */
export function gauge(confidence) {
  const known = typeof confidence === "number";
  const y = 27 - (known ? confidence : 0) * 22;
  const shape = "M15 3c5 6.200 9.500 10.700 9.500 15.500a9.500 9.500 0 0 1-19 0C5.500 13.700 10 9.200 15 3z";
  const drop = s(
    "svg",
    { viewBox: "0 0 30 31", class: "gauge-drop", "aria-hidden": "true" },
    s("clipPath", { id: "gauge-inside" }, s("path", { d: shape })),
    s("path", { class: "glass", d: shape }),
    s(
      "g",
      { "clip-path": "url(#gauge-inside)" },
      s("path", { class: "gauge-water", d: `M0 ${y}q3.750 -1.600 7.500 0t7.500 0t7.500 0t7.500 0V31H0z` }),
    ),
    s("path", { class: "wall", d: shape }),
  );
  return h(
    "p",
    { class: "gauge" },
    h(
      "span",
      known
        ? {
            role: "meter",
            "aria-label": "Confidence",
            "aria-valuemin": 0,
            "aria-valuemax": 1,
            "aria-valuenow": confidence,
            "aria-valuetext": `${percent(confidence)}, ${sure(confidence)}`,
          }
        : {},
      drop,
    ),
    h(
      "span",
      { class: "gauge-words" },
      h("b", {}, known ? `${percent(confidence)} ` : ""),
      h("span", {}, sure(confidence)),
    ),
  );
}
