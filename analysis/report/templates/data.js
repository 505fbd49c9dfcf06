"use strict";
// Elements, the records as the page holds them, and how values are written. What comes from a record goes into
// text nodes and attributes, never into markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null));
  return element;
}

const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes = {}, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const parsed = {};

// The content of a data block; those for the pages of runs are not read before one is opened.
function data(name) {
  parsed[name] ??= JSON.parse(document.getElementById(`data-${name}`).textContent);
  return parsed[name];
}

// The value of run `number` in a column, see analysis/pages/records.py.
function entry(column, number) {
  if ("pool" in column) return column.pool[column.at[number]];
  return "all" in column ? column.all[number] : column.same;
}

function value(name, number) {
  const fields = data("runs").fields;
  return Object.hasOwn(fields, name) ? entry(fields[name], number) : null;
}

// The places in the headline's table that a run belongs to, and how they are called.
const rowsOf = (number) => entry(data("runs").row, number);
const labelOf = (number) => rowsOf(number).map((place) => data("runs").rows[place]).join(" or ");

function plain(any) {
  if (any === null) return "";
  return typeof any === "string" ? any : JSON.stringify(any);
}

const grouped = (count) => count.toLocaleString("en-US");
const digits = (number, most) => String(Number(number.toPrecision(most)));

function human(count) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (count >= 0.99995 * size) return (count / size).toFixed(1) + unit;
  }
  return String(count);
}

// A field's value for people: bytes in MiB and counts in groups, beside all digits.
function readable(name, any) {
  if (typeof any !== "number") return plain(any);
  const bytes = name.startsWith("memory.") || name === "hardware.memory";
  if (bytes) return `${grouped(any)} bytes (${(any / 2 ** 20).toFixed(1)} MiB)`;
  if (name.startsWith("params.")) return grouped(any);
  if (name === "time.train" || name === "time.eval") return `${any} s`;
  return String(any);
}

function metric(number) {
  const name = value("metric.name", number);
  const found = value("metric.value", number);
  if (found === null) return "";
  const shown = data("runs").fractions.includes(name) ? (100 * found).toFixed(2) : digits(found, 4);
  return name === null ? shown : `${name} ${shown}`;
}

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'"'"'`)}'`);

// What repeats a run, but for its code.
const command = (number) =>
  [data("runs").train, ...(data("runs").repeat[number] ?? value("overrides", number) ?? []).map(quoted)].join(" ");

const linkTo = (number) => `#/run/${encodeURIComponent(value("run_id", number))}`;
