/* One flow of two coupling layers, and faults that a programmer makes. It teaches which check finds which
 * fault, and that no single check finds them all. */
(() => {
  "use strict";
  const { Flow, roundTripError, logDetError, generator } = liveFlow({ ...liveBijectors(), ...liveNetwork() });
  const CLIP = 2; // where the broken bijector stops
  const HALF = 3; // the points of the checks cover [-HALF, HALF]
  const BOX = 9; // of the integral; with larger weights than the slider allows, the flow's mass leaves it
  const CELLS = 240;

  const faults = {
    none: "none",
    forgotten: "the log-determinant of the second layer is forgotten",
    sign: "the log-determinant has the wrong sign",
    clipped: `the bijector is clipped at ±${CLIP}`,
    peek: "the networks also see the active coordinate",
    swapped: "the inverse undoes the layers in the wrong order",
  };
  const wrongDensity = "The map and its inverse are right, so the picture is the same as without a fault. But the density is wrong: the log-determinant and the integral show it.";
  const findings = {
    none: "All checks hold: this is a flow.",
    forgotten: wrongDensity,
    sign: wrongDensity,
    clipped: "Many points get the same z, so no inverse can return them: every check fails.",
    peek: "The slope of the active coordinate gets a second term, through the network, that the log-determinant misses; and the inverse would need the x that it looks for. Every check fails.",
    swapped: "The map, its log-determinant and the density are right, so the picture is the same as without a fault. Only the round trip shows that the samples would be wrong.",
  };

  /** The bijector with its values cut off, and with the derivative that belongs to that. */
  function clipped(bijector) {
    return {
      ...bijector,
      forward(x, p) {
        bijector.forward(x, p);
        this.value = Math.max(-CLIP, Math.min(CLIP, bijector.value));
        this.logSlope = bijector.logSlope;
      },
      backward(x, p, byValue, byLogSlope, byP) {
        bijector.forward(x, p);
        const kept = Math.abs(bijector.value) < CLIP ? byValue : 0;
        return bijector.backward(x, p, kept, byLogSlope, byP);
      },
    };
  }

  /** A flow with fixed weights and one fault. */
  function build(fault, strength) {
    const flow = new Flow({ bijector: "mixture", options: [3], masks: [[true, false], [false, true]], width: 8, peek: fault === "peek" });
    flow.initialize(generator(5));
    flow.parameters.forEach((w, i) => (flow.parameters[i] = strength * w));
    if (fault === "clipped") flow.bijector = clipped(flow.bijector);
    const right = flow.forward.bind(flow);
    if (fault === "sign") flow.forward = (x) => -right(x);
    if (fault === "forgotten") {
      const first = new Flow({ bijector: "mixture", options: [3], masks: [[true, false]], width: 8 });
      first.parameters.set(flow.parameters.subarray(0, first.parameters.length));
      flow.forward = (x) => {
        right(x);
        return first.forward(x);
      };
    }
    if (fault === "swapped") {
      const inverse = flow.inverse.bind(flow);
      flow.inverse = (z) => {
        flow.layers.reverse();
        const x = inverse(z);
        flow.layers.reverse();
        return x;
      };
    }
    return flow;
  }

  /** A square grid of points, 9 by 9. */
  function points() {
    const rows = new Float64Array(2 * 81);
    for (let i = 0; i < 81; i++) rows.set([(i % 9) / 4 - 1, Math.floor(i / 9) / 4 - 1].map((v) => HALF * v), 2 * i);
    return rows;
  }

  window.liveFigures.break = (stage, tools) => {
    const { colours, element, number, about } = tools;
    const start = { fault: "none", strength: 1.25 };
    let settings = { ...start };
    let turn = 0;
    const claims = {
      trip: "round trip, largest error",
      logDet: "returned log-determinant minus log |det J|, largest",
      mass: `integral of the density in the square from −${BOX} to ${BOX}`,
    };
    const table = tools.checks(Object.values(claims));
    const status = tools.status();
    const grid = tools.plot({ height: 288, x: { range: [-5.5, 5.5], label: "z₁" }, y: { range: [-4, 4], label: "z₂" }, title: "What the flow makes of a grid", description: "" });
    const fault = tools.select({ label: "fault", options: faults, change: (value) => { settings.fault = value; show(); } });
    const strength = tools.slider({
      label: "weights, times their first values", min: 0.5, max: 1.5, step: 0.25, value: start.strength,
      input: (value) => { settings.strength = value; show(); },
    });
    const reset = tools.button("Reset", () => {
      settings = { ...start };
      fault.control.value = start.fault;
      strength.set(start.strength);
      show();
    });
    const legend = tools.legend(`A grid on the square from −${HALF} to ${HALF}, after two coupling layers. Blue: lines of constant x₂. Orange: lines of constant x₁.`);
    stage.append(
      tools.controls(fault.element, strength.element, reset), status,
      tools.panels(element("div", {}, grid.element, legend), table.element),
    );
    show();

    function show() {
      const flow = build(settings.fault, settings.strength);
      drawGrid(flow);
      status.textContent = findings[settings.fault];
      const rows = points();
      const [trip, logDet] = [roundTripError(flow, rows), logDetError(flow, rows)];
      table.set(claims.trip, about(trip), "≤ 1e−9", trip <= 1e-9);
      table.set(claims.logDet, about(logDet), "≤ 1e−9", logDet <= 1e-9);
      integrate(flow);
    }

    function drawGrid(flow) {
      const lines = [];
      const ends = Array.from({ length: 161 }, (_, i) => -HALF + (i / 160) * 2 * HALF);
      for (let v = -HALF; v <= HALF; v += 0.5)
        for (const swap of [false, true]) {
          const line = ends.map((u) => {
            flow.forward(swap ? [v, u] : [u, v]);
            return [...flow.z];
          });
          lines.push({ line, color: swap ? colours.active : colours.passive, width: 1.2 });
        }
      grid.draw(lines);
      grid.describe(`A grid of straight lines after the flow; the fault is: ${faults[settings.fault]}.`);
    }

    /** The integral takes longer than a task may: row by row, until another setting is chosen. */
    function integrate(flow) {
      const mine = ++turn;
      let [row, mass] = [0, 0];
      const step = (2 * BOX) / CELLS;
      table.set(claims.mass, "…", "1 ± 0.005", undefined);
      function rows() {
        if (mine !== turn) return;
        const begin = performance.now();
        for (; row < CELLS && performance.now() - begin < 15; row++)
          for (let column = 0; column < CELLS; column++)
            mass += Math.exp(flow.logProb([(column + 0.5) * step - BOX, (row + 0.5) * step - BOX])) * step * step;
        if (row < CELLS) return void setTimeout(rows);
        table.set(claims.mass, `≈ ${number(mass)}`, "1 ± 0.005", Math.abs(mass - 1) <= 0.005);
      }
      setTimeout(rows);
    }
  };
})();
