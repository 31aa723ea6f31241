"use strict";
const filterBox = document.getElementById("filter");

function filterRows() {
  const words = wordsOf(state.q);
  if (filterBox.value !== state.q) filterBox.value = state.q;
  document.querySelectorAll("[data-words]").forEach(e => e.classList.toggle("hidden", !matches(e.dataset.words, words)));
  document.querySelectorAll("[data-count]").forEach(e => {
    const rows = [...document.querySelectorAll(e.dataset.count)], left = rows.filter(row => !row.classList.contains("hidden")).length;
    e.textContent = left === rows.length ? "" : `The filter leaves ${left} of ${rows.length}.`;
  });
}

function setTheme() { document.documentElement.style.colorScheme = state.theme; }

function goToTarget() {
  document.querySelectorAll(".target").forEach(e => e.classList.remove("target"));
  const element = state.target && document.getElementById(state.target);
  if (!element) return;
  for (let e = element; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
  if (element.tagName !== "SECTION") element.classList.add("target");
  element.scrollIntoView({block: element.tagName === "TR" ? "center" : "start"});
}

function setUpSelects() {
  document.querySelectorAll("select[data-choose]").forEach(select => {
    const show = () => document.querySelectorAll(`[data-choice="${select.dataset.choose}"]`).forEach(e => e.classList.toggle("hidden", e.dataset.is !== select.value));
    select.addEventListener("change", show);
    show();
  });
  document.querySelectorAll("button[data-copy]").forEach(button => button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "copied";
  }));
}

function setUp() {
  setUpSelects();
  tables().forEach(setUpTable);
  setUpCharts();
  applyState();
}

filterBox.addEventListener("input", () => change({q: filterBox.value}));
document.getElementById("theme").addEventListener("click", () => {
  const now = state.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  change({theme: now === "dark" ? "light" : "dark"});
});
onState(setTheme);
onState(filterRows);
addEventListener("hashchange", () => { readState(); applyState(); goToTarget(); });
readState();
setUp();
goToTarget();
