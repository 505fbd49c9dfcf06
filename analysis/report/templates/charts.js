// Learning curves, and the map of ranks.

const SIZE = { width: 340, height: 190, left: 52, right: 10, top: 10, bottom: 26 };

// About `most` round numbers from low to high.
function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) found.push(k * step);
  return found;
}

function tickText(number) {
  if (number !== 0 && (Math.abs(number) >= 1e6 || Math.abs(number) < 1e-3)) return number.toExponential(0);
  return digits(number, 4);
}

function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const each of values) {
    low = Math.min(low, each);
    high = Math.max(high, each);
  }
  if (low < high) return [low, high];
  const margin = Math.abs(low) / 2 || 1;
  return [low - margin, high + margin];
}

// One curve with its own axes; pointing at it says the nearest value.
function chart(name, steps, values, logged) {
  const [x0, x1] = extent(steps), [y0, y1] = extent(values);
  const { width, height, left, right, top, bottom } = SIZE;
  const x = (step) => left + ((step - x0) / (x1 - x0)) * (width - left - right);
  const y = (each) => height - bottom - ((each - y0) / (y1 - y0)) * (height - top - bottom);
  const said = `${name}: from ${values[0]} at step ${steps[0]} to ${values.at(-1)} at step ${steps.at(-1)}`;
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
  for (const tick of ticks(y0, y1, 4)) {
    drawn.append(svg("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), stroke: "#ddd" }),
      svg("text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, tickText(tick)));
  }
  for (const tick of ticks(x0, x1, 5).filter(Number.isInteger)) {
    drawn.append(svg("line", { x1: x(tick), x2: x(tick), y1: height - bottom, y2: height - bottom + 4, stroke: "#666" }),
      svg("text", { x: x(tick), y: height - bottom + 17, "text-anchor": "middle" }, String(tick)));
  }
  const points = steps.map((step, k) => `${x(step).toFixed(1)},${y(values[k]).toFixed(1)}`).join(" ");
  drawn.append(svg("line", { x1: left, x2: width - right, y1: height - bottom, y2: height - bottom, stroke: "#666" }),
    svg("polyline", { points, fill: "none", stroke: "#0072b2", "stroke-width": "1.6", "stroke-linejoin": "round" }));
  if (steps.length <= 40) {
    steps.forEach((step, k) => drawn.append(svg("circle", { cx: x(step), cy: y(values[k]), r: "2.2", fill: "#0072b2" })));
  }
  const mark = svg("circle", { r: "4", fill: "none", stroke: "#d55e00", "stroke-width": "2", visibility: "hidden" });
  drawn.append(mark);
  const thinned = values.length < logged ? `; ${values.length} of ${grouped(logged)} points, with every extreme` : "";
  const last = `step ${steps.at(-1)}: ${values.at(-1)}${thinned}`;
  const reading = el("p", {}, last);
  drawn.addEventListener("pointermove", (event) => {
    const box = drawn.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * width;
    let near = 0;
    steps.forEach((step, k) => { if (Math.abs(x(step) - at) < Math.abs(x(steps[near]) - at)) near = k; });
    fill(mark, { cx: x(steps[near]), cy: y(values[near]), visibility: "visible" }, []);
    reading.textContent = `step ${steps[near]}: ${values[near]}`;
  });
  drawn.addEventListener("pointerleave", () => {
    mark.setAttribute("visibility", "hidden");
    reading.textContent = last;
  });
  return el("figure", { class: "chart" }, el("figcaption", {}, el("strong", {}, name)), drawn, reading);
}

// Stops of the colour map cividis: dark to light, also in grey and for the colour-blind.
const STOPS = [[0, 34, 78], [65, 77, 107], [124, 123, 120], [187, 175, 113], [254, 232, 56]];

function shade(share) {
  const place = Math.min(share * (STOPS.length - 1), STOPS.length - 1.001);
  const [below, above] = [STOPS[Math.floor(place)], STOPS[Math.floor(place) + 1]];
  const rgb = below.map((part, k) => Math.round(part + (above[k] - part) * (place % 1)));
  const light = (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255 > 0.5;
  return `background: rgb(${rgb}); color: ${light ? "#000" : "#fff"}`;
}

// Modules from top to bottom, blocks from left to right.
function heat(layout, ranks) {
  const cells = layout.modules.map(() => layout.blocks.map(() => null));
  layout.place.forEach(([row, column], k) => { cells[row][column] = k; });
  let [low, high] = [Math.min(...ranks), Math.max(...ranks)];
  low = low < high ? low : Math.min(0, low);
  const head = el("tr", {}, el("th", {}, "module \\ block"), layout.blocks.map((block) => el("th", { scope: "col" }, block)));
  const body = layout.modules.map((module, row) => el("tr", {}, el("th", { scope: "row" }, module), cells[row].map((k) => {
    if (k === null) return el("td");
    const cell = el("td", { title: `${layout.layers[k]}: rank ${ranks[k]}` }, String(ranks[k]));
    cell.style.cssText = shade(high > low ? (ranks[k] - low) / (high - low) : 0);
    return cell;
  })));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Rank of every layer" },
    el("table", { class: "heat" }, el("thead", {}, head), el("tbody", {}, body)));
}
