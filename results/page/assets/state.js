"use strict";
// The page's state lives in its address, so that a link leads to what its sender saw:
// #target?q=words of the filter&sort=table:column:up&hide=table:column,column&theme=dark
const state = {target: "", q: "", sort: {}, hide: {}, theme: ""};
const listeners = [];
const onState = listener => { listeners.push(listener); };
const cut = (text, sign) => { const i = text.indexOf(sign); return i < 0 ? [text, ""] : [text.slice(0, i), text.slice(i + 1)]; };
const decode = text => { try { return decodeURIComponent(text); } catch { return text; } };

function readState() {
  const [target, query] = cut(location.hash.slice(1), "?");
  state.target = decode(target);
  if (!location.hash.includes("?") && state.loaded) { writeState(); return; }  // a plain link moves, and keeps the rest
  state.loaded = true;
  const values = new URLSearchParams(query);
  state.q = values.get("q") || "";
  state.theme = values.get("theme") || state.theme;
  state.sort = {};
  state.hide = {};
  for (const text of values.getAll("sort")) { const parts = text.split(":"); const way = parts.pop(), key = parts.pop(); state.sort[parts.join(":")] = [key, way]; }
  for (const text of values.getAll("hide")) { const i = text.lastIndexOf(":"); state.hide[text.slice(0, i)] = new Set(text.slice(i + 1).split(",").filter(Boolean)); }
}

function writeState() {
  const values = new URLSearchParams();
  if (state.q) values.set("q", state.q);
  for (const [table, [key, way]] of Object.entries(state.sort)) values.append("sort", `${table}:${key}:${way}`);
  for (const [table, keys] of Object.entries(state.hide)) if (keys.size) values.append("hide", `${table}:${[...keys].join(",")}`);
  if (state.theme) values.set("theme", state.theme);
  const query = values.toString();
  history.replaceState(null, "", `#${encodeURIComponent(state.target)}${query ? "?" + query : ""}`);
}

const applyState = () => listeners.forEach(listener => listener());
function change(values) { Object.assign(state, values); writeState(); applyState(); }
const wordsOf = text => text.toLowerCase().split(/\s+/).filter(Boolean);
const matches = (text, words) => { const low = text.toLowerCase(); return words.every(word => low.includes(word)); };
