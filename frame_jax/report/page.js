// Draws every figure of the page, keeps them in the reader's light or dark mode, and lets the
// buttons show and hide arms in all of them.
"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const figures = read("figures");
  const themes = read("themes");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const arms = [...document.querySelectorAll("button[data-arm]")];
  const views = new Map();

  const choices = [...document.querySelectorAll("select[data-signal]")];

  // What the reader has chosen, as values of the figures' signals.
  const chosen = () => ({
    shown_arms: arms
      .filter((button) => button.getAttribute("aria-pressed") === "true")
      .map((button) => button.dataset.arm),
    ...Object.fromEntries(choices.map((select) => [select.dataset.signal, select.value])),
  });

  // Figures that have no such signal are left as they are.
  const setSignals = (view, values) => {
    const known = view.getState().signals;
    for (const [name, value] of Object.entries(values)) if (name in known) view.signal(name, value);
    return view.runAsync();
  };

  function showChosen() {
    for (const { view } of views.values()) setSignals(view, chosen());
  }

  async function draw(element) {
    const drawn = await vegaEmbed(element, figures[element.dataset.figure], {
      config: dark.matches ? themes.dark : themes.light,
      renderer: element.dataset.renderer,
      ast: true, // expressions are interpreted: the page's policy forbids eval
      actions: { export: true, source: false, compiled: false, editor: false },
      downloadFileName: element.dataset.figure,
    });
    views.get(element)?.finalize();
    views.set(element, drawn);
    await setSignals(drawn.view, chosen());
  }

  async function drawAll() {
    for (const element of document.querySelectorAll("[data-figure]")) await draw(element);
    document.documentElement.dataset.drawn = dark.matches ? "dark" : "light";
  }

  for (const button of arms) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
      showChosen();
    });
  }

  for (const select of choices) select.addEventListener("change", showChosen);

  dark.addEventListener("change", drawAll);
  drawAll();
})();
