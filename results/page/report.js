"use strict";
// A cell sorts by its data-v (a number, or nothing: last), else by its text.
const value = (row, i) => { const c = row.cells[i]; return c.dataset.v !== undefined ? (c.dataset.v === "" ? null : +c.dataset.v) : c.textContent.trim(); };
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});

function sortBy(th) {
  const table = th.closest("table"), i = th.cellIndex, body = table.tBodies[0];
  const up = th.getAttribute("aria-sort") ? th.getAttribute("aria-sort") !== "ascending" : !th.classList.contains("num");
  table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const rows = [...body.rows].map(row => [value(row, i), row]);
  rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : up ? compare(a, b) : compare(b, a)));
  body.append(...rows.map(([, row]) => row));
}
document.querySelectorAll("table.sortable th").forEach(th => {
  th.tabIndex = 0;
  th.addEventListener("click", () => sortBy(th));
  th.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sortBy(th); } });
});

// Every word typed must be in a row (or run) for it to stay.
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  document.querySelectorAll("[data-f]").forEach(e => e.classList.toggle("hidden", !words.every(word => e.dataset.f.toLowerCase().includes(word))));
  document.querySelectorAll("[data-count]").forEach(e => {
    const rows = [...document.querySelectorAll(e.dataset.count)], kept = rows.filter(row => !row.classList.contains("hidden")).length;
    e.textContent = kept === rows.length ? "" : `${kept} of ${rows.length} shown`;
  });
});

document.querySelectorAll("select[data-choose]").forEach(select => {
  const show = () => document.querySelectorAll(`[data-of="${select.dataset.choose}"]`).forEach(e => e.classList.toggle("hidden", e.dataset.is !== select.value));
  select.addEventListener("change", show);
  show();
});

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement.style, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.colorScheme || (dark ? "dark" : "light");
  root.colorScheme = now === "dark" ? "light" : "dark";
});
document.querySelectorAll("button[data-copy]").forEach(button => button.addEventListener("click", async () => {
  await navigator.clipboard.writeText(button.dataset.copy);
  button.textContent = "copied";
}));
const open = () => { const e = location.hash.length > 1 && document.getElementById(decodeURIComponent(location.hash.slice(1))); if (e && e.tagName === "DETAILS") e.open = true; };
addEventListener("hashchange", open);
open();
