"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const list = byId("latents"), search = byId("search"), only = byId("only"), sort = byId("sort"), open = byId("open");
  const texts = (card, what) => [...card.querySelectorAll(what)].map((e) => e.textContent.toLowerCase());
  const latents = [...list.children].map((card, place) => ({
    card, place, id: card.dataset.id, number: (name) => Number(card.dataset[name]), all: texts(card, ".ctx"), fired: texts(card, "mark"),
  }));
  const orders = {
    given: (a, b) => a.place - b.place,
    interest: (a, b) => b.number("interest") - a.number("interest"),
    "density-down": (a, b) => b.number("density") - a.number("density"),
    "density-up": (a, b) => a.number("density") - b.number("density"),
    max: (a, b) => b.number("max") - a.number("max"),
    cosine: (a, b) => b.number("cosine") - a.number("cosine"),
    id: (a, b) => a.number("id") - b.number("id"),
  };

  const show = () => {
    const wanted = search.value.toLowerCase(), asked = wanted.trim().replace(/^#/, "");
    const numbered = (one) => one.id === asked;
    const fits = (one) => !asked || numbered(one) || (only.checked ? one.fired : one.all).some((text) => text.includes(wanted));
    const order = orders[sort.value];
    const sorted = [...latents].sort((a, b) => numbered(b) - numbered(a) || order(a, b) || a.place - b.place);
    let count = 0;
    for (const one of sorted) {
      one.card.hidden = !fits(one);
      count += !one.card.hidden;
    }
    list.append(...sorted.map((one) => one.card));
    byId("none").hidden = count > 0;
    byId("count").textContent = `${count} of ${latents.length}`;
  };

  const openAll = () => {
    const opened = open.getAttribute("aria-pressed") !== "true";
    open.setAttribute("aria-pressed", String(opened));
    open.textContent = opened ? "Close all" : "Open all";
    for (const details of list.querySelectorAll("details")) details.open = opened;
  };

  // A link to a latent that the search has hidden shows it again.
  const follow = () => {
    const card = /^#latent-\d+$/.test(location.hash) && byId(location.hash.slice(1));
    if (!card) return;
    if (card.hidden) {
      search.value = "";
      show();
    }
    card.scrollIntoView();
    card.focus({ preventScroll: true });
  };

  let waiting;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, 120);
  });
  only.addEventListener("change", show);
  sort.addEventListener("change", show);
  open.addEventListener("click", openAll);
  byId("tools").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
    } else if (event.key === "Escape" && event.target === search) {
      search.value = "";
      show();
    }
  });
  show();
  follow();
})();
