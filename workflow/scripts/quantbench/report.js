"use strict";
// Draw every chart of the page from the specifications embedded in it. Nothing is fetched.
(async () => {
  const { config, specs } = JSON.parse(document.getElementById("specs").textContent);
  const options = { mode: "vega-lite", renderer: "svg", actions: false, config };
  for (const box of document.querySelectorAll("[data-chart]")) {
    // Vega writes its own role and label on the element it draws into; the box around it keeps the page's text alternative.
    const inside = box.appendChild(document.createElement("div"));
    inside.setAttribute("aria-hidden", "true");
    try {
      await vegaEmbed(inside, specs[box.dataset.chart], options);
    } catch (error) {
      box.textContent = "This chart could not be drawn. Its numbers are below.";
      console.error(error);
    }
  }
  document.documentElement.dataset.drawn = "yes";
})();
