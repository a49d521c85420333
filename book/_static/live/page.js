/* What the live figures share: their start, their controls, plots and tables of checks.
 *
 * A page has, for each figure, <figure class="live" data-live="NAME"> with a still picture. A figure's own
 * script sets liveFigures.NAME to a function of the element to fill and of this file's tools. The picture
 * stays until the reader presses Start, and permanently where there is no JavaScript. */
window.liveFigures = window.liveFigures || {};
(() => {
  "use strict";
  const colours = {
    passive: "#0072B2", active: "#E69F00", good: "#009E73", bad: "#D55E00",
    other: "#CC79A7", truth: "#111111", muted: "#6b6b6b",
  };
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  let ids = 0;

  /** An HTML element with attributes, listeners (functions) and children. */
  function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    fill(made, attributes);
    made.append(...children);
    return made;
  }

  function fill(made, attributes) {
    for (const [name, value] of Object.entries(attributes))
      if (typeof value === "function") made.addEventListener(name, value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== undefined) made.setAttribute(name, value);
    return made;
  }

  function svg(tag, attributes = {}, ...children) {
    const made = fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes);
    made.append(...children);
    return made;
  }

  /** A labelled choice. `options` maps values to texts; `change` gets the value. */
  function select({ label, options, value, change }) {
    const control = element("select", { id: `live-${++ids}`, change: () => change(control.value) });
    for (const [key, text] of Object.entries(options)) control.append(element("option", { value: key }, text));
    control.value = value ?? Object.keys(options)[0];
    return { element: row(label, control), control };
  }

  /** A labelled slider with its value beside it. `format` writes the value; `input` gets it as a number. */
  function slider({ label, min, max, step, value, format = String, input }) {
    const shown = element("output", { class: "live-value" });
    const control = element("input", {
      type: "range", id: `live-${++ids}`, min, max, step, value,
      input: () => { write(); input(Number(control.value)); },
    });
    function write() {
      shown.textContent = format(Number(control.value));
      control.setAttribute("aria-valuetext", shown.textContent);
    }
    const set = (next) => { control.value = next; write(); };
    write();
    return { element: row(label, control, shown), control, set };
  }

  function row(label, control, ...rest) {
    const line = element("div", { class: "live-row" });
    line.append(element("label", { for: control.id }, label), control, ...rest);
    return line;
  }

  const button = (text, click) => element("button", { type: "button", class: "live-button", click }, text);

  /** A table of claims, as the book's: what was measured, what is required, the verdict. */
  function checks(claims) {
    const body = element("tbody");
    const rows = new Map();
    for (const claim of claims) {
      const cells = [0, 1, 2].map(() => element("td", {}, "–"));
      const line = element("tr", {}, element("th", { scope: "row" }, claim), ...cells);
      rows.set(claim, { line, cells });
      body.append(line);
    }
    const head = element("tr");
    for (const text of ["claim", "measured", "required", "verdict"]) head.append(element("th", {}, text));
    const table = element("table", { class: "checks" }, element("thead", {}, head), body);
    /** Show one claim; `ok` is true, false, or undefined where nothing is required. */
    function set(claim, measured, required, ok) {
      const { line, cells } = rows.get(claim);
      const texts = [measured, required, ok === undefined ? "–" : ok ? "ok" : "FAILED"];
      texts.forEach((text, i) => { if (cells[i].textContent !== text) cells[i].textContent = text; });
      line.classList.toggle("failed", ok === false);
    }
    return { element: table, set };
  }

  /** Round values for the ticks of an axis. */
  function ticks([low, high], about = 5) {
    const rough = (high - low) / about;
    const power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
    const values = [];
    for (let v = Math.ceil(low / step - 1e-9); v * step <= high + 1e-9 * step; v++)
      values.push(Number((v * step).toPrecision(12)));
    return values;
  }

  const minus = (value) => String(value).replaceAll("-", "−");

  /** A plot with axes, drawn as SVG.
   *
   * `x` and `y` are { range: [low, high], label }. `draw(shapes)` replaces what is inside; a shape is one of
   *   { line: [[x, y], ...], color, width, dash },   { area: [[x, y], ...], color, opacity },
   *   { dots: [[x, y], ...], color, radius },        { text: "...", at: [x, y], color, anchor }. */
  function plot({ width = 360, height = 320, x, y, title, description }) {
    const [left, right, top, bottom] = [48, 10, title ? 26 : 10, 42];
    const px = (v) => left + ((v - x.range[0]) / (x.range[1] - x.range[0])) * (width - left - right);
    const py = (v) => height - bottom - ((v - y.range[0]) / (y.range[1] - y.range[0])) * (height - top - bottom);
    const clip = `live-${++ids}`;
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "live-plot", role: "img", "aria-label": description });
    const frame = { x: left, y: top, width: width - left - right, height: height - top - bottom };
    root.append(svg("clipPath", { id: clip }, svg("rect", frame)));
    const axes = svg("g", { class: "live-axes" });
    for (const v of ticks(x.range)) {
      axes.append(svg("line", { x1: px(v), x2: px(v), y1: top, y2: height - bottom, class: "live-grid" }));
      axes.append(svg("text", { x: px(v), y: height - bottom + 16, "text-anchor": "middle" }, minus(v)));
    }
    for (const v of ticks(y.range)) {
      axes.append(svg("line", { x1: left, x2: width - right, y1: py(v), y2: py(v), class: "live-grid" }));
      axes.append(svg("text", { x: left - 6, y: py(v) + 4, "text-anchor": "end" }, minus(v)));
    }
    axes.append(svg("text", { x: left + frame.width / 2, y: height - 6, "text-anchor": "middle" }, x.label));
    const middle = top + frame.height / 2;
    axes.append(svg("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, y.label));
    const heading = svg("text", { x: left + frame.width / 2, y: 16, "text-anchor": "middle", class: "live-title" }, title || "");
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    const handles = svg("g");
    root.append(axes, heading, inside, handles);

    const path = (points) => points.map(([u, v], i) => `${i ? "L" : "M"}${px(u).toFixed(2)},${py(v).toFixed(2)}`).join("");
    function draw(shapes) {
      inside.replaceChildren();
      for (const { line, area, dots, text, at, color = colours.truth, width: w = 2, dash, radius = 3, opacity = 1, anchor = "start" } of shapes) {
        if (line) inside.append(svg("path", { d: path(line), fill: "none", stroke: color, "stroke-width": w, "stroke-dasharray": dash, opacity }));
        if (area) inside.append(svg("path", { d: `${path(area)}Z`, fill: color, opacity }));
        for (const [u, v] of dots || []) inside.append(svg("circle", { cx: px(u), cy: py(v), r: radius, fill: color, opacity }));
        if (text) inside.append(svg("text", { x: px(at[0]), y: py(at[1]), fill: color, "text-anchor": anchor, class: "live-label" }, text));
      }
    }
    /** The pointer's place in the units of the axes. */
    function place(event) {
      const box = root.getBoundingClientRect();
      const [u, v] = [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
      return [
        x.range[0] + ((u - left) / frame.width) * (x.range[1] - x.range[0]),
        y.range[0] + ((height - bottom - v) / frame.height) * (y.range[1] - y.range[0]),
      ];
    }
    const rename = (text) => { heading.textContent = text; };
    const describe = (text) => root.setAttribute("aria-label", text);
    return { element: root, handles, draw, place, px, py, rename, describe };
  }

  /** A line of text that says what happened; a screen reader speaks it unless it changes by itself. */
  function status(spoken = true) {
    return element("p", { class: "live-status", "aria-live": spoken ? "polite" : "off" });
  }

  /** The line under a picture that explains its colours and lines. */
  const legend = (text = "") => element("p", { class: "live-legend" }, text);

  /** Calls `pause` when the figure leaves the screen or the tab is hidden. */
  function pauseOutside(stage, pause) {
    document.addEventListener("visibilitychange", () => { if (document.hidden) pause(); });
    new IntersectionObserver((entries) => { if (!entries.at(-1).isIntersecting) pause(); }).observe(stage);
  }

  const panels = (...parts) => element("div", { class: "live-panels" }, ...parts);
  const controls = (...parts) => element("div", { class: "live-controls" }, ...parts);
  const scientific = (value) => {
    if (value === 0) return "0";
    if (!Number.isFinite(value)) return Number.isNaN(value) ? "not finite" : "infinite";
    const plain = Math.abs(value) >= 0.01 && Math.abs(value) < 1000;
    return minus(plain ? Number(value.toPrecision(2)) : value.toExponential(0).replace("+", ""));
  };
  const fixed = (value, digits = 2) => minus(Number(value.toFixed(digits)).toFixed(digits)); // never −0.00
  const number = (value) => (Math.abs(value) < 1000 ? fixed(value, 3) : scientific(value));
  const about = (value) => (Number.isFinite(value) ? `≈ ${scientific(value)}` : scientific(value));

  const tools = {
    colours, calm, element, svg, select, slider, button, checks, plot, status, legend, pauseOutside, panels,
    controls, minus, scientific, fixed, number, about,
  };

  function prepare(figure) {
    const card = figure.querySelector(".live-card");
    const start = button("Start", () => {
      const stage = element("div", { class: "live-stage" });
      card.replaceChildren(stage);
      start.remove();
      window.liveFigures[figure.dataset.live](stage, tools, JSON.parse(figure.dataset.options || "{}"));
      stage.querySelector("button, select, input, [tabindex]").focus({ preventScroll: true });
    });
    start.classList.add("live-start");
    card.append(start);
  }

  addEventListener("DOMContentLoaded", () => document.querySelectorAll("figure.live").forEach(prepare));
})();
