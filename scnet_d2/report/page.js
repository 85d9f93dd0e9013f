"use strict";
// The chosen precision-recall curve is drawn on top, with its numbers beside it.
(() => {
  const classes = JSON.parse(document.getElementById("report-data").textContent).curves;
  const chart = document.getElementById("curves");
  const chooser = document.getElementById("curve-chooser");
  const percent = (value) => (value === null ? "–" : value.toFixed(1));
  const show = () => {
    for (const shape of chart.querySelectorAll("[data-curve]")) {
      const chosen = shape.dataset.curve === chooser.value;
      shape.classList.toggle("on", chosen);
      if (chosen) shape.parentNode.append(shape);
    }
    const curve = classes[Number(chooser.value)];
    for (const key of ["ap", "precision", "recall"]) {
      document.getElementById(`curve-${key}`).textContent = percent(curve[key]);
    }
    document.getElementById("curve-positives").textContent = String(curve.positives);
  };
  chooser.addEventListener("change", show);
  document.getElementById("curve-control").hidden = false;
  show();
})();
