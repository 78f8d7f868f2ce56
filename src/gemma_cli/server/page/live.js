// The stream of what happens. It comes back by itself, however it was lost.

import { ApiError, api } from "./api.js";

const SHORTEST = 1_000;
const LONGEST = 10_000;
const UNSEEN = 60_000;
const SILENCE = 45_000; // the server sends something at least every 15 s

/** Tells `hello`, `sample` and `activity` (with `detail`), and `state`: live, waiting or locked. */
export class Live extends EventTarget {
  #source = null;
  #timer = 0;
  #watchdog = 0;
  #sleep = 0;
  #turn = 0;
  #wait = SHORTEST;
  state = "waiting";

  start() {
    addEventListener("online", () => this.restart());
    document.addEventListener("visibilitychange", () => {
      clearTimeout(this.#sleep);
      if (document.hidden) this.#sleep = setTimeout(() => this.#rest(), UNSEEN);
      else if (this.state === "waiting") this.restart();
    });
    this.#open();
  }

  /** Tries at once. */
  restart() {
    this.#wait = SHORTEST;
    this.#close();
    this.#open();
  }

  #open() {
    const source = new EventSource("api/v1/live");
    this.#source = source;
    for (const kind of ["hello", "sample", "activity"]) {
      source.addEventListener(kind, (event) => {
        this.#wait = SHORTEST;
        this.#listen();
        this.#become("live");
        this.dispatchEvent(new CustomEvent(kind, { detail: JSON.parse(event.data) }));
      });
    }
    source.addEventListener("error", () => this.#lost());
  }

  /** Browsers allow a server six streams over all their tabs: one that nobody sees gives its own back. */
  #rest() {
    this.#close();
    this.#become("waiting");
  }

  #listen() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#lost(), SILENCE);
  }

  #close() {
    this.#turn += 1;
    clearTimeout(this.#timer);
    clearTimeout(this.#watchdog);
    this.#source?.close();
    this.#source = null;
  }

  async #lost() {
    this.#close();
    const turn = this.#turn;
    if (this.state !== "locked") this.#become("waiting");
    const wait = this.#wait;
    this.#wait = Math.min(this.#wait * 1.6, LONGEST);
    try {
      await api.hello(); // an EventSource does not tell why it failed
    } catch (error) {
      if (turn === this.#turn && error instanceof ApiError && error.status === 401) {
        this.#become("locked");
        return;
      }
    }
    if (turn !== this.#turn) return; // it was opened anew, or put to rest, meanwhile
    this.#timer = setTimeout(() => this.#open(), wait);
  }

  #become(state) {
    if (state === this.state) return;
    this.state = state;
    this.dispatchEvent(new Event("state"));
  }
}
