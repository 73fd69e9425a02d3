// Keeps a page up to date. Every page is complete without it.
"use strict";
(() => {
  const maxLines = 20000; // in the page; the rest is in the raw log
  const live = document.body.dataset.live;

  // Replaces one element by what the server renders now. Several requests in a row become one.
  let pending = null;
  function refresh(id) {
    pending ??= new Promise((done) => setTimeout(done, 400)).then(async () => {
      pending = null;
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById(id);
      const old = document.getElementById(id);
      if (fresh && old) old.replaceWith(document.adoptNode(fresh));
    }).catch(() => {}); // the next event asks again
  }

  function watchRun(url) {
    const source = new EventSource(url);
    for (const event of ["run", "job", "step"]) source.addEventListener(event, () => refresh("main"));
    source.addEventListener("done", () => { source.close(); refresh("main"); });
  }

  function followLog(url) {
    const log = document.getElementById("log");
    const source = new EventSource(url + "&from=" + log.dataset.next);
    let step = Number(log.dataset.step), shown = Number(log.dataset.try);
    source.addEventListener("line", (event) => {
      const line = JSON.parse(event.data);
      if (line.try !== shown) { // tried again: a new log
        log.replaceChildren();
        step = -1;
        shown = line.try;
      }
      if (document.getElementById("L" + line.line)) return;
      const atEnd = window.innerHeight + window.scrollY >= document.body.offsetHeight - 40;
      if (step !== line.step) {
        const heading = document.createElement("h3");
        heading.textContent = line.step ? "Step " + line.step : "Job";
        log.append(heading);
        step = line.step;
        refresh("summary");
      }
      log.append(render(line));
      while (log.childElementCount > maxLines) log.firstElementChild.remove();
      if (atEnd) window.scrollTo(0, document.body.scrollHeight);
    });
    source.addEventListener("done", () => { source.close(); refresh("summary"); });
  }

  function render(line) {
    const row = document.createElement("div");
    row.className = "line";
    row.id = "L" + line.line;
    const number = document.createElement("a");
    number.href = "#" + row.id;
    number.title = line.time;
    number.textContent = line.line;
    const text = document.createElement("span");
    for (const span of line.spans ?? []) {
      const piece = document.createElement("span");
      if (span.class) piece.className = span.class;
      piece.textContent = span.text;
      text.append(piece);
    }
    row.append(number, text);
    return row;
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-post]");
    if (!button) return;
    button.disabled = true;
    const answer = await fetch(button.dataset.post, {
      method: "POST", credentials: "same-origin",
      headers: { "Content-Type": "application/json" }, body: button.dataset.body,
    }).catch(() => null);
    if (answer?.ok) { location.reload(); return; }
    const body = await answer?.json().catch(() => null);
    button.textContent = body?.error?.message ?? "The server does not answer";
  });

  if (live?.endsWith("/events")) watchRun(live);
  else if (live) followLog(live);
})();
