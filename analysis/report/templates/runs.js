// The table of all runs. Of many, one leaf of rows is in the page at a time.

const LEAF = 50;

const COLUMNS = [
  { name: "run", first: "ascending", of: labelOf, sorted: (n) => rowsOf(n)[0], head: true },
  { name: "task", first: "ascending", of: (n) => value("task", n), text: true },
  { name: "seed", first: "ascending", of: (n) => String(value("seed", n)), sorted: (n) => value("seed", n) },
  { name: "metric", first: "descending", of: metric, sorted: (n) => value("metric.value", n) },
  { name: "status", first: "ascending", of: (n) => value("status", n), text: true },
  { name: "trainable", first: "ascending", ...count("params.adapter_start") },
  { name: "effective", first: "ascending", ...count("params.effective") },
  { name: "train s", first: "ascending", of: (n) => value("time.train", n)?.toFixed(1) ?? "", sorted: (n) => value("time.train", n) },
  { name: "model", first: "ascending", of: (n) => value("model", n), text: true },
  { name: "run_id", first: "ascending", of: (n) => value("run_id", n), text: true },
];

function count(name) {
  const of = (n) => (value(name, n) === null ? "" : human(value(name, n)));
  return { of, sorted: (n) => value(name, n) };
}

// One more column, of any field of the record.
const further = (name) => ({ name, first: "ascending", of: (n) => plain(value(name, n)), sorted: (n) => sortKey(value(name, n)) });
const sortKey = (any) => (typeof any === "number" || any === null ? any : plain(any));

const state = { filters: {}, sort: null, leaf: 0, more: null, shown: [] };
let texts = null; // of each run, what is searched
let ids = null; // run_id → number

function runNumber(id) {
  ids ??= new Map(Array.from({ length: data("runs").count }, (_, n) => [value("run_id", n), n]));
  return ids.get(id);
}

function searched(number) {
  texts ??= [];
  texts[number] ??= [labelOf(number), ...["task", "model", "seed", "status", "run_id", "study", "error"].map((name) =>
    plain(value(name, number))), ...(value("overrides", number) ?? [])].join("\n").toLowerCase();
  return texts[number];
}

function select() {
  const { text = "", row = "", ...fields } = state.filters;
  const sought = words(text);
  const asked = Object.entries(fields).filter(([, wanted]) => wanted);
  state.shown = [];
  for (let n = 0; n < data("runs").count; n += 1) {
    if (asked.every(([name, wanted]) => value(name, n) === wanted) && (!row || rowsOf(n).includes(Number(row))) &&
        sought.every((word) => searched(n).includes(word))) state.shown.push(n);
  }
  if (state.sort) {
    const { column, direction } = state.sort;
    const key = column.sorted ?? column.of;
    const keys = new Map(state.shown.map((n) => [n, key(n)]));
    state.shown.sort((a, b) => compared(keys.get(a), keys.get(b), direction) || a - b);
  }
}

function drawRuns() {
  const leaves = Math.max(1, Math.ceil(state.shown.length / LEAF));
  state.leaf = Math.min(state.leaf, leaves - 1);
  const start = state.leaf * LEAF;
  const here = state.shown.slice(start, start + LEAF);
  const columns = state.more ? [...COLUMNS, state.more] : COLUMNS;
  document.querySelector("#all-runs tbody").replaceChildren(...here.map((n) => el("tr", {}, columns.map((column) => {
    const text = column.of(n) ?? "";
    if (column.head) return el("th", { scope: "row" }, el("a", { href: linkTo(n) }, text));
    const failed = column.name === "status" && text === "failed";
    return el("td", { class: [column.text && "text", failed && "failed"].filter(Boolean).join(" ") || null }, text);
  }))));
  const total = data("runs").count;
  const span = here.length ? `${grouped(start + 1)}–${grouped(start + here.length)} of ${grouped(state.shown.length)} runs` : "no run";
  document.getElementById("runs-shown").textContent = state.shown.length < total ? `${span}, ${grouped(total)} in all` : span;
  for (const button of document.querySelectorAll("#leaves button")) {
    button.disabled = button.dataset.to === "back" ? state.leaf === 0 : state.leaf === leaves - 1;
  }
  document.getElementById("leaves").hidden = leaves === 1;
  const commands = document.getElementById("commands");
  if (commands.open) drawCommands();
}

