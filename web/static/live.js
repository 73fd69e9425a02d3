// Keeps a page up to date. Every page is complete without it.
"use strict";
(() => {
  const maxLines = 20000; // in the page; the rest is in the raw log
  const live = document.body.dataset.live;

  // Replaces one element by what the server renders now, and the headings of the log's steps. Several requests in a row
  // become one. What somebody has opened or closed stays so.
  let pending = null;
  function refresh(id) {
    pending ??= new Promise((done) => setTimeout(done, 400)).then(async () => {
      pending = null;
      const answer = await fetch(location.href, { credentials: "same-origin" });
      if (!answer.ok) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const fresh = page.getElementById(id);
      const old = document.getElementById(id);
      if (!fresh || !old) return;
      const folds = [...old.querySelectorAll("section > details")], now = [...fresh.querySelectorAll("section > details")];
      folds.forEach((fold, i) => { if (fold.dataset.touched && now[i]) { now[i].open = fold.open; now[i].dataset.touched = "1"; } });
      const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      old.replaceWith(document.adoptNode(fresh));
      if (focused) document.querySelector(`#${id} a[href="${CSS.escape(focused)}"]`)?.focus();
      for (const head of page.querySelectorAll("details.step[id] > summary")) {
        document.getElementById(head.parentElement.id)?.querySelector("summary")?.replaceWith(document.adoptNode(head));
      }
    }).catch(() => {}); // the next event asks again
  }
  document.addEventListener("click", (event) => {
    const fold = event.target.closest("summary")?.parentElement;
    if (fold) fold.dataset.touched = "1";
  });

  function watchRun(url) {
    const source = new EventSource(url);
    for (const event of ["run", "job", "step"]) source.addEventListener(event, () => refresh("main"));
    source.addEventListener("done", () => { source.close(); refresh("main"); });
  }

  function followLog(url) {
    const log = document.getElementById("log");
    const source = new EventSource(url + "&from=" + log.dataset.next);
    let step = Number(log.dataset.step), shown = Number(log.dataset.try), count = 0;
    let fold = log.lastElementChild;
    let group = log.dataset.group ? fold.lastElementChild : null;
    source.addEventListener("line", (event) => {
      const line = JSON.parse(event.data);
      if (line.try !== shown) { // tried again: a new log
        log.replaceChildren();
        step = -1;
        shown = line.try;
      }
      if (document.getElementById("L" + line.line)) return;
      const atEnd = window.innerHeight + window.scrollY >= document.body.offsetHeight - 40;
      if (step !== line.step || !fold) {
        fold = beginStep(line.step);
        group = null;
        log.append(fold);
        step = line.step;
        refresh("summary");
      }
      if (line.text.startsWith("##[endgroup]")) {
        group = null;
      } else if (line.text.startsWith("##[group]")) {
        group = document.createElement("details");
        group.className = "group";
        const head = document.createElement("summary");
        head.append(render(line, "span"));
        group.append(head);
        fold.append(group);
      } else {
        (group ?? fold).append(render(line, "div"));
        if (group && line.text.startsWith("##[error]")) group.open = true;
      }
      if (++count % 100 === 0) trim(log);
      if (atEnd) window.scrollTo(0, document.body.scrollHeight);
    });
    source.addEventListener("done", () => { source.close(); refresh("summary"); });
  }

  function beginStep(number) {
    const fold = document.createElement("details");
    fold.className = "step";
    fold.open = true;
    fold.dataset.step = number;
    if (!document.getElementById("step-" + number)) fold.id = "step-" + number;
    const head = document.createElement("summary");
    head.textContent = number ? "Step " + number : "Job";
    fold.append(head);
    return fold;
  }

  function trim(log) {
    const lines = log.getElementsByClassName("line");
    while (lines.length > maxLines) (lines[0].closest("summary")?.parentElement ?? lines[0]).remove();
  }

  function render(line, element) {
    const row = document.createElement(element);
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

  // Looks for words in the log: marks the lines that have them, and goes from one to the next.
  function searchable(log) {
    const box = document.createElement("input");
    box.type = "search";
    box.placeholder = "Search the log ( / )";
    box.setAttribute("aria-label", "Search the log");
    const told = document.createElement("span");
    told.setAttribute("role", "status");
    let hits = [], at = -1, wait = 0;
    const show = (n) => {
      hits[at]?.classList.remove("here");
      at = n;
      const hit = hits[at];
      if (!hit) return;
      hit.classList.add("here");
      for (let e = hit.parentElement; e && e !== log; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
      hit.scrollIntoView({ block: "center" });
      told.textContent = `${at + 1} of ${hits.length}`;
    };
    const look = () => {
      for (const hit of hits) hit.classList.remove("hit", "here");
      const words = box.value.toLowerCase();
      hits = words ? [...log.querySelectorAll(".line")].filter((l) => l.lastElementChild.textContent.toLowerCase().includes(words)) : [];
      for (const hit of hits) hit.classList.add("hit");
      told.textContent = words && !hits.length ? "no line has that" : "";
      show(hits.length ? 0 : -1);
    };
    box.addEventListener("input", () => { clearTimeout(wait); wait = setTimeout(look, 200); });
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || !hits.length) return;
      event.preventDefault();
      show((at + (event.shiftKey ? hits.length - 1 : 1)) % hits.length);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
      event.preventDefault();
      box.focus();
    });
    const fold = document.createElement("button");
    fold.type = "button";
    fold.textContent = "Open all";
    fold.addEventListener("click", () => {
      const open = fold.textContent === "Open all";
      for (const details of log.querySelectorAll("details")) details.open = open;
      fold.textContent = open ? "Close all" : "Open all";
    });
    document.getElementById("tools")?.append(" ", box, " ", told, " ", fold);
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

  const log = document.getElementById("log");
  if (log) searchable(log);
  if (live?.endsWith("/events")) watchRun(live);
  else if (live) followLog(live);
  else if (document.getElementById("list")) {
    // The list is looked at again while somebody looks at it, often as long as something in it goes on.
    let beats = 0;
    setInterval(() => {
      const often = document.querySelector("#list .in_progress, #list .queued");
      if (!document.hidden && (often || ++beats % 6 === 0)) refresh("list");
    }, 5000);
  }
})();
