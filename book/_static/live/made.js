/* MADE's degrees: a masked network for four coordinates, and the inverse of its layer z_i = x_i + theta_i.
 *
 * The input of rank m has degree m, and theta of rank m has degree m - 1. A weight is kept if it leads to a unit
 * of equal or larger degree, so theta_i depends only on coordinates of smaller rank. Step i of the incremental
 * inverse computes the hidden units of degree i - 1, then theta and x of rank i. */
(() => {
  "use strict";
  const [DIM, WIDTH] = [4, 8];
  const [all, hiddenUnits] = [[...Array(DIM).keys()], [...Array(WIDTH).keys()]];
  const hiddenDegrees = hiddenUnits.map((k) => 1 + Math.floor((k * (DIM - 1)) / WIDTH));
  const first = { order: "2413", step: 3, sorted: true, fault: false };
  const orders = ["1234", "4321", "2413", "3142", "4132"];
  const name = (letter, i) => letter + "₁₂₃₄"[i];
  const pairs = all.flatMap((i) => all.map((j) => [i, j]));

  /** One unit per degree: its bias and its weights, null where masked. */
  const layer = (degrees, before, random) =>
    degrees.map((degree) => ({
      bias: random.normal() / 2,
      weights: before.map((other) => [other, random.normal()]).map(([other, w]) => (degree >= other ? w : null)),
    }));

  /** The network. Its `unit` counts the multiplications, one for each kept weight. */
  function makeNetwork(ranks, outputDegrees) {
    const random = liveFlow({}).generator(275); // with this seed two decimals show every entry
    const hidden = layer(hiddenDegrees, ranks, random);
    const outputs = layer(outputDegrees, hiddenDegrees, random);
    const unit = ({ bias, weights }, input) =>
      weights.reduce((sum, w, j) => (w === null ? sum : (net.count++, sum + w * input[j])), bias);
    const run = (x) => {
      const h = hidden.map((one) => Math.tanh(unit(one, x)));
      return outputs.map((one) => unit(one, h));
    };
    const net = { hidden, outputs, unit, run, count: 0 };
    return net;
  }

  /** Each hidden unit is computed once, in the step after that which finds the last of its inputs. */
  function incrementalInverse(net, ranks, z) {
    const [x, h] = [Array(DIM).fill(0), Array(WIDTH).fill(0)];
    const steps = all.map((known) => {
      net.count = 0;
      const units = hiddenUnits.filter((k) => hiddenDegrees[k] === known);
      for (const k of units) h[k] = Math.tanh(net.unit(net.hidden[k], x));
      const i = ranks.indexOf(known + 1);
      x[i] = z[i] - net.unit(net.outputs[i], h);
      return { i, units: units.length, count: net.count };
    });
    return { x, steps, sum: steps.reduce((total, { count }) => total + count, 0) };
  }

  function measure(ranks, outputDegrees) {
    const [net, random] = [makeNetwork(ranks, outputDegrees), liveFlow({}).generator(6)];
    const x = all.map(random.normal);
    const z = net.run(x).map((theta, i) => x[i] + theta);
    const evaluation = net.count;
    const { x: back, ...inverse } = incrementalInverse(net, ranks, z);
    const error = Math.max(...all.map((i) => Math.abs(back[i] - x[i])));
    // Central differences: where no path leads, both values are the same, and the difference is exactly zero.
    const h = Math.cbrt(Number.EPSILON);
    const moved = (j, by) => net.run(x.map((v, k) => (k === j ? v + by : v)));
    const columns = all.map((j) => [moved(j, h), moved(j, -h)]).map(([above, below]) => above.map((v, i) => (v - below[i]) / (2 * h)));
    const J = all.map((i) => columns.map((column) => column[i]));
    const paths = all.map((i) => all.map((j) =>
      net.hidden.filter(({ weights }, k) => weights[j] !== null && net.outputs[i].weights[k] !== null).length));
    // To first order: rounding times an upper bound of the condition number of dz/dx, which has determinant 1
    // where there is no fault (Guggenheimer, Edelman and Johnson, 1995).
    const condition = 2 * (Math.hypot(...pairs.map(([i, j]) => J[i][j] + (i === j))) / Math.sqrt(DIM)) ** DIM;
    const bound = (WIDTH + DIM) * Number.EPSILON * condition * Math.hypot(1, ...z);
    return { net, ...inverse, evaluation, J, paths, error, bound };
  }

  function picture({ svg, element, legend }, title, note) {
    const root = svg("svg", { viewBox: "0 0 320 322", class: "live-plot", role: "img", "aria-label": title });
    const add = (tag, attributes, ...inside) => root.append(svg(tag, attributes, ...inside));
    const write = (x, y, text, more) => add("text", { x, y, "text-anchor": "middle", ...more }, text);
    write(160, 16, title, { class: "live-title" });
    return { panel: element("div", {}, root, legend(note)), add, write };
  }

  function drawNetwork(tools, { net, steps }, { ranks, rows, step, outputDegrees, fault }) {
    const { active, passive, bad } = tools.colours;
    const { i } = steps[step - 1];
    const title = `Step ${step} computes ${name("θ", i)}, then ${name("x", i)}`;
    const missing = fault && step < DIM ? " Red, dashed: needed, but not yet known." : "";
    const note = `Number in a circle: the unit’s degree. Orange, thick: computed in this step. Blue: before. White: later.${missing}`;
    const { panel, add, write } = picture(tools, title, note);
    const hiddenY = (k) => 64 + 32 * (k + 0.5);
    const rowY = (j) => 64 + 64 * (rows.indexOf(j) + 0.5);
    const used = (k) => net.outputs[i].weights[k] !== null;
    const colourOf = (degree) => (degree >= step ? bad : degree === step - 1 ? active : passive);
    const lines = hiddenUnits.flatMap((k) => [
      ...all.filter((j) => net.hidden[k].weights[j] !== null)
        .map((j) => [60, rowY(j), 165, hiddenY(k), used(k) && colourOf(hiddenDegrees[k])]),
      ...all.filter((o) => net.outputs[o].weights[k] !== null)
        .map((o) => [165, hiddenY(k), 270, rowY(o), o === i && (hiddenDegrees[k] < step ? active : bad)]),
    ]);
    for (const [x1, y1, x2, y2, colour] of lines.sort((a, b) => Boolean(a[4]) - Boolean(b[4])))
      add("line", {
        x1, y1, x2, y2, stroke: colour || "#ccc", "stroke-width": !colour ? 0.8 : colour === passive ? 1.6 : 3,
        "stroke-dasharray": colour === bad ? "6 4" : undefined,
      });
    const circle = (cx, cy, degree, fill = "#fff", stroke = "") => {
      add("circle", { cx, cy, r: 13, fill, stroke: stroke || "#777", "stroke-width": stroke ? 3 : 1 });
      write(cx, cy + 4, degree, fill === passive ? { fill: "#fff" } : {});
    };
    ["inputs", "hidden units", "outputs"].forEach((text, k) => write(60 + 105 * k, 44, text));
    for (const j of all) {
      circle(60, rowY(j), ranks[j], ranks[j] < step ? passive : "#fff", j === i && active);
      circle(270, rowY(j), outputDegrees[j], j === i ? active : ranks[j] < step ? passive : "#fff");
      write(30, rowY(j) + 4, name("x", j));
      write(300, rowY(j) + 4, name("θ", j));
    }
    hiddenDegrees.forEach((degree, k) =>
      degree < step ? circle(165, hiddenY(k), degree, colourOf(degree)) : circle(165, hiddenY(k), degree, "#fff", used(k) && bad));
    return panel;
  }

  /** Shading from the masks, numbers from the network: row i, column j is d theta_i / d x_j. */
  function drawMatrix(tools, { J, paths }, { ranks, rows, step, fault }) {
    const missing = fault ? " Red frame: xⱼ is not known when θᵢ is computed." : "";
    const note = `Gray: allowed by the masks. Number: ∂θᵢ/∂xⱼ; the layer is zᵢ = xᵢ + θᵢ. The rank of xᵢ is its place in the order.${missing}`;
    const { panel, add, write } = picture(tools, "Which θ depends on which x", note);
    rows.forEach((i, row) => {
      const now = ranks[i] === step;
      write(42, 100 + 64 * row, name("θ", i), { "font-weight": now ? "bold" : "normal" });
      write(90 + 64 * row, 44, name("x", i));
      rows.forEach((j, column) => {
        const wrong = paths[i][j] && ranks[j] >= ranks[i];
        add("rect", {
          x: 60 + 64 * column, y: 66 + 64 * row, width: 60, height: 60, "fill-opacity": paths[i][j] ? 0.15 : 0,
          stroke: wrong ? tools.colours.bad : now ? tools.colours.active : "#bbb", "stroke-width": wrong || now ? 3 : 1,
        });
        write(90 + 64 * column, 100 + 64 * row, J[i][j] ? tools.minus(J[i][j].toFixed(2)) + (wrong ? " !" : "") : "");
      });
    });
    return panel;
  }

  function stepRows({ element }, { steps, sum, evaluation }, current) {
    const line = (tag, ...texts) => element("tr", {}, ...texts.map((text) => element(tag, {}, String(text))));
    const body = steps.map(({ i, units, count }, k) =>
      line(k + 1 === current ? "th" : "td", `${k + 1}${k + 1 === current ? " ◀" : ""}`, name("x", i), units, count, evaluation));
    return [line("th", "step", "finds", "new units", "multiplications", "naive inverse"), ...body, line("th", "all", "", WIDTH, sum, DIM * evaluation)];
  }

  function finding({ paths, steps }, { ranks, step, fault }) {
    const { i, units, count } = steps[step - 1];
    const [theta, x] = [name("θ", i), name("x", i)];
    if (fault)
      return paths[i][i]
        ? `${theta} depends on ${x} itself, which is not known before this step ends. So the inverse is wrong.`
        : `${theta} does not depend on ${x}, because no hidden unit has degree ${DIM}. But the other outputs are wrong.`;
    if (step === 1) return `${theta} depends on no input: it is a constant. So ${x} is found without any multiplication.`;
    const known = all.filter((j) => paths[i][j]).sort((a, b) => ranks[a] - ranks[b]).map((j) => name("x", j));
    return `${theta} depends only on ${known.join(", ").replace(/, (\S+)$/, " and $1")}. The ${units} hidden units of degree ${step - 1} become final: with ${theta}, ${count} multiplications.`;
  }

  window.liveFigures.made = (stage, tools) => {
    const state = { ...first };
    const claims = [
      "largest |∂θᵢ/∂xⱼ| where xⱼ has equal or larger rank", "entries where masks and network disagree",
      "∂z/∂x sorted by rank: non-zeros above the diagonal", "multiplications of all steps, and of one evaluation",
      "incremental inverse: error of x",
    ];
    const [table, status, panels] = [tools.checks(claims), tools.status(), tools.panels()];
    const steps = tools.element("table", { class: "checks" });
    const naive = tools.legend("The naive inverse evaluates the whole network in every step; the numbers in its column are multiplications too.");

    function draw() {
      const ranks = all.map((i) => state.order.indexOf(i + 1) + 1);
      const rows = state.sorted ? [...state.order].map((digit) => digit - 1) : all;
      const outputDegrees = ranks.map((rank) => (state.fault ? rank : rank - 1));
      const found = measure(ranks, outputDegrees);
      const view = { ...state, ranks, rows, outputDegrees };
      panels.replaceChildren(drawNetwork(tools, found, view), drawMatrix(tools, found, view));
      steps.replaceChildren(...stepRows(tools, found, state.step));
      status.textContent = finding(found, view);
      sorted.textContent = `Sort by rank: ${state.sorted ? "on" : "off"}`;
      fault.setAttribute("aria-pressed", state.fault);
      check(found, ranks);
    }

    function check({ J, paths, sum, evaluation, error, bound }, ranks) {
      const count = (test) => pairs.filter(([i, j]) => test(J[i][j] !== 0, i, j)).length;
      const forbidden = Math.max(...pairs.map(([i, j]) => (ranks[j] >= ranks[i] ? Math.abs(J[i][j]) : 0)));
      const unlike = count((found, i, j) => found !== paths[i][j] > 0);
      const above = count((found, i, j) => found && ranks[j] > ranks[i]);
      table.set(claims[0], forbidden ? forbidden.toFixed(2) : "0", "0", forbidden === 0);
      table.set(claims[1], `${unlike} of ${pairs.length}`, "0", unlike === 0);
      table.set(claims[2], `${above}`, "0", above === 0);
      table.set(claims[3], `${sum}`, `${evaluation}`, sum === evaluation);
      table.set(claims[4], tools.scientific(error), `≤ ${tools.scientific(bound)}`, error <= bound);
    }

    const order = tools.select({
      label: "order", value: first.order, options: Object.fromEntries(orders.map((o) => [o, [...o].map((digit) => name("x", digit - 1)).join(", ")])),
      change: (value) => { state.order = value; slider.set(state.step); draw(); },
    });
    const slider = tools.slider({
      label: "step i", min: 1, max: DIM, step: 1, value: first.step, format: (step) => `${step}: finds ${name("x", state.order[step - 1] - 1)}`,
      input: (value) => { state.step = value; draw(); },
    });
    const sorted = tools.button("", () => { state.sorted = !state.sorted; draw(); });
    const fault = tools.button("Fault: output degrees off by one", () => { state.fault = !state.fault; draw(); });
    const reset = tools.button("Reset", () => {
      Object.assign(state, first);
      order.control.value = first.order;
      slider.set(first.step);
      draw();
    });
    stage.append(tools.controls(order.element, slider.element, sorted, fault, reset), status, panels, steps, naive, table.element);
    draw();
  };
})();
