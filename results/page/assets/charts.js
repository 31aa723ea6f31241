"use strict";
// Charts: Vega-Lite specifications in data-chart, drawn when they come into view, from the frames in #data.
let frames = {}, scales = {};
const drawn = new WeakMap();  // chart -> the filter that it was drawn for
const FONT = 'system-ui, "Segoe UI", Roboto, sans-serif';
const SOFT = "var(--soft)", LINE = "var(--line)", PLAIN = {labelColor: SOFT, titleColor: SOFT, labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal"};
const CONFIG = {
  background: null, font: FONT, view: {stroke: null},
  axis: {...PLAIN, gridColor: LINE, domainColor: SOFT, tickColor: LINE, labelLimit: 220, titleLimit: 320},
  axisX: {grid: false, tickCount: 5, labelOverlap: true},
  axisY: {domain: false, ticks: false, tickCount: 5, titleAngle: 0, titleAlign: "left", titleAnchor: "end", titleX: -34, titleY: -12, titleBaseline: "bottom"},
  legend: {...PLAIN, orient: "top", symbolType: "stroke", symbolStrokeWidth: 3},
};

function loadFrames() {
  const data = JSON.parse(document.getElementById("data").textContent);
  frames = data.frames;
  scales = data.scales;
}

function rowsOf(name, where, words) {
  const columns = frames[name] || {}, names = Object.keys(columns);
  const get = (column, i) => Array.isArray(columns[column]) ? columns[column][i] : columns[column].levels[columns[column].codes[i]];
  const count = names.length ? (Array.isArray(columns[names[0]]) ? columns[names[0]] : columns[names[0]].codes).length : 0;
  const rows = [];
  for (let i = 0; i < count; i++) {
    if (!Object.entries(where).every(([column, value]) => get(column, i) === value)) continue;
    if (words.length && columns.words && !matches(get("words", i), words)) continue;
    rows.push(Object.fromEntries(names.filter(column => column !== "words").map(column => [column, get(column, i)])));
  }
  return rows;
}

const RANGES = {color: "colours", shape: "shapes", strokeDash: "dashes"};
function withScales(spec) {
  for (const [channel, range] of Object.entries(RANGES)) {
    const encoding = spec.encoding && spec.encoding[channel];
    if (encoding && encoding.field === "method") encoding.scale = {domain: scales.methods, range: scales[range]};
  }
  (spec.layer || []).forEach(withScales);
  return spec;
}

async function draw(element) {
  if (drawn.get(element) === state.q) return;
  drawn.set(element, state.q);
  const {frame, where, spec} = JSON.parse(element.dataset.chart), rows = rowsOf(frame, where, wordsOf(state.q));
  element.view?.finalize();
  if (!rows.length) { element.textContent = "nothing matches the filter"; element.classList.add("empty"); return; }
  element.classList.remove("empty");
  const full = {...withScales(spec), width: "container", autosize: {type: "fit-x", contains: "padding"}, padding: {top: 6, left: 2, right: 8, bottom: 2}, data: {values: rows}, config: CONFIG};
  const result = await vegaEmbed(element, full, {actions: false, renderer: "svg", ast: true, tooltip: {theme: "custom"}});
  element.view = result.view;
}

const inView = new IntersectionObserver(entries => entries.forEach(entry => { entry.target.near = entry.isIntersecting; if (entry.isIntersecting) draw(entry.target); }), {rootMargin: "300px"});
const setUpCharts = () => { loadFrames(); document.querySelectorAll(".chart").forEach(element => inView.observe(element)); };
let waiting = 0;
onState(() => { clearTimeout(waiting); waiting = setTimeout(() => document.querySelectorAll(".chart").forEach(element => { if (element.near) draw(element); }), 150); });