function drawCommands() {
  const lines = state.shown.map((n) => `${command(n)}  # ${value("run_id", n)}, commit ${(value("git.commit", n) ?? "not recorded").slice(0, 10)}`);
  document.querySelector("#commands code").textContent = lines.join("\n");
}

function renew() {
  select();
  state.leaf = 0;
  drawRuns();
}

function chooser(label, name, choices) {
  const options = choices.map(([wanted, text]) => el("option", { value: wanted }, text));
  return el("label", {}, `${label} `, el("select", { "data-filter": name }, el("option", { value: "" }, "all"), options));
}

function different(name) {
  const found = new Set(Array.from({ length: data("runs").count }, (_, n) => value(name, n)));
  return [...found].sort(collator.compare).map((text) => [text, text]);
}

function drawHeads() {
  const columns = state.more ? [...COLUMNS, state.more] : COLUMNS;
  const heads = columns.map((column) => el("th", { scope: "col", class: column.text ? "text" : null, "data-first": column.first }, column.name));
  sortable(heads, (place, direction) => {
    state.sort = { column: columns[place], direction };
    renew();
  });
  columns.forEach((column, place) => {
    if (column === state.sort?.column) heads[place].setAttribute("aria-sort", state.sort.direction > 0 ? "ascending" : "descending");
  });
  document.querySelector("#all-runs thead").replaceChildren(el("tr", {}, heads));
}

function filterByRow(place) {
  for (const field of document.querySelectorAll("#runs-here [data-filter]")) field.value = field.dataset.filter === "row" ? place : "";
  state.filters = { row: place };
  renew();
}

function startRuns() {
  const { rows, fields } = data("runs");
  const choosers = ["task", "model", "status"].map((name) => [name, different(name)]).filter(([, found]) => found.length > 1);
  const tools = el("div", { class: "tools" },
    el("label", {}, "Find ", el("input", { type: "search", "data-filter": "text", autocomplete: "off", placeholder: "variant, override, error, id" })),
    chooser("Row", "row", rows.map((label, place) => [place, label])),
    choosers.map(([name, found]) => chooser(name[0].toUpperCase() + name.slice(1), name, found)),
    el("label", {}, "Further column ", el("select", { id: "more" }, el("option", { value: "" }, "none"),
      Object.keys(fields).map((name) => el("option", { value: name }, name)))),
    el("output", { id: "runs-shown", "aria-live": "polite" }));
  const leaf = (to, text) => el("button", { type: "button", class: "plain", "data-to": to }, text);
  document.getElementById("runs-here").append(tools,
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table of runs" },
      el("table", { class: "results", id: "all-runs" }, el("thead"), el("tbody"))),
    el("p", { id: "leaves", class: "tools" }, leaf("back", "Back"), leaf("on", "Further")),
    el("details", { id: "commands", class: "only-screen" }, el("summary", {}, "The commands of these runs"), el("pre", {}, el("code"))));
  tools.addEventListener("input", (event) => {
    if (event.target.id === "more") {
      state.more = event.target.value ? further(event.target.value) : null;
      if (state.sort && !COLUMNS.includes(state.sort.column)) state.sort = null;
      drawHeads();
    } else {
      state.filters[event.target.dataset.filter] = event.target.value;
    }
    renew();
  });
  document.getElementById("leaves").addEventListener("click", (event) => {
    if (!event.target.dataset.to) return;
    state.leaf += event.target.dataset.to === "on" ? 1 : -1;
    drawRuns();
  });
  document.getElementById("commands").addEventListener("toggle", drawCommands);
  drawHeads();
  renew();
}
