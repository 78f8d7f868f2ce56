// The page: what comes over the stream, and which part shows it.

import { Activity } from "./activity.js";
import { api } from "./api.js";
import { byId, h, icon, setText } from "./dom.js";
import { Forecast } from "./forecast.js";
import { count, lasting, plural } from "./format.js";
import { History } from "./history.js";
import { Instruments } from "./instruments.js";
import { Live } from "./live.js";
import { Browser } from "./memories.js";
import { Motion } from "./motion.js";
import { Recall } from "./recall.js";
import { watchSession } from "./session.js";
import { failed, toast } from "./toasts.js";
import { FLOW, Vessels } from "./vessels.js";

const STATES = { live: "Live", waiting: "Reconnecting", locked: "Needs a token" };

const live = new Live();
const history = new History();
const browser = new Browser();
const vessels = new Vessels(byId("vessels"), (tier) => browser.open(tier, history.last?.tiers?.[tier]?.count));
const motion = new Motion(byId("air"), byId("stage"), vessels);
const activity = new Activity();
const forecast = new Forecast();
const instruments = new Instruments();
new Recall();

let store = null;

live.addEventListener("hello", ({ detail: hello }) => {
  store = hello.store;
  vessels.describe(hello.tiers);
  history.load(hello.history ?? []);
  activity.load(hello.activity ?? []);
  setText(byId("where"), [hello.store.namespace, place(hello.store.url)].filter(Boolean).join(" · "));
  byId("where").title = hello.store.url ?? "";
  const built = [
    `gemma-rag ${hello.version}`,
    hello.store.model,
    hello.store.engine,
    `up ${lasting(hello.uptime_seconds)}`,
  ];
  setText(byId("build"), built.filter(Boolean).join(" · "));
  show();
  forecast.soon(0);
});

live.addEventListener("sample", ({ detail: sample }) => {
  history.push(sample);
  show();
});

live.addEventListener("activity", ({ detail: { events, more } }) => {
  activity.add(events, more);
  motion.show(events);
  forecast.soon();
  if (more) setText(byId("activity-title"), `Latest, and ${count(more)} more`);
  else setText(byId("activity-title"), "Latest");
});

live.addEventListener("state", () => {
  const label = byId("connection");
  label.dataset.state = live.state;
  setText(label, STATES[live.state]);
});

function show() {
  const sample = history.last;
  if (!sample) return;
  const problem = byId("problem");
  problem.hidden = !sample.error;
  if (sample.error) setText(problem, `The store can't be read now: ${sample.error}`);
  if (!sample.tiers) return;
  const flow = history.flow(FLOW);
  const total = vessels.show(sample.tiers, flow);
  const sums = Object.values(flow).reduce((all, { arrived, left }) => [all[0] + arrived, all[1] + left], [0, 0]);
  setText(byId("total"), count(total));
  setText(byId("total-word"), total === 1 ? "memory" : "memories");
  setText(
    byId("flow"),
    sums[0] + sums[1]
      ? `${plural(sums[0], "arrival")} and ${plural(sums[1], "departure")} in the last 5 minutes`
      : "All quiet for 5 minutes",
  );
  begin(total === 0 && !sample.error);
  instruments.show(history);
}

/** How to begin, while nothing is remembered. */
function begin(empty) {
  const room = byId("beginning");
  room.hidden = !empty;
  if (!empty || room.children.length) return;
  room.append(
    h("h3", {}, "Nothing is remembered yet"),
    h("p", { class: "note" }, "Store a first memory, and watch it arrive."),
  );
  if (reachable(store?.url)) {
    const [url, namespace] = [store.url, store.namespace].map(quoted);
    room.append(
      line(`gemma-rag --url ${url} --namespace ${namespace} remember "Mara prefers oat milk in her flat white."`),
    );
  }
  api.description().then(({ paths }) => room.append(line(request(paths["/api/v1/memories"].post.security))), failed);
}

/** Whether another process finds the store by the address that is told: no login is left out of it. */
const reachable = (url) => Boolean(url) && !url.startsWith("memory:") && !url.includes("***");

/** A word for a shell, as it is. */
const quoted = (word) => (/^[\w:/.~+-]+$/u.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** A request that stores a memory; `guarded`: the server wants its token. */
function request(guarded) {
  const token = guarded ? ' -H "authorization: Bearer $GEMMA_RAG_SERVER_TOKEN"' : "";
  const kind = "-H 'content-type: application/json'";
  return `curl ${location.origin}/api/v1/memories ${kind}${token} -d '{"content": "Mara prefers oat milk."}'`;
}

function line(text) {
  const copy =
    navigator.clipboard &&
    h(
      "button",
      {
        type: "button",
        class: "quiet",
        onclick: async () => {
          try {
            await navigator.clipboard.writeText(text);
            toast("Copied.");
          } catch {
            toast("The browser does not let this page copy.", { problem: true });
          }
        },
      },
      "Copy",
    );
  return h(
    "div",
    { class: "command" },
    h("pre", { tabindex: "0", "aria-label": "Command" }, h("code", {}, text)),
    copy,
  );
}

/** The end of a store's address, which tells it from others; the whole is its title. Null: not open yet. */
function place(url) {
  if (!url) return "";
  const [scheme, rest = ""] = url.split("://");
  return scheme === "sqlite" ? rest.split("/").at(-1) : url;
}

for (const button of document.querySelectorAll("[data-close]")) {
  button.append(icon("close"));
  button.addEventListener("click", () => button.closest("dialog").close());
}

watchSession(() => live.restart());
live.start();
