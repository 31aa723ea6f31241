"use strict";
// Asks the server for a newer page, and puts its sections in the place of these.
let tag = "";
async function renew() {
  const note = document.getElementById("live");
  try {
    const response = await fetch(location.pathname, {headers: tag ? {"If-None-Match": tag} : {}, cache: "no-store"});
    if (response.status === 200) {
      const next = response.headers.get("ETag"), first = !tag;
      tag = next;
      if (!first) replace(new DOMParser().parseFromString(await response.text(), "text/html"));
    }
    document.getElementById("live").textContent = "renewed while runs write";
  } catch { note.textContent = "the server has stopped; this is its last state"; }
  setTimeout(renew, 2000);
}

function replace(next) {
  const open = [...document.querySelectorAll("details[open]")].map(e => e.id).filter(Boolean);
  const chosen = [...document.querySelectorAll("select[data-choose]")].map(e => [e.dataset.choose, e.value]);
  const top = scrollY;
  for (const name of ["header", "nav span", "main", "footer", "#data"]) document.querySelector(name).replaceWith(next.querySelector(name));
  open.forEach(id => { const e = document.getElementById(id); if (e) e.open = true; });
  chosen.forEach(([name, value]) => { const e = document.querySelector(`select[data-choose="${name}"]`); if (e && [...e.options].some(o => o.value === value)) e.value = value; });
  setUp();
  scrollTo({top, behavior: "instant"});
}
renew();
