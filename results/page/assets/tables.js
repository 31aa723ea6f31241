"use strict";
// Tables: sorting, choice of columns, saving as CSV, and a hint where one scrolls sideways.
const tables = () => [...document.querySelectorAll("[data-table]")];
const columnsOf = table => [...table.querySelectorAll("thead th[data-key]")];

// A numeric cell sorts by data-value (nothing sorts last), else by its text.
const sortValue = cell => cell.dataset.value === undefined ? cell.textContent.trim() : cell.dataset.value === "" ? null : +cell.dataset.value;
const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, {numeric: true});

function sortTable(table) {
  const [key, way] = state.sort[table.dataset.table] || [];
  const heads = columnsOf(table), i = heads.findIndex(head => head.dataset.key === key), body = table.querySelector("tbody");
  heads.forEach((head, j) => j === i ? head.setAttribute("aria-sort", way === "up" ? "ascending" : "descending") : head.removeAttribute("aria-sort"));
  const rows = [...body.rows];
  rows.forEach((row, j) => { row.dataset.order ??= j; });
  if (i < 0) rows.sort((a, b) => a.dataset.order - b.dataset.order);
  else {
    const values = new Map(rows.map(row => [row, sortValue(row.cells[i])]));
    rows.sort((a, b) => { const x = values.get(a), y = values.get(b); return (x === null) - (y === null) || (x === null ? 0 : way === "up" ? compare(x, y) : compare(y, x)); });
  }
  body.append(...rows);
}

function showColumns(table) {
  const hidden = state.hide[table.dataset.table] || new Set();
  columnsOf(table).forEach((head, i) => {
    const hide = hidden.has(head.dataset.key);
    if (head.hidden !== hide) [head, ...[...table.querySelectorAll("tbody tr")].map(row => row.cells[i])].forEach(cell => { cell.hidden = hide; });
  });
  table.querySelectorAll(".columns input").forEach(box => { box.checked = !hidden.has(box.value); });
}

// A text that a spreadsheet would run as a formula gets an apostrophe in front.
const csvField = value => { const text = typeof value === "string" && /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(value) ? "'" + value : String(value ?? ""); return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text; };
const csvValue = cell => cell.dataset.csv ?? (cell.dataset.value === undefined ? cell.textContent.trim().replace(/\s+/g, " ") : cell.dataset.value === "" ? "" : +cell.dataset.value);

function csvOf(table) {
  const heads = columnsOf(table), chosen = heads.map((head, i) => i).filter(i => !heads[i].hidden && !heads[i].classList.contains("plot"));
  const rows = [...table.querySelectorAll("tbody tr")].filter(row => !row.classList.contains("hidden"));
  const lines = [chosen.map(i => heads[i].textContent.trim()), ...rows.map(row => chosen.map(i => csvValue(row.cells[i])))];
  return lines.map(line => line.map(csvField).join(",") + "\r\n").join("");
}

function saveCsv(table) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csvOf(table)], {type: "text/csv"}));
  link.download = `${table.dataset.table}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function hintScrolling(table) {
  const scroll = table.querySelector(".scroll");
  table.querySelector(".scroll-hint").hidden = scroll.scrollWidth <= scroll.clientWidth + 2;
}

function toggleSort(table, head) {
  const [key, way] = state.sort[table.dataset.table] || [], first = head.classList.contains("num") ? "down" : "up";
  const next = key !== head.dataset.key ? first : way === "up" ? "down" : "up";
  change({sort: {...state.sort, [table.dataset.table]: [head.dataset.key, next]}});
}

function setUpTable(table) {
  const heads = columnsOf(table), boxes = table.querySelector(".columns div");
  heads.filter(head => !head.classList.contains("plot")).forEach(head => {
    head.tabIndex = 0;
    head.addEventListener("click", () => toggleSort(table, head));
    head.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggleSort(table, head); } });
  });
  heads.slice(1).forEach(head => {
    const label = document.createElement("label"), box = document.createElement("input");
    box.type = "checkbox";
    box.value = head.dataset.key;
    box.addEventListener("change", () => {
      const hidden = new Set(state.hide[table.dataset.table]);
      box.checked ? hidden.delete(box.value) : hidden.add(box.value);
      change({hide: {...state.hide, [table.dataset.table]: hidden}});
    });
    label.append(box, ` ${head.textContent.trim().split("\n")[0]}`);
    boxes.append(label);
  });
  table.querySelector("button[data-csv]").addEventListener("click", () => saveCsv(table));
  new ResizeObserver(() => hintScrolling(table)).observe(table.querySelector(".scroll"));
}
onState(() => tables().forEach(table => { sortTable(table); showColumns(table); hintScrolling(table); }));
