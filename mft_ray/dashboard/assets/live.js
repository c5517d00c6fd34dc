// Figures are drawn anew when the run has changed; all else on a page htmx fetches again.
"use strict";

const dark = window.matchMedia("(prefers-color-scheme: dark)");
// The report's figures are on white: what is light there is dark here.
const NIGHT = { '"white"': '"rgba(0,0,0,0)"', "#1f2933": "#e4e7eb", "#e4e7eb": "#3a4652", "rgba(255,255,255,0.7)": "rgba(0,0,0,0)" };
let drawing = false, again = false;

function coloured(text) {
  if (!dark.matches) return text;
  return text.replace(/"white"|#1f2933|#e4e7eb|rgba\(255,255,255,0\.7\)/g, (found) => NIGHT[found]);
}

async function draw() {
  const address = document.body.dataset.figures;
  if (!address) return;
  if (drawing) { again = true; return; }
  drawing = true;
  try {
    const answer = await fetch(address);
    if (!answer.ok) return;
    const figures = JSON.parse(coloured(await answer.text()));
    for (const [name, figure] of Object.entries(figures)) {
      const place = document.getElementById(`figure-${name}`);
      if (!place) continue;
      place.closest("[data-figure]").hidden = false;
      await Plotly.react(place, figure.data, figure.layout, { responsive: true, displayModeBar: false });
      if (place.dataset.opens && !place.dataset.listens) {
        place.dataset.listens = "yes";
        place.on("plotly_click", (event) => { location.href = `/${place.dataset.opens}/${event.points[0].customdata}`; });
      }
    }
    // A figure is as wide as its place was when it was drawn; others have since come to stand beside it.
    for (const name of Object.keys(figures)) {
      const place = document.getElementById(`figure-${name}`);
      if (place) Plotly.Plots.resize(place);
    }
  } finally {
    drawing = false;
    if (again) { again = false; draw(); }
  }
}

// A table that is fetched again keeps what was marked and where the keyboard is.
let marked = [], focused = null;
document.addEventListener("htmx:beforeSwap", (event) => {
  if (event.target.id !== "board") return;
  marked = [...event.target.querySelectorAll("input:checked")].map((box) => box.id);
  const here = document.activeElement;
  focused = event.target.contains(here) ? here.id || here.getAttribute("aria-label") : null;
});
document.addEventListener("htmx:afterSwap", (event) => {
  if (event.target.id === "form-place") {
    event.target.hidden = false;
    event.target.scrollIntoView({ block: "nearest" });
    event.target.querySelector("input, select")?.focus();
  }
  if (event.target.id !== "board") return;
  for (const id of marked) { const box = document.getElementById(id); if (box) box.checked = true; }
  if (focused) (document.getElementById(focused) || event.target.querySelector(`[aria-label="${focused}"]`))?.focus();
});
document.addEventListener("click", (event) => {
  const closes = event.target.dataset?.closes;
  if (closes) document.getElementById(closes).hidden = true;
});
document.body.addEventListener("htmx:sseMessage", (event) => { if (event.detail.type === "changed") draw(); });
dark.addEventListener("change", draw);
window.addEventListener("load", draw);
