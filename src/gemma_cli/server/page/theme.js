// A classic script in the head: the colours are chosen before the first paint.
"use strict";

(() => {
  const KEY = "gemma-rag-theme";
  const read = () => {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null; // storage may be forbidden; the choice then lasts as long as the page
    }
  };
  const apply = (choice) => {
    if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
    else delete document.documentElement.dataset.theme;
  };
  const chosen = read() ?? "auto";
  apply(chosen);
  addEventListener("DOMContentLoaded", () => {
    const group = document.getElementById("theme");
    const radio = group.querySelector(`input[value="${CSS.escape(chosen)}"]`);
    if (radio) radio.checked = true;
    group.addEventListener("change", (event) => {
      apply(event.target.value);
      try {
        localStorage.setItem(KEY, event.target.value);
      } catch {
        // as above
      }
      document.dispatchEvent(new Event("theme"));
    });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
      document.dispatchEvent(new Event("theme"));
    });
  });
})();
