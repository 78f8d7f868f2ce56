// Short messages, and the way back from what they tell of.

import { byId, h, icon, setText } from "./dom.js";
import { clock } from "./format.js";

const SHORT = 6_000;
const MOST = 3;

const region = () => byId("toasts");
const open = [];

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
  const list = byId("toast-list");
  const end = until ? new Date(until).getTime() : Date.now() + SHORT;
  let timer = 0;
  const gone = () => {
    clearTimeout(timer);
    item.remove();
  };
  const back =
    undo &&
    h(
      "button",
      {
        type: "button",
        class: "undo",
        onclick: async () => {
          gone();
          await undo();
        },
      },
      "Undo",
    );
  const item = h(
    "li",
    { class: problem ? "toast problem" : "toast" },
    h("p", {}, text, until && h("span", { class: "note" }, ` Undo until ${clock(end)}`)),
    back,
    h("button", { type: "button", class: "icon", "aria-label": "Dismiss", onclick: gone }, icon("close")),
  );
  item.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    event.preventDefault();
    gone();
  });
  list.append(item);
  while (list.children.length > MOST) list.firstElementChild.remove();
  timer = setTimeout(gone, Math.max(end - Date.now(), SHORT));
  say(back ? `${text} Undo with Control Z.` : text);
  if (focus && back) back.focus();
  return item;
}

/** Control or Command Z takes the last thing back, except where somebody is writing. */
addEventListener("keydown", (event) => {
  if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.shiftKey) return;
  if (event.target.closest?.("input:not([type=radio]), textarea")) return;
  const last = [...byId("toast-list").querySelectorAll(".undo")].at(-1);
  if (!last) return;
  event.preventDefault();
  last.click();
});

export const failed = (error) => toast(error.message, { problem: true });
