"use strict";
// Draw every chart of the page from the specifications embedded in it. Nothing is fetched.
(async () => {
  const { config, specs } = JSON.parse(document.getElementById("specs").textContent);
  const options = { mode: "vega-lite", renderer: "svg", actions: false, config };
  for (const box of document.querySelectorAll("[data-chart]")) {
    try {
      await vegaEmbed(box, specs[box.dataset.chart], options);
      // The box around it carries the text alternative; screen readers would otherwise walk through every mark.
      box.querySelector("svg").setAttribute("aria-hidden", "true");
    } catch (error) {
      box.textContent = "This chart could not be drawn. Its numbers are below.";
      console.error(error);
    }
  }
  document.documentElement.dataset.drawn = "yes";
})();
