// Line charts of the last 15 minutes, with the regime as a strip and the changes as marks.

const SPAN_S = 900;
const LEAST_SPAN_S = 60;
const GAP_S = 5; // A line breaks where no point came for so long.
const REGIMES = ["below", "transition", "saturated"];
const PLOT = { left: 46, right: 8, top: 12, bottom: 24, height: 150 };

class Chart {
  // lines: [{column, label, color, band: [low column, high column]}]
  constructor(title, says, lines, format, options = {}) {
    this.lines = lines;
    this.format = format;
    this.options = options;
    this.hover_s = null;
    this.keys = lines.map((line) => {
      const swatch = el("i");
      swatch.style.background = `var(--${line.color})`;
      const value = el("b");
      return { root: el("span", { class: "key" }, swatch, `${line.label} `, value), value };
    });
    this.when = el("span", { class: "when" });
    this.plot = svg("svg", { role: "img", "aria-label": title });
    this.root = el("div", { class: "panel chart" },
      el("div", { class: "head" }, el("h2", {}, title), ...this.keys.map((key) => key.root), this.when),
      el("p", { class: "says" }, says), this.plot);
    this.plot.addEventListener("pointermove", (event) => this.point(event.offsetX));
    this.plot.addEventListener("pointerleave", () => this.point(null));
  }

  point(x) {
    if (this.scale === undefined) return;
    this.hover_s = x === null ? null : this.scale.time(x);
    this.draw(this.data, this.marks);
  }

  draw(data, marks) {
    this.data = data;
    this.marks = marks;
    const width = this.plot.clientWidth || 400;
    const times = data.at_s || [];
    if (!times.length) return;
    const end_s = times[times.length - 1];
    const span_s = Math.min(SPAN_S, Math.max(LEAST_SPAN_S, end_s - times[0]));
    const scale = this.scaleOf(data, width, end_s, span_s);
    this.scale = scale;
    this.plot.setAttribute("viewBox", `0 0 ${width} ${PLOT.height}`);
    this.plot.replaceChildren(
      ...this.axes(scale, width, span_s), ...this.strip(data, scale),
      ...this.lines.filter((line) => line.band).map((line) => this.band(data, line, scale)),
      ...this.lines.map((line) => this.trace(data, line, scale)),
      ...this.markers(scale, marks), ...this.cursor(scale));
    this.showValues(data);
  }

  scaleOf(data, width, end_s, span_s) {
    let low = this.options.low ?? 0;
    let high = this.options.high ?? 0;
    const columns = this.lines.flatMap((line) => [line.column, ...(line.band || [])]);
    for (const column of columns) {
      (data[column] || []).forEach((value, at) => {
        if (value === null || value === undefined || data.at_s[at] < end_s - span_s) return;
        low = Math.min(low, value);
        high = Math.max(high, value);
      });
    }
    if (high <= low) high = low + (this.options.least || 1);
    const step = niceStep((high - low) / 3);
    low = Math.floor(low / step + 1e-9) * step;
    high = Math.ceil(high / step - 1e-9) * step;
    const inner = width - PLOT.left - PLOT.right;
    const tall = PLOT.height - PLOT.top - PLOT.bottom;
    return {
      low, high, step,
      x: (at_s) => PLOT.left + inner * (1 - (end_s - at_s) / span_s),
      y: (value) => PLOT.top + tall * (1 - (value - low) / (high - low)),
      time: (x) => end_s - span_s * (1 - (x - PLOT.left) / inner),
      begin_s: end_s - span_s, end_s,
    };
  }

