/* "Click a mask": which outputs of a stack of coupling layers depend on which inputs.
 *
 * A layer copies its passive coordinates and transforms the active ones, with parameters that depend on the
 * passive ones. If the masks leave no path from input j to output i, entry (i, j) of the Jacobian is zero for
 * all weights. The figure counts the paths, differentiates a flow with random weights, and compares. */
(() => {
  "use strict";
  const [DIM, MOST, WIDTH] = [8, 4, 16]; // coordinates, layers, hidden units
  const indices = Array.from({ length: DIM }, (_, i) => i);
  const first = { layers: 2, preset: "half", seed: 1, fault: false };
  const presets = {
    half: "half, flipped in turn", alternating: "alternating, flipped in turn", same: "half, the same in all layers",
    random: "random", own: "your own",
  };

  function presetMasks(name, random) {
    return Array.from({ length: MOST }, (_, layer) => {
      const keys = indices.map((i) => (name === "random" ? random() : name === "alternating" ? i % 2 : i));
      const passive = [...indices].sort((i, j) => keys[i] - keys[j]).slice(0, DIM / 2);
      return indices.map((i) => passive.includes(i) !== (layer % 2 === 1 && name !== "same"));
    });
  }

  /** The number of paths from each input (column) to each output (row). Above zero it is reachability. */
  function countPaths(masks) {
    let paths = indices.map((i) => indices.map((j) => Number(i === j)));
    for (const mask of masks) {
      const passive = paths.filter((_, k) => mask[k]);
      const fromPassive = indices.map((j) => passive.reduce((sum, row) => sum + row[j], 0));
      paths = paths.map((row, i) => (mask[i] ? row : row.map((own, j) => own + fromPassive[j])));
    }
    return paths;
  }

  /** A flow with random weights at a random point: its Jacobian, two errors, and a bound on both. */
  function measure(masks, seed, peek) {
    const { Flow, generator, logAbsDet, logDetError, roundTripError } = liveFlow({ ...liveBijectors(), ...liveNetwork() });
    const [flow, random] = [new Flow({ masks, width: WIDTH, peek }), generator(seed)];
    flow.initialize(random);
    const x = Float64Array.from(indices, random.normal);
    const J = flow.jacobian(x);
    // Rounding of sums of WIDTH + DIM terms in each layer, times an upper bound of J's condition number that
    // follows from its entries and its determinant (Guggenheimer, Edelman and Johnson, 1995).
    const spread = Math.hypot(...J.flatMap((row) => [...row])) / Math.sqrt(DIM);
    const condition = 2 * Math.exp(DIM * Math.log(spread) - logAbsDet(J));
    const bound = masks.length * (WIDTH + DIM) * Number.EPSILON * condition * Math.hypot(1, ...x);
    return { J, bound, errors: [logDetError(flow, x), roundTripError(flow, x)] };
  }

  /** Rows are outputs, columns are inputs; cell(i, j) returns [text, shade, wrong]. */
  function matrix({ svg, colours }, title, note, cell) {
    const [left, top, size] = [38, 58, 35];
    const middle = left + (DIM * size) / 2;
    const root = svg("svg", { viewBox: `0 0 320 ${top + DIM * size + 4}`, class: "live-plot", role: "img", "aria-label": title });
    const write = (x, y, text, more) => root.append(svg("text", { x, y, "text-anchor": "middle", ...more }, text));
    write(middle, 16, title, { class: "live-title" });
    write(middle, 34, note);
    write(12, 200, "output i", { transform: "rotate(-90 12 200)" });
    for (const i of indices) {
      const y = top + i * size;
      write(left + (i + 0.5) * size, top - 6, i + 1);
      write(left - 9, y + 22, i + 1);
      for (const j of indices) {
        const x = left + j * size;
        const [text, shade, wrong] = cell(i, j);
        const edge = wrong ? { stroke: colours.bad, "stroke-width": 3 } : { stroke: "#bbb" };
        root.append(svg("rect", { x: x + 1, y: y + 1, width: size - 2, height: size - 2, "fill-opacity": shade, ...edge }));
        write(x + size / 2, y + 22, text);
      }
    }
    return root;
  }

  const list = (numbers, word) => numbers.join(", ").replace(/, (\d+)$/, ` ${word} $1`);

  function finding(masks, paths, zeros) {
    const after = `After ${masks.length} layer${masks.length > 1 ? "s" : ""}`;
    if (!zeros) return `${after} every output depends on every input.`;
    const copied = indices.filter((i) => masks.every((mask) => mask[i])).map((i) => i + 1);
    const missing = paths.map((row) => indices.filter((j) => !row[j]).map((j) => j + 1));
    const i = missing.findIndex((row) => row.length === Math.max(...missing.map((other) => other.length)));
    const example = copied.length
      ? `Every layer copies coordinate${copied.length > 1 ? "s" : ""} ${list(copied, "and")}.`
      : `For example, output ${i + 1} does not depend on input ${list(missing[i], "or")}.`;
    return `${after}, ${zeros} of the ${DIM * DIM} entries are zero for all weights. ${example}`;
  }

  window.liveFigures.masks = (stage, tools) => {
    const { element, colours, scientific } = tools;
    const state = { ...first };
    const claims = ["zeros of J that are not as predicted", "sum of log-slopes minus log |det J|", "error of the round trip"];
    const [table, status, pictures, rows] = [tools.checks(claims), tools.status(), tools.panels(), element("div")];
    let masks;
    const buttons = Array.from({ length: MOST }, (_, layer) => indices.map((i) => tools.button("", () => click(layer, i))));
    buttons.forEach((line, layer) => {
      const grid = element("div", { role: "group", "aria-label": `mask of layer ${layer + 1}` }, ...line);
      Object.assign(grid.style, { display: "grid", flex: "1 1 290px", gap: "3px", gridTemplateColumns: "repeat(auto-fit, minmax(4.4rem, 1fr))" });
      rows.append(element("div", { class: "live-row" }, `layer ${layer + 1}`, grid));
      rows.lastChild.style.marginBottom = "6px";
      for (const { style } of line) Object.assign(style, { fontSize: "0.8rem", padding: 0 });
    });

    function click(layer, i) {
      const next = masks[layer].map((passive, k) => passive !== (k === i));
      if (next.every((passive) => passive === next[0])) {
        draw();
        status.textContent = `Not changed: layer ${layer + 1} needs at least one ${next[0] ? "active" : "passive"} coordinate. ${status.textContent}`;
        return;
      }
      masks[layer] = next;
      preset.control.value = "own";
      draw();
    }

    function drawButtons() {
      fault.setAttribute("aria-pressed", state.fault);
      buttons.forEach((line, layer) => {
        rows.children[layer].style.display = layer < state.layers ? "" : "none";
        line.forEach((button, i) => {
          const passive = masks[layer][i];
          button.textContent = `${i + 1} ${passive ? "passive" : "active"}`;
          button.setAttribute("aria-pressed", passive);
          button.style.background = passive ? "" : colours.active;
        });
      });
    }

    function draw() {
      drawButtons();
      const used = masks.slice(0, state.layers);
      const paths = countPaths(used);
      const { J, bound, errors } = measure(used, state.seed, state.fault);
      const wrong = (i, j) => (J[i][j] === 0) !== (paths[i][j] === 0);
      const count = (test) => indices.reduce((sum, i) => sum + indices.filter((j) => test(i, j)).length, 0);
      const zeros = count((i, j) => !paths[i][j]);
      const value = (v) => (v ? (Math.abs(v) < 0.005 ? "~0" : tools.minus(v.toFixed(2))) : "");
      pictures.replaceChildren(
        matrix(tools, `Jacobian J: ${count((i, j) => J[i][j] === 0)} zeros`, "input j   (~0: small, but not zero)", (i, j) =>
          [value(J[i][j]), J[i][j] && 0.08 + 0.2 * Math.min(1, Math.abs(J[i][j])), wrong(i, j)]),
        matrix(tools, `Number of paths: ${zeros} zeros predicted`, "input j", (i, j) =>
          [paths[i][j] || (wrong(i, j) ? "!" : ""), paths[i][j] && 0.15, wrong(i, j)]),
        tools.legend(
          "White: zero. Left, darker gray: larger absolute value. A path goes from input j to output i: in each layer, every " +
          `coordinate leads to itself, and a passive one also to each active one.${state.fault ? " Red frame: not as predicted." : ""}`,
        ),
      );
      const unlike = count(wrong);
      table.set(claims[0], `${unlike} of ${DIM * DIM}`, "0", unlike === 0);
      errors.forEach((error, k) => table.set(claims[k + 1], scientific(error), `≤ ${scientific(bound)}`, error <= bound));
      status.textContent = state.fault
        ? "The networks also take the active coordinates as inputs: these layers are no longer couplings."
        : finding(used, paths, zeros);
    }

    function start() {
      masks = presetMasks(state.preset, liveFlow({}).generator(3));
      draw();
    }

    const layers = tools.slider({
      label: "layers", min: 1, max: MOST, step: 1, value: first.layers,
      input: (value) => { state.layers = value; draw(); },
    });
    const preset = tools.select({
      label: "masks", options: presets,
      change: (value) => { state.preset = value; if (value !== "own") start(); },
    });
    const weights = tools.button("New weights", () => { state.seed += 1; draw(); });
    const fault = tools.button("Fault: networks take all inputs", () => { state.fault = !state.fault; draw(); });
    const reset = tools.button("Reset", () => {
      Object.assign(state, first);
      layers.set(first.layers);
      preset.control.value = first.preset;
      start();
    });
    stage.append(tools.controls(layers.element, preset.element, weights, fault, reset), rows, status, pictures, table.element);
    start();
  };
})();
