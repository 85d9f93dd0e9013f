// Run once by gr.HTML, which gives `element`, `trigger` and `watch`.
let chosen = null; // class id of the label whose boxes are shown alone

function show() {
  for (const button of element.querySelectorAll("button[data-label]")) {
    button.setAttribute("aria-pressed", button.dataset.label === chosen);
  }
  for (const boxes of element.querySelectorAll("g[data-label]")) {
    boxes.classList.toggle("chosen", boxes.dataset.label === chosen);
  }
  element.querySelector("svg.photo")?.classList.toggle("one", chosen !== null);
}

function choose(label) {
  chosen = label;
  show();
}

function photographInput() {
  return document.querySelector("#upload input[type=file]");
}

// Dropped and pasted files go the way of a chosen one.
function send(files) {
  const input = photographInput();
  if (!files?.length || !input) return;
  const first = new DataTransfer();
  first.items.add(files[0]);
  input.files = first.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.label) choose(button.dataset.label === chosen ? null : button.dataset.label);
  else if (button && "choose" in button.dataset) photographInput()?.click();
  else if (event.target.closest("svg.photo")) choose(null);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") choose(null);
});

let photograph = null;
watch("value", () => {
  const shown = element.querySelector("svg.photo image")?.getAttribute("href") ?? null;
  if (shown !== photograph) chosen = null; // another photograph; else a slider has moved
  photograph = shown;
  show();
});

const droppable = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!droppable(event)) return;
  event.preventDefault();
  document.body.classList.add("dragging");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragging");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dragging");
  if (!droppable(event)) return;
  event.preventDefault();
  send(event.dataTransfer.files);
});
document.addEventListener("paste", (event) => send(event.clipboardData?.files));

// A telephone then offers its camera; Gradio's own way refuses by the name's ending.
const acceptImages = () => photographInput()?.setAttribute("accept", "image/*");
document.addEventListener("click", acceptImages, { capture: true });
