// Light or dark, before anything is painted: what the person chose, else what the system says.
"use strict";
(() => {
  const NAME = "moestro.theme";
  const system = matchMedia("(prefers-color-scheme: dark)");
  let choice = "system";
  try { choice = localStorage.getItem(NAME) ?? "system"; } catch { /* A browser that keeps nothing follows the system. */ }
  const apply = () => {
    const isDark = choice === "dark" || (choice !== "light" && system.matches);
    document.documentElement.dataset.theme = isDark ? "dark" : "light";
    document.documentElement.dataset.choice = choice;
    document.dispatchEvent(new Event("themechange"));
  };
  system.addEventListener("change", apply);
  document.addEventListener("themechoice", event => {
    choice = event.detail;
    try { localStorage.setItem(NAME, choice); } catch { /* It holds until the page is left. */ }
    apply();
  });
  apply();
})();
