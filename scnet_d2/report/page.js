"use strict";
// The chosen precision-recall curve is drawn on top, with its numbers beside it.
(() => {
  const chart = document.getElementById("curves");
  const chooser = document.getElementById("curve-chooser");
  const show = () => {
    for (const shape of chart.querySelectorAll("[data-curve]")) {
      const chosen = shape.dataset.curve === chooser.value;
      shape.classList.toggle("on", chosen);
      if (chosen) shape.parentNode.append(shape);
    }
    const numbers = chooser.selectedOptions[0].dataset;
    for (const key of ["ap", "positives", "precision", "recall"]) {
      document.getElementById(`curve-${key}`).textContent = numbers[key];
    }
  };
  chooser.addEventListener("change", show);
  document.getElementById("curve-control").hidden = false;
  show();
})();
