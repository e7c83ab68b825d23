"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg"; // a namespace; nothing is fetched
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const view = { smoothing: 0, logarithmic: false };
  const margin = { left: 50, right: 12, top: 10, bottom: 24 };

  // --- numbers ---------------------------------------------------------------------------------------------------
  const writers = {
    loss: (v) => (Math.abs(v) >= 0.01 || v === 0 ? v.toFixed(3) : v.toExponential(1)),
    share: (v) => (100 * v).toFixed(1) + " %",
    scientific: (v) => (v === 0 ? "0" : v.toExponential(2)),
    count: (v) => v.toLocaleString("en", { maximumFractionDigits: v < 100 ? 1 : 0 }),
  };
  const axisWriters = {
    loss: (v) => String(+v.toPrecision(4)),
    share: (v) => +(100 * v).toFixed(2) + " %",
    scientific: (v) => (v === 0 ? "0" : String(v.toExponential()).length < 6 ? v.toExponential() : v.toExponential(1)),
    count: (v) => (v >= 1e6 ? +(v / 1e6).toPrecision(3) + " M" : v >= 1e4 ? +(v / 1e3).toPrecision(3) + " k" : String(+v.toPrecision(4))),
  };

  function ticks(low, high, wanted) {
    const rough = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step || 0); // never -0
    return found;
  }

  function logTicks(low, high) {
    const found = [];
    const spread = Math.log10(high / low);
    const factors = spread > 2.5 ? [1] : spread > 0.8 ? [1, 2, 5] : null;
    if (!factors) return ticks(low, high, 5);
    for (let power = 10 ** Math.floor(Math.log10(low)); power <= high; power *= 10)
      for (const factor of factors) if (factor * power >= low && factor * power <= high) found.push(factor * power);
    return found;
  }

  // Exponential moving average with the bias of its start removed; gaps stay gaps.
  function smooth(values, weight) {
    let sum = 0, mass = 0;
    return values.map((v) => {
      if (v === null) return null;
      sum = weight * sum + (1 - weight) * v;
      mass = weight * mass + 1 - weight;
      return sum / mass;
    });
  }

  // --- drawing ---------------------------------------------------------------------------------------------------
  function node(parent, name, attributes, text) {
    const made = document.createElementNS(SVG, name);
    for (const key in attributes) made.setAttribute(key, attributes[key]);
    if (text !== undefined) made.textContent = text;
    parent.appendChild(made);
    return made;
  }

  class Plot {
    constructor(data) {
      this.data = data;
      this.figure = document.getElementById("chart-" + data.key);
      this.plot = this.figure.querySelector(".plot");
      this.hidden = new Set();
      this.legend();
      this.tip = document.createElement("div");
      this.tip.className = "tip";
      this.tip.hidden = true;
      this.figure.appendChild(this.tip);
      this.plot.addEventListener("pointermove", (event) => this.point(event));
      this.plot.addEventListener("pointerdown", (event) => this.point(event));
      this.plot.addEventListener("pointerleave", () => this.leave());
      new ResizeObserver(() => this.draw()).observe(this.plot);
    }

    legend() {
      const names = new Map([...this.data.lines, ...this.data.dots].map((s) => [s.name, s.colour]));
      if (names.size < 2) return;
      for (const [name, colour] of names) {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = name;
        button.style.setProperty("--colour", `var(--${colour})`);
        button.setAttribute("aria-pressed", "true");
        button.onclick = () => {
          this.hidden.has(name) ? this.hidden.delete(name) : this.hidden.add(name);
          button.setAttribute("aria-pressed", String(!this.hidden.has(name)));
          this.draw();
        };
        this.figure.querySelector(".legend").appendChild(button);
      }
    }

    shown(series) {
      return series.filter((s) => !this.hidden.has(s.name));
    }

    draw() {
      const { data, plot } = this;
      const width = plot.clientWidth, height = plot.clientHeight;
      if (!width || !height) return;
      this.leave();
      plot.replaceChildren();
      const svg = (this.svg = node(plot, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": data.title }));
      this.smoothed = view.smoothing > 0 && data.number !== "scientific"; // a learning rate has no noise
      this.lines = this.shown(data.lines).map((line) => ({ ...line, raw: line.y, y: this.smoothed ? smooth(line.y, view.smoothing) : line.y }));
      this.dots = this.shown(data.dots);
      const levels = data.levels.filter((level) => !this.hidden.has(level.colour));
      if (data.style === "stack") this.stack();

      const logarithmic = view.logarithmic && data.logarithmic;
      let values = [...this.lines.flatMap((l) => l.raw), ...this.dots.flatMap((d) => d.y), ...levels.map((l) => l.y)].filter((v) => v !== null);
      if (logarithmic) values = values.filter((v) => v > 0);
      if (!values.length) values = [0, 1];
      let low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
      if (data.style === "stack") { low = 0; high = 1; }
      else if (logarithmic) { low /= 1.06; high *= 1.06; }
      else {
        if (!data.tight) low = Math.min(0, low);
        const room = (high - low || Math.abs(high) || 1) * 0.06;
        high += room;
        if (low !== 0) low -= room; // a floor of zero stays one
      }
      const steps = [...data.x, ...data.dots.flatMap((d) => d.x)];
      let first = steps.reduce((a, b) => Math.min(a, b)), last = steps.reduce((a, b) => Math.max(a, b));
      if (first === last) { first -= 1; last += 1; }
      const right = width - margin.right, bottom = height - margin.bottom;
      const scale = logarithmic ? Math.log : (v) => v;
      this.x = (v) => margin.left + ((v - first) / (last - first)) * (right - margin.left);
      this.y = (v) => bottom - ((scale(v) - scale(low)) / (scale(high) - scale(low))) * (bottom - margin.top);
      this.drawable = (v) => v !== null && (!logarithmic || v > 0);

      for (const value of logarithmic ? logTicks(low, high) : ticks(low, high, height > 250 ? 6 : 4)) {
        const at = this.y(value);
        node(svg, "line", { class: "grid", x1: margin.left, x2: right, y1: at, y2: at });
        node(svg, "text", { x: margin.left - 7, y: at + 4, "text-anchor": "end" }, axisWriters[data.number](value));
      }
      for (const value of ticks(first, last, Math.max(2, Math.min(8, width / 90))).filter(Number.isInteger))
        node(svg, "text", { x: this.x(value), y: height - 6, "text-anchor": "middle" }, value.toLocaleString("en"));
      for (const level of levels) {
        const at = this.y(level.y), colour = `var(--${level.colour})`;
        node(svg, "line", { class: "level", x1: margin.left, x2: right, y1: at, y2: at, style: `stroke: ${colour}` });
        node(svg, "text", { x: right, y: at - 5, "text-anchor": "end", style: `fill: ${colour}` }, `${level.label} ${writers.loss(level.y)}`);
      }
      for (const line of this.lines) {
        const colour = `var(--${line.colour})`;
        if (line.top) {
          node(svg, "path", { d: this.area(line), style: `fill: ${colour}; opacity: 0.75` });
          continue;
        }
        if (this.smoothed) node(svg, "path", { class: "raw", d: this.path(line.raw), style: `stroke: ${colour}` });
        node(svg, "path", { class: "line", d: this.path(line.y), style: `stroke: ${colour}` });
      }
      for (const dots of this.dots)
        dots.x.forEach((x, i) => this.drawable(dots.y[i]) && node(svg, "circle", { class: "dot", cx: this.x(x), cy: this.y(dots.y[i]), r: 4, style: `fill: var(--${dots.colour})` }));
    }

    path(values) {
      let d = "", pen = false;
      values.forEach((v, i) => {
        if (this.drawable(v)) d += `${pen ? "L" : "M"}${this.x(this.data.x[i]).toFixed(1)} ${this.y(v).toFixed(1)}`;
        pen = this.drawable(v);
      });
      return d;
    }

    area(line) {
      const at = (values, i) => `${this.x(this.data.x[i]).toFixed(1)} ${this.y(values[i]).toFixed(1)}`;
      const order = [...line.top.keys()];
      return "M" + order.map((i) => at(line.top, i)).join("L") + "L" + order.reverse().map((i) => at(line.base, i)).join("L") + "Z";
    }

    stack() {
      const sums = new Array(this.data.x.length).fill(0);
      for (const line of this.lines) {
        line.base = [...sums];
        line.y.forEach((v, i) => (sums[i] += v || 0));
        line.top = [...sums];
      }
    }

    // --- read-out ------------------------------------------------------------------------------------------------
    leave() {
      this.tip.hidden = true;
      this.svg?.querySelectorAll(".hover").forEach((n) => n.remove());
    }

    point(event) {
      const { data } = this;
      if (!this.x) return;
      this.leave();
      const at = event.clientX - this.plot.getBoundingClientRect().left;
      const steps = data.x.length ? data.x : data.dots.flatMap((d) => d.x);
      let index = 0;
      steps.forEach((x, i) => { if (Math.abs(this.x(x) - at) < Math.abs(this.x(steps[index]) - at)) index = i; });
      const validated = this.dots.flatMap((d) => d.x).find((x) => Math.abs(this.x(x) - at) < 7);
      const step = validated === undefined ? steps[index] : validated;
      if (validated !== undefined && data.x.length)
        data.x.forEach((x, i) => { if (Math.abs(x - validated) < Math.abs(data.x[index] - validated)) index = i; });
      const group = node(this.svg, "g", { class: "hover" });
      node(group, "line", { class: "rule", x1: this.x(step), x2: this.x(step), y1: margin.top, y2: this.plot.clientHeight - margin.bottom });
      const rows = new Map();
      for (const line of this.lines) {
        const value = line.y[index];
        if (value === null) continue;
        rows.set(line.name, { colour: line.colour, cells: [value] });
        if (!line.top && this.drawable(value)) node(group, "circle", { cx: this.x(data.x[index]), cy: this.y(value), r: 3, style: `fill: var(--${line.colour})` });
      }
      let both = false;
      for (const dots of this.dots) {
        const found = dots.x.indexOf(validated);
        if (found < 0) continue;
        both = true;
        const row = rows.get(dots.name) || { colour: dots.colour, cells: [null] };
        row.cells[1] = dots.y[found];
        rows.set(dots.name, row);
      }
      this.describe(step, rows, both);
      const inside = this.plot.offsetLeft + this.x(step);
      const flip = inside + this.tip.offsetWidth + 16 > this.figure.clientWidth;
      this.tip.style.left = `${Math.max(4, flip ? inside - this.tip.offsetWidth - 10 : inside + 10)}px`;
      this.tip.style.top = `${this.plot.offsetTop + 8}px`;
    }

    describe(step, rows, both) {
      const write = (v) => (v === null || v === undefined ? "" : writers[this.data.number](v));
      const head = document.createElement("b");
      head.textContent = `step ${step.toLocaleString("en")}`;
      const table = document.createElement("table");
      if (both) table.insertRow().append(...["", "train", "valid"].map((t) => { const c = document.createElement("td"); c.textContent = t; return c; }));
      for (const [name, row] of rows) {
        const line = table.insertRow(), label = line.insertCell(), mark = document.createElement("i");
        mark.style.background = `var(--${row.colour})`;
        label.append(mark, rows.size > 1 || both ? name : this.data.title);
        for (let i = 0; i < (both ? 2 : 1); i++) line.insertCell().textContent = write(row.cells[i]);
      }
      this.tip.replaceChildren(head, table);
      this.tip.hidden = false;
    }
  }

  const plots = read("chart-data").map((data) => new Plot(data));
  const slider = document.getElementById("smoothing");
  if (slider) {
    slider.oninput = () => {
      view.smoothing = +slider.value;
      slider.nextElementSibling.textContent = slider.value;
      plots.forEach((plot) => plot.draw());
    };
    document.getElementById("logarithmic").onchange = (event) => {
      view.logarithmic = event.target.checked;
      plots.forEach((plot) => plot.draw());
    };
  }
})();
