// Tables that are in the page: sorted by their heads, filtered by the tools above them.

const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

// How two values are ordered: numbers, then texts; blanks are last, whatever the direction.
function compared(a, b, direction) {
  const blankA = a === null || a === "", blankB = b === null || b === "";
  if (blankA || blankB) return blankA - blankB;
  const textA = typeof a !== "number", textB = typeof b !== "number";
  if (textA !== textB) return textA - textB;
  return direction * (textA ? collator.compare(a, b) : a - b);
}

// Makes heads sort: `sorted(column, direction)` is called with 1 or -1, first as data-first says.
function sortable(heads, sorted) {
  heads.forEach((head, column) => {
    const button = el("button", { type: "button", class: "sort" });
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = { ascending: "descending", descending: "ascending" }[now] ?? head.dataset.first;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", next);
      sorted(column, next === "ascending" ? 1 : -1);
    });
  });
}

function cellValue(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  return cell.querySelector(".blank") ? null : cell.textContent.trim();
}

function sortTable(table, column, direction) {
  for (const body of table.tBodies) {
    const rows = [...body.rows].filter((row) => !row.classList.contains("title"));
    const keys = new Map(rows.map((row) => [row, cellValue(row.cells[column])]));
    rows.sort((a, b) => compared(keys.get(a), keys.get(b), direction));
    body.append(...rows);
  }
}

const words = (text) => text.toLowerCase().split(/\s+/).filter(Boolean);

function filterTable(table, tools) {
  const chosen = Object.fromEntries([...tools.querySelectorAll("[data-filter]")].map((f) => [f.dataset.filter, f.value]));
  const sought = words(chosen.text ?? "");
  const heads = [...table.tHead.rows[0].cells];
  const hasTasks = heads.some((head) => head.dataset.task !== undefined);
  let shown = 0, all = 0;
  for (const row of table.querySelectorAll("tbody tr:not(.title)")) {
    const text = row.cells[0].textContent.toLowerCase();
    const own = row.dataset;
    row.hidden = !sought.every((word) => text.includes(word)) ||
      ["model", "status", "word", ...(hasTasks ? [] : ["task"])].some((name) => chosen[name] && own[name] !== chosen[name]);
    const ours = !row.parentElement.classList.contains("foreign");
    all += ours;
    shown += ours && !row.hidden;
  }
  // Where tasks are columns, one task leaves its column and those over all tasks.
  heads.forEach((head, place) => {
    const hide = Boolean(chosen.task) && head.dataset.task !== undefined && head.dataset.task !== chosen.task;
    if (head.hidden !== hide) {
      for (const row of table.rows) if (!row.classList.contains("title")) row.cells[place].hidden = hide;
    }
  });
  tools.querySelector("output").textContent = `${shown} of ${all} rows`;
}

function startTables() {
  for (const table of document.querySelectorAll("table.sortable")) {
    sortable([...table.tHead.rows[0].cells], (column, direction) => sortTable(table, column, direction));
  }
  for (const tools of document.querySelectorAll(".tools[data-for]")) {
    const table = document.getElementById(tools.dataset.for);
    const filter = () => filterTable(table, tools);
    tools.addEventListener("input", filter);
    filter();
  }
}
