// Signing in, where the server wants a token.

import { api, events } from "./api.js";
import { byId, setText } from "./dom.js";
import { failed, openDialog } from "./toasts.js";

const KEY = "gemma-rag-signed-in";

function noted(value) {
  try {
    if (value) localStorage.setItem(KEY, "1");
    else localStorage.removeItem(KEY);
  } catch {
    // without storage nobody is offered to sign out
  }
  byId("sign-out").hidden = !value;
}

/** Asks for the token where one is wanted; `again()` after it was right. */
export function watchSession(again) {
  const dialog = byId("sign-in");
  const field = byId("token");
  const problem = byId("sign-in-error");
  try {
    byId("sign-out").hidden = localStorage.getItem(KEY) === null;
  } catch {
    // as above
  }

  events.addEventListener("locked", () => {
    if (dialog.open) return;
    noted(false);
    openDialog(dialog);
    field.focus();
  });
  dialog.addEventListener("cancel", (event) => event.preventDefault()); // there is nothing behind it

  byId("sign-in-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.hidden = true;
    try {
      await api.signIn(field.value);
      field.value = "";
      noted(true);
      dialog.close();
      again();
    } catch (error) {
      problem.hidden = false;
      setText(problem, error.status === 401 ? "That is not the token." : error.message);
      field.select();
    }
  });

  byId("sign-out").addEventListener("click", async () => {
    try {
      await api.signOut();
      noted(false);
      location.reload();
    } catch (error) {
      failed(error);
    }
  });
}