  axes(scale, width, span_s) {
    const drawn = [];
    for (let value = scale.low; value <= scale.high + scale.step / 2; value += scale.step) {
      const y = scale.y(value);
      const label = this.format(Math.abs(value) < scale.step / 1e6 ? 0 : value);
      drawn.push(
        svg("line", { class: "grid", x1: PLOT.left, x2: width - PLOT.right, y1: y, y2: y }),
        svg("text", { x: PLOT.left - 5, y: y + 4, "text-anchor": "end" }, label));
    }
    const minutes = span_s > 90;
    const ago = (part) => {
      const past_s = span_s * (1 - part);
      if (past_s < 1) return "now";
      return minutes ? `−${(past_s / 60).toFixed(past_s < 600 && past_s % 60 ? 1 : 0)} min` : `−${past_s.toFixed(0)} s`;
    };
    for (const [part, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      const x = PLOT.left + (width - PLOT.left - PLOT.right) * part;
      drawn.push(svg("text", { x, y: PLOT.height - 3, "text-anchor": anchor }, ago(part)));
    }
    return drawn;
  }

  strip(data, scale) {
    const drawn = [];
    const values = data.regime || [];
    const y = PLOT.height - PLOT.bottom + 3;
    let from = 0;
    for (let at = 1; at <= values.length; at++) {
      if (at < values.length && values[at] === values[from]) continue;
      const name = REGIMES[values[from]];
      const begin = Math.max(scale.x(data.at_s[from]), PLOT.left);
      const end = scale.x(data.at_s[Math.min(at, values.length - 1)]);
      if (name && end > begin) {
        const rect = svg("rect", { class: `regime-${name}`, x: begin, y, width: end - begin, height: 4 });
        rect.append(svg("title", {}, `regime: ${name}`));
        drawn.push(rect);
      }
      from = at;
    }
    return drawn;
  }

  trace(data, line, scale) {
    let path = "";
    let last_s = -Infinity;
    (data[line.column] || []).forEach((value, at) => {
      const at_s = data.at_s[at];
      if (value === null || value === undefined || at_s < scale.begin_s) return;
      path += `${at_s - last_s > GAP_S ? "M" : "L"}${scale.x(at_s).toFixed(1)} ${scale.y(value).toFixed(1)}`;
      last_s = at_s;
    });
    return svg("path", { class: "trace", d: path, stroke: `var(--${line.color})` });
  }

  band(data, line, scale) {
    const [lows, highs] = line.band.map((column) => data[column] || []);
    const there = data.at_s.map((at_s, at) => at).filter((at) =>
      data.at_s[at] >= scale.begin_s && lows[at] != null && highs[at] != null);
    const corner = (values) => (at) => `${scale.x(data.at_s[at]).toFixed(1)} ${scale.y(values[at]).toFixed(1)}`;
    const edge = [...there.map(corner(highs)), ...there.reverse().map(corner(lows))];
    return svg("path", { class: "band", d: edge.length ? `M${edge.join("L")}Z` : "", fill: `var(--${line.color})` });
  }

  markers(scale, marks) {
    const drawn = [];
    for (const mark of marks) {
      if (mark.at_s < scale.begin_s || mark.at_s > scale.end_s + 2) continue;
      const x = Math.min(scale.x(mark.at_s), scale.x(scale.end_s));
      drawn.push(svg("g", { "data-mark": mark.number },
        svg("title", {}, mark.text),
        svg("line", { class: "mark", x1: x, x2: x, y1: PLOT.top, y2: PLOT.height - PLOT.bottom }),
        svg("text", { class: "mark-number", x: x, y: PLOT.top - 2, "text-anchor": "middle" }, String(mark.number))));
    }
    return drawn;
  }

  cursor(scale) {
    if (this.hover_s === null) return [];
    const x = Math.max(PLOT.left, scale.x(this.hover_s));
    return [svg("line", { class: "cursor", x1: x, x2: x, y1: PLOT.top, y2: PLOT.height - PLOT.bottom })];
  }

  // Values at the pointer; without a pointer, the newest values.
  showValues(data) {
    let at = data.at_s.length - 1;
    if (this.hover_s !== null) {
      while (at > 0 && data.at_s[at] > this.hover_s) at--;
    }
    this.lines.forEach((line, number) => {
      const value = (data[line.column] || [])[at];
      setText(this.keys[number].value, this.format(value ?? null));
    });
    setText(this.when, this.hover_s === null ? "" : clock(data.at_s[at]));
  }
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((step) => step * power >= rough * (1 - 1e-9));
}
