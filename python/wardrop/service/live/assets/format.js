// Numbers as a person reads them, and elements whose content is always text, never markup.

const DASH = "–";

// `toPrecision` writes 99.6 with two digits as 1.0e+2.
function digits(value, count) {
  const text = value.toPrecision(count);
  return text.includes("e") ? value.toFixed(0) : text;
}

function seconds(value) {
  if (value === null || value === undefined) return DASH;
  const size = Math.abs(value);
  if (size >= 100) return `${value.toFixed(0)} s`;
  if (size >= 1) return `${digits(value, 3)} s`;
  if (size >= 1e-3) return `${digits(value * 1e3, size >= 0.1 ? 3 : 2)} ms`;
  return size === 0 ? "0 s" : `${digits(value * 1e6, 2)} µs`;
}

function count(value) {
  if (value === null || value === undefined) return DASH;
  if (value >= 1e6) return `${digits(value / 1e6, 3)} M`;
  if (value >= 1e5) return `${(value / 1e3).toFixed(0)} k`;
  return Math.round(value).toLocaleString("en");
}

function share(value) {
  if (value === null || value === undefined) return DASH;
  const percent = 100 * value;
  return `${Math.abs(percent) < 10 ? percent.toFixed(1) : percent.toFixed(0)} %`;
}

function ratio(value) {
  return value === null || value === undefined ? DASH : value.toFixed(2);
}

function shown(value) {
  if (typeof value === "number") return String(+value.toPrecision(6));
  if (value !== null && typeof value === "object") return JSON.stringify(value);
  return String(value);
}

function clock(unix_s) {
  return new Date(unix_s * 1e3).toLocaleTimeString("en-GB");
}

// An element with attributes and children. A child that is no element becomes a text node.
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function byId(id) {
  return document.getElementById(id);
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
