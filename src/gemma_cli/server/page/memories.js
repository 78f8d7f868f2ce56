// One memory on the page, and what can be done with it.

import { api } from "./api.js";
import { byId, h, icon, setText } from "./dom.js";
import { firstWords, isolated, leaving, moment, percent, plural, relative } from "./format.js";
import { TIERS, tierName } from "./tiers.js";
import { failed, openDialog, toast } from "./toasts.js";

/** A mark with a tier's colour and name. */
export const tierMark = (tier) =>
  h(
    "span",
    { class: "tier-mark", vars: { "--tier": `var(--${TIERS.includes(tier) ? tier : "semantic"})` } },
    tierName(tier),
  );

const everywhere = (id) => document.querySelectorAll(`[data-memory="${CSS.escape(id)}"]`);

/** Brings every place that shows a memory up to date; null: it is gone. */
function spread(id, memory) {
  for (const place of everywhere(id)) place.update?.(memory);
}

async function attempt(button, work) {
  if (button.getAttribute("aria-disabled") === "true") return;
  button.setAttribute("aria-disabled", "true"); // a disabled button would lose the focus
  try {
    await work();
  } catch (error) {
    failed(error);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}

export async function pin(memory, pinned) {
  const changed = await api.change(memory.id, { pinned });
  spread(memory.id, changed);
  return changed;
}

async function move(memory, tier) {
  const before = memory.tier;
  spread(memory.id, await api.change(memory.id, { tier }));
  toast(`Moved from ${tierName(before).toLowerCase()} to ${tierName(tier).toLowerCase()}.`);
}

async function forget(memory, byKeyboard) {
  const { undo, undo_until: until } = await api.forget(memory.id);
  if (byId("detail").open) byId("detail").close();
  spread(memory.id, null);
  const back = async () => {
    try {
      const restored = await api.undo(undo);
      spread(memory.id, restored);
      toast("It is remembered again.");
      [...everywhere(memory.id)]
        .find((place) => place.checkVisibility?.())
        ?.querySelector("button")
        ?.focus();
    } catch (error) {
      failed(error.status === 404 ? new Error("It is too late to take that back.") : error);
    }
  };
  toast(`Forgotten: “${isolated(firstWords(memory.content, 40))}”.`, { undo: undo && back, until, focus: byKeyboard });
}

/** Pin, move, forget: the controls of a memory. `current()` is the memory as it is now. */
function controls(current) {
  const pinning = h(
    "button",
    {
      type: "button",
      class: "quiet pin",
      "aria-pressed": "false",
      onclick: (event) => attempt(event.currentTarget, () => pin(current(), !current().pinned)),
    },
    icon("pin"),
    h("span", {}, "Pin"),
  );
  const moving = h(
    "select",
    {
      class: "quiet",
      "aria-label": "Move to a tier",
      onchange: (event) => {
        const tier = event.target.value;
        event.target.value = "";
        if (tier) attempt(event.target, () => move(current(), tier));
      },
    },
    h("option", { value: "" }, "Move to…"),
    TIERS.map((tier) => h("option", { value: tier }, tierName(tier))),
  );
  const forgetting = h(
    "button",
    {
      type: "button",
      class: "quiet forget",
      onclick: (event) => attempt(event.currentTarget, () => forget(current(), event.detail === 0)),
    },
    icon("forgotten"),
    h("span", {}, "Forget"),
  );
  const show = (memory) => {
    pinning.setAttribute("aria-pressed", String(Boolean(memory.pinned)));
    pinning.lastChild.textContent = memory.pinned ? "Pinned" : "Pin";
    for (const option of moving.options) option.disabled = option.value === memory.tier;
  };
  return { show, nodes: [pinning, moving, forgetting] };
}

function facts(memory) {
  const words = [`importance ${percent(memory.importance)}`];
  if (memory.actor) words.push(`by ${isolated(memory.actor)}`);
  words.push(memory.occurred_at ? `happened ${relative(memory.occurred_at)}` : `stored ${relative(memory.created_at)}`);
  if (memory.access_count) words.push(`recalled ${plural(memory.access_count, "time")}`);
  words.push(memory.pinned ? "stays while pinned" : memory.expires_at ? leaving(memory.expires_at) : "stays for ever");
  return words.join(" · ");
}

/** A memory as an item of a list. `extra(memory)`: nodes that stand below its facts. */
export function memoryItem(memory, extra = () => []) {
  let current = memory;
  const tools = controls(() => current);
  const text = h("button", { type: "button", class: "content", dir: "auto", onclick: () => openMemory(current) });
  const line = h("p", { class: "facts" });
  const item = h(
    "li",
    { class: "memory", data: { memory: memory.id } },
    text,
    line,
    extra(memory),
    h("div", { class: "tools", role: "group", "aria-label": "This memory" }, tools.nodes),
  );
  item.update = (changed) => {
    item.hidden = changed === null;
    if (changed === null) return;
    current = changed; // fields that are not there are empty now
    setText(text, firstWords(current.content, 280));
    line.replaceChildren(tierMark(current.tier), h("span", { dir: "auto" }, facts(current)));
    tools.show(current);
  };
  item.update(memory);
  return item;
}

const FIELDS = [
  ["Tier", (memory) => tierMark(memory.tier)],
  ["Importance", (memory) => percent(memory.importance)],
  ["Stored", (memory) => moment(memory.created_at)],
  ["Happened", (memory) => memory.occurred_at && moment(memory.occurred_at)],
  [
    "Leaves",
    (memory) =>
      memory.pinned
        ? "not while it is pinned"
        : memory.expires_at
          ? `${moment(memory.expires_at)} (${relative(memory.expires_at)})`
          : "never",
  ],
  ["Recalled", (memory) => plural(memory.access_count ?? 0, "time")],
  ["From", (memory) => memory.actor],
  ["Session", (memory) => memory.session],
  ["Tags", (memory) => memory.tags?.join(", ")],
  [
    "Metadata",
    (memory) =>
      memory.metadata &&
      h("pre", { tabindex: "0", "aria-label": "Metadata" }, JSON.stringify(memory.metadata, null, 2)),
  ],
  ["Id", (memory) => h("code", {}, memory.id)],
];

/** Opens a memory by itself. */
export function openMemory(memory) {
  const body = byId("detail-body");
  let current = memory;
  const tools = controls(() => current);
  const text = h("p", { class: "whole", dir: "auto", tabindex: "0" });
  const table = h("dl", {});
  const room = h("div", { data: { memory: memory.id } }, text, table, h("div", { class: "tools" }, tools.nodes));
  room.update = (changed) => {
    if (changed === null) return;
    current = changed; // fields that are not there are empty now
    setText(text, current.content);
    table.replaceChildren(
      ...FIELDS.flatMap(([name, read]) => {
        const value = read(current);
        return value ? [h("dt", {}, name), h("dd", { dir: "auto" }, value)] : [];
      }),
    );
    tools.show(current);
  };
  room.update(memory);
  body.replaceChildren(room);
  openDialog(byId("detail"));
  byId("detail-title").focus();
}

/** Opens a memory of which the id alone is known. */
export async function openById(id) {
  try {
    openMemory(await api.memory(id));
  } catch (error) {
    if (error.status === 404) toast("That memory is not there any more.");
    else failed(error);
  }
}

const PAGE = 50;

/** The list of a tier. */
export class Browser {
  #tier = null;
  #next = null;

  constructor() {
    byId("browse-more").addEventListener("click", (event) => attempt(event.currentTarget, () => this.#more(true)));
  }

  async open(tier, held) {
    this.#tier = tier;
    this.#next = null;
    setText(byId("browse-title"), tierName(tier));
    setText(byId("browse-note"), "Reading");
    byId("browse-list").replaceChildren();
    byId("browse-more").hidden = true;
    openDialog(byId("browse"));
    byId("browse-title").focus();
    try {
      await this.#more(false);
      const shown = byId("browse-list").children.length;
      setText(
        byId("browse-note"),
        shown === 0 ? "It is empty." : `${plural(Math.max(held ?? 0, shown), "memory", "memories")}, newest first.`,
      );
    } catch (error) {
      setText(byId("browse-note"), error.message);
    }
  }

  async #more(focus) {
    const tier = this.#tier;
    const page = await api.memories({ tier, limit: PAGE, ...(this.#next && { after: this.#next }) });
    if (tier !== this.#tier) return; // another tier was opened meanwhile
    const items = page.memories.map((memory) => memoryItem(memory));
    byId("browse-list").append(...items);
    this.#next = page.next ?? null;
    if (focus) items[0]?.querySelector("button").focus();
    byId("browse-more").hidden = this.#next === null;
  }
}
