"use strict";
// An element with data-live is fetched again from there: after each event of its stream, and every so many seconds.

function live(element) {
  let shown = null, busy = false, again = false, failed = 0;

  async function refresh() {
    if (busy || document.hidden) { again = true; return; }
    busy = true;
    again = false;
    try {
      const answer = await fetch(element.dataset.live, { headers: { Accept: "text/html" } });
      if (answer.ok) {
        const text = await answer.text();
        if (text !== shown) { if (shown !== null || text !== element.innerHTML) swap(text); shown = text; }
        failed = 0;
      }
    } catch { failed += 1; }  // the service is away: it is asked again later
    busy = false;
    if (again) setTimeout(refresh, 1000);
  }

  // Whoever is on a button, or reads a log, stays there.
  function swap(text) {
    const focused = element.contains(document.activeElement) ? document.activeElement.id : "";
    const logs = [...element.querySelectorAll("pre.log")].map((log) => [log.scrollTop, log.scrollTop + log.clientHeight >= log.scrollHeight - 4]);
    element.innerHTML = text;
    element.querySelectorAll("pre.log").forEach((log, i) => { log.scrollTop = !logs[i] || logs[i][1] ? log.scrollHeight : logs[i][0]; });
    if (focused) document.getElementById(focused)?.focus();
  }

  let stream = null, last = 0;
  function connect() {
    if (stream || !element.dataset.events) return;
    stream = new EventSource(element.dataset.events);
    for (const name of ["queue", "metrics", "state", "reset"]) stream.addEventListener(name, () => {
      const wait = Math.max(0, 700 - (Date.now() - last));
      last = Date.now() + wait;
      setTimeout(refresh, wait);
    });
    // A browser gives up on a stream that was refused; and it connects itself to one that broke off.
    stream.onerror = () => { if (stream && stream.readyState === EventSource.CLOSED) { stream = null; setTimeout(connect, 5000); } };
  }
  // A browser has six connections to a service: pages that nobody sees give theirs back.
  function visible() {
    if (!document.hidden) { connect(); refresh(); } else if (stream) { stream.close(); stream = null; }
  }
  document.addEventListener("visibilitychange", visible);
  window.addEventListener("pagehide", () => { if (stream) { stream.close(); stream = null; } });
  if (element.dataset.every) setInterval(() => { if (!document.hidden) refresh(); }, 1000 * Number(element.dataset.every));
  element.querySelectorAll("pre.log").forEach((log) => { log.scrollTop = log.scrollHeight; });
  connect();
}

document.querySelectorAll("[data-live]").forEach(live);
