// What the address says: #/run/ID is the page of a run, #/row/N the runs of a row, all else the overview.

const pageTitle = document.title;
let left = null; // the overview as it was left for the page of a run: its address, and how far it was scrolled

function show(run) {
  document.getElementById("overview").hidden = run;
  document.getElementById("run").hidden = !run;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function route(event) {
  const [, kind, rest] = location.hash.match(/^#\/(run|row)\/(.*)$/s) ?? [];
  const overview = document.getElementById("overview");
  if (kind === "run") {
    if (!overview.hidden) left = { address: event ? new URL(event.oldURL).hash : "", scrolled: scrollY };
    const number = runNumber(decoded(rest));
    if (number === undefined) drawNoRun(decoded(rest));
    else drawRun(number);
    document.title = number === undefined ? pageTitle : `${titleOf(number)} – ${pageTitle}`;
    show(true);
    scrollTo(0, 0);
    document.getElementById("run").focus({ preventScroll: true });
    return;
  }
  const back = overview.hidden && left?.address === location.hash;
  document.title = pageTitle;
  show(false);
  if (back) {
    scrollTo(0, left.scrolled);
  } else if (kind === "row" && /^\d+$/.test(rest) && rest in data("runs").rows) {
    filterByRow(rest);
    document.getElementById("runs").scrollIntoView();
  } else if (location.hash && !kind) {
    document.getElementById(decoded(location.hash.slice(1)))?.scrollIntoView();
  }
}

document.documentElement.classList.add("scripted");
startTables();
startRuns();
addEventListener("hashchange", route);
route(null);
