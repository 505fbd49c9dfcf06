// The page of one run.

const GROUPS = [
  ["Quality", ["metric", "metrics"]],
  ["What the method says of itself", ["method"]],
  ["Parameters and ranks", ["params", "rank"]],
  ["Memory", ["memory"]],
  ["Time and steps", ["time", "steps"]],
  ["Data", ["data"]],
  ["Code, libraries, machine", ["git", "versions", "hardware"]],
  ["Config", ["config"]],
];

function pairs(entries) {
  return el("table", { class: "pairs" }, el("tbody", {}, entries.map(([name, shown]) =>
    el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, shown)))));
}

function repeat(number) {
  const commit = value("git.commit", number);
  const lines = commit === null ? [command(number)] : [`git checkout ${commit}`, command(number)];
  const missing = [];
  if (commit === null) missing.push("The commit of its code is not recorded.");
  if (value("git.dirty", number)) missing.push("Its code had uncommitted changes: the commit alone does not give it.");
  if (data("runs").foreign.includes(number))
    missing.push(`Its method, ${value("config.variant._target_", number)}, is no part of this code: it has to be where Python finds it (PYTHONPATH).`);
  return [el("h3", {}, "Repeat this run"), el("pre", {}, el("code", {}, lines.join("\n"))),
    missing.map((text) => el("p", { class: "warning" }, text)),
    el("p", {}, "A run that is finished where runs land is skipped: with another runs_dir it is made once more.")];
}

function tracker(number) {
  const found = data("trackers")[number];
  if (found === null) return [];
  if (typeof found === "string") return [el("h3", {}, "Tracker"), el("p", {}, found)];
  const { name = "tracker", url, ...others } = found;
  const link = url === undefined ? "no link to it is recorded; to find it:" : el("a", { href: url, rel: "noreferrer noopener" }, url);
  return [el("h3", {}, "Tracker"), el("p", {}, `${name}: `, link), pairs(Object.entries(others))];
}

function curves(number) {
  const { steps, runs } = data("curves");
  const found = runs[number];
  if (typeof found === "string") return [el("h3", {}, "Learning curves"), el("p", {}, `Not drawn: ${found}.`)];
  return [el("h3", {}, "Learning curves"), el("p", {}, "As logged, over optimizer steps. Pointing at a curve says its values."),
    el("div", { class: "charts" }, found.map(([name, place, values, logged]) => chart(name, steps[place], values, logged)))];
}

function layers(number) {
  const { layouts, reasons, runs } = data("ranks");
  const found = runs[number];
  if (typeof found === "number") return [el("h3", {}, "Ranks of layers"), el("p", {}, `Not drawn: ${reasons[found]}.`)];
  const [place, begin, start, end, last, times] = found;
  const sum = (ranks) => grouped(ranks.reduce((total, rank) => total + rank, 0));
  const changed = times > 1 ? `At step ${end}, after ${times - 1} changes: total ${sum(last)}; at step ${begin} it was ${sum(start)}.`
    : `From step ${begin} to the end: total ${sum(last)}.`;
  return [el("h3", {}, "Ranks of layers"), el("p", {}, changed), heat(layouts[place], last)];
}

function fields(number) {
  const all = Object.keys(data("runs").fields).filter((name) => value(name, number) !== null);
  const find = el("input", { type: "search", autocomplete: "off", placeholder: "name or value" });
  const shown = el("output", { "aria-live": "polite" });
  const groups = GROUPS.map(([title, names]) => {
    const here = all.filter((name) => name.includes(".") && names.includes(name.split(".", 1)[0]));
    const shownName = (name) => (title === "Config" ? name.slice("config.".length) : name);
    const table = pairs(here.map((name) => [shownName(name), readable(name, value(name, number))]));
    return { title, table, box: el("details", { open: title !== "Config" }, el("summary", {}, el("h3", {}, `${title} `), `(${here.length})`), table), count: here.length };
  }).filter((group) => group.count);
  const filter = () => {
    const sought = words(find.value);
    let hits = 0;
    for (const group of groups) {
      let own = 0;
      for (const row of group.table.rows) {
        row.hidden = !sought.every((word) => row.textContent.toLowerCase().includes(word));
        own += !row.hidden;
      }
      group.box.hidden = own === 0;
      group.box.open = sought.length ? true : group.title !== "Config";
      hits += own;
    }
    shown.textContent = sought.length ? `${hits} fields` : "";
  };
  find.addEventListener("input", filter);
  return [el("div", { class: "tools" }, el("label", {}, "Find a field ", find), shown), el("div", { class: "fields" }, groups.map((group) => group.box))];
}

function identity(number) {
  const names = ["run_id", "study", "variant", "task", "model", "seed", "status", "started", "finished"];
  const known = names.filter((name) => value(name, number) !== null).map((name) => [name, plain(value(name, number))]);
  const steps = value("steps.done", number), total = value("steps.total", number);
  const shown = [...known, ["metric", metric(number)], ["checkpoint", [value("metric.checkpoint", number), value("metric.split", number)].filter(Boolean).join(", on ")],
    ["steps", steps === null ? "" : `${steps} of ${total ?? "?"}`], ["overrides", (value("overrides", number) ?? []).join(" ")],
    ["folder", data("runs").folder[number]]];
  return pairs(shown.filter(([, text]) => text !== ""));
}

// Links to the run before and the run behind, in the order of the table of runs.
function neighbours(number) {
  const place = state.shown.indexOf(number);
  const link = (to, text) => (place < 0 || to === undefined ? null : el("a", { href: linkTo(to) }, text));
  return el("nav", { "aria-label": "Runs" }, el("a", { href: "#runs" }, "All runs"), " ",
    link(state.shown[place - 1], "Run before"), " ", link(state.shown[place + 1], "Next run"));
}

function titleOf(number) {
  return `${labelOf(number)} on ${value("task", number)}, seed ${value("seed", number)}`;
}

function drawRun(number) {
  const error = value("status", number) === "failed" ? value("error", number) ?? "no error recorded" : null;
  document.getElementById("run").replaceChildren(...[
    el("h2", {}, titleOf(number)), neighbours(number),
    error === null ? null : el("p", { class: "failed" }, "This run failed."),
    error === null ? null : el("pre", {}, error),
    el("div", { class: "scroll" }, identity(number)), tracker(number), repeat(number), curves(number), layers(number), fields(number),
  ].flat(2).filter((part) => part !== null));
}

function drawNoRun(id) {
  document.getElementById("run").replaceChildren(el("h2", {}, "No such run"), el("p", {}, `This page has no run ${id}.`),
    el("p", {}, el("a", { href: "#runs" }, "All runs")));
}
