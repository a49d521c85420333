/* "Drag a spline", for the chapter on bijectors.
 *
 * The figure teaches how knots and slopes shape a rational-quadratic spline T, and that p(x) = phi(T(x)) T'(x)
 * is then the density of x: high where T is steep, low where T is flat, and always of total probability 1. */
(() => {
  "use strict";
  const EDGE = 3; // the knots lie in [-EDGE, EDGE]
  const EPS = Number.EPSILON;
  const STEP = 0.02; // knots lie at even multiples of 0.01, and x at odd ones: x is never a knot
  const GAP = 0.08; // one step more than the least width and height of the bijector, 0.06
  const CELLS = 512; // of the quadrature, for each bin and each tail

  // The three inner knots: x, y, and the logarithm of the slope to the base 10.
  const presets = {
    "two modes": [[-1.2, -0.6, 0.2], [0, 0, -0.9], [1.2, 0.6, 0.2]],
    identity: [[-1.5, -1.5, 0], [0, 0, 0], [1.5, 1.5, 0]],
    steep: [[-0.6, -1.6, 0.2], [0, 0, 0.6], [0.6, 1.6, 0.2]],
    "nearly flat": [[-1, 0, -0.9], [0.5, 0.1, -0.9], [2, 0.2, -0.9]],
  };
  const OWN = "your own";
  const claims = [
    "T increases: smallest slope", "T(x) and back: error", "T′(x) minus a central difference",
    "total probability minus 1", "knots of T minus knots chosen",
  ];

  const normal = (z) => Math.exp(-0.5 * z * z) / Math.sqrt(2 * Math.PI);
  /** From 0 to 1 as t does, with points crowded at both ends, where a spline may bend sharply. */
  const crowd = (t) => t ** 3 * (10 - 15 * t + 6 * t * t);
  /** The end of an axis from zero, for values up to `largest`. */
  const axisEnd = (largest) => [0.6, 1, 1.5, 2, 3, 5, 10, 20, 50, 100, 200, 500].find((end) => end >= largest);

  /** The trapezoidal rule with crowded points, and its change when every other point is left out. */
  function integrate(f, [a, b]) {
    const sums = [0, 0]; // over the even and the odd points; both ends have weight zero
    for (let i = 1; i < CELLS; i++) {
      const t = i / CELLS;
      sums[i % 2] += f(a + (b - a) * crowd(t)) * 30 * (t - t * t) ** 2;
    }
    const scale = (b - a) / CELLS;
    return { value: scale * (sums[0] + sums[1]), change: scale * Math.abs(sums[0] - sums[1]) };
  }

  window.liveFigures.spline = (stage, tools) => {
    const { colours, element, svg, fixed: number } = tools;
    const bijector = liveBijectors().spline(4, EDGE);
    const short = (value) => (value === 0 ? "0" : tools.scientific(value));
    let [chosen, x, wanted, p] = [1, 0, [], []]; // knot, point, knots as chosen, the bijector's parameters

    const map = (at) => (bijector.forward(at, p), bijector.value);
    const slope = (at) => (bijector.forward(at, p), Math.exp(bijector.logSlope));
    const density = (at) => slope(at) * normal(bijector.value);

    const names = [...Object.keys(presets), OWN];
    const preset = tools.select({
      label: "Preset", options: Object.fromEntries(names.map((name) => [name, name])), change: (name) => name !== OWN && load(name),
    });
    const knot = tools.select({
      label: "Knot", options: { 1: "1 (left)", 2: "2 (middle)", 3: "3 (right)" },
      change: (value) => { chosen = Number(value); draw(); },
    });
    const slider = (label, most, step, format, input) =>
      tools.slider({ label, min: -most, max: most, step, value: 0, format, input });
    const sliders = {
      x: slider("x of the knot", EDGE, STEP, number, (v) => move({ x: v })),
      y: slider("y of the knot", EDGE, STEP, number, (v) => move({ y: v })),
      tilt: slider("slope of the knot", 0.9, 0.05, (v) => number(10 ** v), (v) => move({ tilt: v })),
    };
    const point = slider("Point x", 4.49, STEP, number, (v) => { x = v; draw(); });

    const axis = { range: [-4.5, 4.5], label: "x" };
    const plot = tools.plot({
      width: 320, height: 330, x: axis, y: { range: axis.range, label: "z = T(x)" }, title: "The map T: drag its knots",
    });
    const column = element("div");
    const legend = tools.legend(
      "Green bars: slopes at the knots. The two black dots without a number are fixed. Orange dot: the point x; its bin is shaded. " +
      "Dashed: the identity T(x) = x, its slope 1, and its density φ, the standard normal one.",
    );
    const [values, status, checks] = [tools.status(false), tools.status(), tools.checks(claims)];
    const handles = [1, 2, 3].map(makeHandle);

    /** A knot that can be dragged; its larger invisible disk is for fingers. */
    function makeHandle(k) {
      const ring = svg("circle", { r: 12, fill: "none", stroke: colours.truth, "stroke-width": 2 });
      const group = svg("g", {
        pointerdown: (event) => {
          event.preventDefault();
          group.setPointerCapture(event.pointerId);
          chosen = k;
          draw();
        },
        pointermove: (event) => {
          if (!group.hasPointerCapture(event.pointerId)) return;
          const [left, up] = plot.place(event);
          move({ x: left, y: up });
        },
      });
      const label = svg("text", { y: 4, "text-anchor": "middle", fill: "#fff" }, k);
      group.append(svg("circle", { r: 16, fill: "transparent" }), svg("circle", { r: 9 }), ring, label);
      group.style.touchAction = "none";
      group.style.cursor = "grab";
      plot.handles.append(group);
      return { group, ring };
    }

    /** Move the chosen knot as far as its neighbours allow. */
    function move(change) {
      const [before, at, after] = wanted.slice(chosen - 1, chosen + 2);
      Object.assign(at, change);
      let held = false;
      for (const name of ["x", "y"]) {
        const rounded = STEP * Math.round(at[name] / STEP);
        at[name] = Math.min(after[name] - GAP, Math.max(before[name] + GAP, rounded));
        held ||= Math.abs(at[name] - rounded) > STEP / 2;
      }
      preset.control.value = OWN;
      draw();
      if (held) status.textContent = `Knot ${chosen} was held: its x and y must stay between those of its neighbors. ${status.textContent}`;
    }

    function load(name) {
      wanted = [[-EDGE, -EDGE, 0], ...presets[name], [EDGE, EDGE, 0]].map(([left, y, tilt]) => ({ x: left, y, tilt }));
      draw();
    }

    function draw() {
      p = bijector.fromKnots(wanted.map((k) => ({ ...k, slope: 10 ** k.tilt })));
      const knots = bijector.knots(p);
      const edges = [-12, ...knots.map((k) => k.x), 12]; // the normal density beyond is below 1e-31
      const parts = edges.slice(1).map((right, i) => [edges[i], right]); // a tail, four bins, a tail
      const part = parts.findIndex(([, right]) => x < right);
      const xs = parts.flatMap(([a, b]) => Array.from({ length: 80 }, (_, j) => a + (b - a) * crowd(j / 80)));
      const masses = parts.map((ends) => integrate(density, ends));
      const slopes = xs.map(slope);
      showKnots(knots);
      drawMap(xs, knots, parts[part]);
      column.replaceChildren(
        curve("Slope T′(x)", "T′(x)", xs, slopes, slope(x), () => 1, parts[part]),
        curve("Density p(x) = φ(T(x)) T′(x)", "p(x)", xs, xs.map(density), density(x), normal, parts[part]),
      );
      showTexts(knots, part, masses);
      showChecks(knots, part, masses, Math.min(...slopes));
    }

    function showKnots(knots) {
      knot.control.value = String(chosen);
      for (const [name, { set }] of Object.entries(sliders)) set(wanted[chosen][name]);
      handles.forEach(({ group, ring }, i) => {
        const { x: left, y } = knots[i + 1];
        group.setAttribute("transform", `translate(${plot.px(left)} ${plot.py(y)})`);
        ring.setAttribute("visibility", i + 1 === chosen ? "visible" : "hidden");
      });
    }

    const band = ([a, b], low, high) => ({ area: [[a, low], [b, low], [b, high], [a, high]], color: colours.active, opacity: 0.15 });
    const marker = (v) => [{ dots: [[x, v]], radius: 6 }, { dots: [[x, v]], radius: 4, color: colours.active }];

    function drawMap(xs, knots, bin) {
      const tangents = knots.map(({ x: u, y: v, slope: d }) => {
        const half = 0.6 / Math.hypot(1, d);
        return { line: [[u - half, v - d * half], [u + half, v + d * half]], color: colours.good, width: 3 };
      });
      const z = map(x);
      plot.draw([
        band(bin, -5, 5),
        { line: [[-5, -5], [5, 5]], color: colours.muted, dash: "5 4", width: 1 },
        { line: xs.map((u) => [u, map(u)]), color: colours.active, width: 2.5 },
        ...tangents,
        { dots: [[-EDGE, -EDGE], [EDGE, EDGE]], radius: 5 },
        { line: [[x, -5], [x, z], [-5, z]], width: 1, dash: "2 3" },
        ...marker(z),
      ]);
      const places = knots.map((k) => `(${number(k.x)}, ${number(k.y)})`).join(", ");
      plot.describe(`An increasing curve with knots at ${places}; the point is at x = ${number(x)}.`);
    }

    /** A panel that ends above its largest value, with the curve of the identity dashed. */
    function curve(title, label, xs, ys, at, identity, bin) {
      const [largest, line] = [Math.max(...ys), xs.map((u, i) => [u, ys[i]])];
      const y = { range: [0, axisEnd(largest)], label };
      const description = `${title}: at most ${number(largest)}; ${number(at)} at x = ${number(x)}.`;
      const panel = tools.plot({ width: 320, height: 190, title, x: axis, y, description });
      panel.draw([
        band(bin, ...y.range),
        ...(identity === normal ? [{ area: line, color: colours.active, opacity: 0.25 }] : []),
        { line: xs.map((u) => [u, identity(u)]), color: colours.muted, dash: "5 4", width: 1 },
        { line, color: colours.active, width: 2.5 },
        ...marker(at),
      ]);
      return panel.element;
    }

    function showTexts(knots, part, masses) {
      const z = map(x);
      const tails = masses[0].value + masses[5].value;
      const inside = masses.slice(1, 5).reduce((sum, mass) => sum + mass.value, 0);
      values.textContent =
        `x = ${number(x)}: T(x) = ${number(z, 4)}, log T′(x) = ${number(bijector.logSlope, 4)}, inverse of T(x) = ` +
        `${number(bijector.inverse(z, p), 4)}. Area under p: ${number(inside, 4)} in [−3, 3] + ` +
        `${number(tails, 4)} in the tails = ${number(inside + tails, 4)}.`;
      if (part % 5 === 0)
        status.textContent = "The point lies outside the knots, where T is the identity and the density is the normal one.";
      else {
        const [from, to] = knots.slice(part - 1, part + 1);
        status.textContent =
          `The shaded bin, from x = ${number(from.x)} to ${number(to.x)}, holds ${number(100 * masses[part].value, 1)}% of the ` +
          `probability: as much as the normal density has from z = ${number(from.y)} to ${number(to.y)}.`;
      }
    }

    function showChecks(knots, part, masses, least) {
      const show = (claim, error, bound) => checks.set(claim, short(error), `≤ ${short(bound)}`, error <= bound);
      const [d, z, h] = [slope(x), map(x), 1e-6];
      checks.set(claims[0], tools.minus(least.toPrecision(2)), "> 0", least > 0);
      // T(x) is rounded by a few epsilon, and the inverse moves by that divided by T'.
      show(claims[1], Math.abs(bijector.inverse(z, p) - x), (EPS * 16 * EDGE) / Math.min(1, d));
      // The error of a difference grows as h squared: from h to 2 h it changes by three times the error of h.
      const difference = (step) => (map(x + step) - map(x - step)) / (2 * step);
      const rounding = (EPS * (6 * EDGE + 5 * d)) / h;
      show(claims[2], Math.abs(d - difference(h)), Math.abs(difference(2 * h) - difference(h)) + rounding);
      const sum = (name) => masses.reduce((total, mass) => total + mass[name], 0);
      show(claims[3], Math.abs(sum("value") - 1), sum("change") + CELLS * EPS);
      const gaps = knots.map((k, i) => Math.hypot(k.x - wanted[i].x, k.y - wanted[i].y, k.slope - 10 ** wanted[i].tilt));
      show(claims[4], Math.max(...gaps), 100 * EPS);
    }

    function reset() {
      [chosen, x] = [1, -0.61];
      point.set(x);
      preset.control.value = "two modes";
      load("two modes");
    }
    stage.append(
      tools.controls(preset.element, tools.button("Reset", reset)),
      tools.controls(knot.element, ...Object.values(sliders).map((one) => one.element), point.element),
      tools.panels(element("div", {}, plot.element, legend), column), values, status, checks.element,
    );
    reset();
  };
})();
