// A question and its answer.

import { api } from "./api.js";
import { byId, h } from "./dom.js";
import { part, plural } from "./format.js";
import { memoryItem, tierMark } from "./memories.js";
import { gauge, partsKey, scoreBar } from "./score.js";
import { TIERS, tierName } from "./tiers.js";

const LIMIT = 6;

export class Recall {
  #run = 0;

  constructor() {
    const chips = byId("recall-tiers");
    for (const tier of ["", ...TIERS]) {
      const mark = tier ? tierMark(tier) : h("span", {}, "All tiers");
      chips.append(
        h("label", {}, h("input", { type: "radio", name: "tier", value: tier, checked: tier === "" }), mark),
      );
    }
    chips.addEventListener("change", () => byId("question").value.trim() && this.#ask());
    byId("recall-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#ask();
    });
    byId("why-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#why();
    });
  }

  #question() {
    const form = new FormData(byId("recall-form"));
    const query = form.get("query").trim();
    return { query, limit: LIMIT, ...(form.get("tier") && { tier: form.get("tier") }) };
  }

  async #ask() {
    const question = this.#question();
    if (!question.query) return;
    const run = ++this.#run;
    const answer = byId("answer");
    answer.setAttribute("aria-busy", "true");
    try {
      const { confidence, memories } = await api.recall({ ...question, explain: true, touch: false });
      byId("idle").hidden = true;
      if (run === this.#run) this.#show(question, confidence ?? null, memories);
    } catch (error) {
      if (run !== this.#run) return;
      answer.replaceChildren(h("p", { class: "problem" }, error.message));
      byId("results").replaceChildren();
    } finally {
      if (run === this.#run) answer.setAttribute("aria-busy", "false");
    }
  }

  #show(question, confidence, memories) {
    const where = question.tier ? ` in ${tierName(question.tier).toLowerCase()}` : "";
    const found = memories.length
      ? [
          gauge(confidence),
          h("p", { class: "unseen" }, plural(memories.length, "memory", "memories")),
          partsKey(memories),
        ]
      : [h("p", { class: "note" }, `Nothing was found${where}.`)];
    byId("answer").replaceChildren(...found);
    const most = Math.max(...memories.map((memory) => positive(memory.explanation)), 0.01);
    byId("results").replaceChildren(...memories.map((memory) => memoryItem(memory, (it) => scoreBar(it, most))));
  }

  async #why() {
    const room = byId("why-answer");
    const question = this.#question();
    if (!question.query) {
      room.replaceChildren(h("p", { class: "problem" }, "Type the question first."));
      byId("question").focus();
      return;
    }
    try {
      const found = await api.whyNot({ ...question, memory_id: byId("why-id").value.trim() });
      const memory = { id: "why-not", score: found.score, explanation: found.explanation };
      const most = Math.max(positive(found.explanation), found.cut ?? 0, 0.01);
      room.replaceChildren(
        h(
          "p",
          { class: "verdict", dir: "auto" },
          h("b", {}, STAGES[found.stage] ?? found.stage),
          h("br", {}),
          sentence(found.reason),
        ),
        ...[scoreBar(memory, most)].filter(Boolean),
        ...(typeof found.score === "number" && typeof found.cut === "number" && found.score < found.cut
          ? [h("p", { class: "note" }, `It lacks ${part(found.cut - found.score)}.`)]
          : []),
      );
    } catch (error) {
      room.replaceChildren(h("p", { class: "problem" }, error.message));
    }
  }
}

const STAGES = {
  missing: "It is not there",
  expired: "It has faded",
  filtered: "A filter keeps it out",
  no_words: "No word of the question is in it",
  before_tokens: "It came too low before tokens were compared",
  below_cut: "Others answer better",
  found: "It is among the answers",
};

const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
const positive = (explanation) => Object.values(explanation ?? {}).reduce((sum, value) => sum + Math.max(value, 0), 0);
