// Short messages, and the way back from what they tell of.

import { byId, h, icon, setText } from "./dom.js";
import { clock } from "./format.js";

const SHORT = 6_000;
const MOST = 3;

const region = () => byId("toasts");
const list = () => byId("toast-list");
const open = [];
/** What can be taken back, oldest first: each until its time is over, whether its message still shows or not. */
const undos = new Set();

/** Opens a dialog above everything; messages go where they can be reached, into the topmost dialog. */
export function openDialog(dialog) {
  if (!dialog.open) {
    dialog.addEventListener("close", closed);
    dialog.showModal();
    open.push(dialog);
  }
  settle();
}

function closed(event) {
  event.target.removeEventListener("close", closed);
  open.splice(open.indexOf(event.target), 1);
  settle();
}

function settle() {
  const host = open.at(-1) ?? document.body;
  if (region().parentNode !== host) host.append(region());
}

/** Says something to those who hear the page. */
export const say = (text) => setText(byId("say"), text);

/** Shows a message. `undo` is what takes it back, good until `until`; `focus`: the keyboard goes to it. */
export function toast(text, { undo, until, focus = false, problem = false } = {}) {
  const end = until ? new Date(until).getTime() : Date.now() + SHORT;
  const gone = () => {
    item.remove();
    arrange();
  };
  const over = () => {
    clearTimeout(timer);
    undos.delete(back);
    gone();
  };
  const back = async () => {
    over();
    await undo();
  };
  const button = undo && h("button", { type: "button", class: "undo", onclick: back }, "Undo");
  const item = h(
    "li",
    { class: problem ? "toast problem" : "toast" },
    h("p", {}, text, until && h("span", { class: "note" }, ` Undo until ${clock(end)}`)),
    button,
    h("button", { type: "button", class: "icon", "aria-label": "Dismiss", onclick: gone }, icon("close")),
  );
  item.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    event.preventDefault();
    gone();
  });
  const timer = setTimeout(over, Math.max(end - Date.now(), SHORT));
  if (undo) undos.add(back);
  list().append(item);
  arrange();
  say(undo ? `${text} Undo with Control Z.` : text);
  if (focus) button?.focus();
  return item;
}

/** Shows the newest message, and of the others first those that can be taken back. */
function arrange() {
  const [newest, ...others] = [...list().children].reverse();
  const lasting = (item) => item.querySelector(".undo") !== null;
  const order = [newest, ...others.filter(lasting), ...others.filter((item) => !lasting(item))];
  const shown = new Set(order.slice(0, MOST));
  for (const item of list().children) item.hidden = !shown.has(item);
}

/** Control or Command Z takes the last thing back, except where somebody is writing. */
addEventListener("keydown", (event) => {
  if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey) return;
  if (event.target.closest?.("input:not([type=radio]), textarea")) return;
  const last = [...undos].at(-1);
  if (!last) return;
  event.preventDefault();
  last();
});

export const failed = (error) => toast(error.message, { problem: true });
