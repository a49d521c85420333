/* Paths of a continuous flow: the exact velocity that carries noise to a mixture of Gaussians, followed by a
 * solver with few steps. It teaches that the error falls as a power of the step, and that the shape of the
 * paths decides how many steps are needed. */
(() => {
  "use strict";
  const { generator } = liveFlow({ ...liveBijectors(), ...liveNetwork() });
  const SHOWN = 60; // points
  const EXACT = 128; // steps of the reference

  const ring = Array.from({ length: 8 }, (_, k) => [2 * Math.cos((k * Math.PI) / 4), 2 * Math.sin((k * Math.PI) / 4)]);
  const targets = {
    ring: { text: "eight Gaussians", means: ring, scale: 0.2 },
    two: { text: "two Gaussians", means: [[-1.5, 0], [1.5, 0]], scale: 0.3 },
    one: { text: "one Gaussian", means: [[1, 1]], scale: 0.5 },
  };
  // The point at time t is b x0 + a x1: [a, b] and their derivatives.
  const kinds = {
    linear: { text: "straight: (1 − t) x₀ + t x₁", at: (t) => [t, 1 - t, 1, -1] },
    round: {
      text: "quarter circle: cos(πt/2) x₀ + sin(πt/2) x₁",
      at: (t) => {
        const [h, c, s] = [Math.PI / 2, Math.cos((Math.PI * t) / 2), Math.sin((Math.PI * t) / 2)];
        return [s, c, h * c, -h * s];
      },
    },
  };
  const solvers = {
    euler: { text: "Euler", evaluations: 1 },
    heun: { text: "Heun", evaluations: 2 },
    rk4: { text: "Runge–Kutta (RK4)", evaluations: 4 },
  };

  /** E[b' x0 + a' x1 | x]: a mean of the components' velocities, weighted by their probabilities at x. */
  function velocity({ means, scale }, { at }) {
    return (t, [x, y]) => {
      const [a, b, da, db] = at(t);
      const variance = b * b + a * a * scale * scale;
      const pull = (b * db + a * da * scale * scale) / variance;
      const halves = means.map(([m, n]) => ((x - a * m) ** 2 + (y - a * n) ** 2) / (2 * variance));
      const least = Math.min(...halves);
      let [total, u, v] = [0, 0, 0];
      means.forEach(([m, n], k) => {
        const weight = Math.exp(least - halves[k]);
        total += weight;
        u += weight * (da * m + pull * (x - a * m));
        v += weight * (da * n + pull * (y - a * n));
      });
      return [u / total, v / total];
    };
  }

  const moved = ([x, y], h, [u, v]) => [x + h * u, y + h * v];
  const step = {
    euler: (f, t, h, x) => moved(x, h, f(t, x)),
    heun(f, t, h, x) {
      const first = f(t, x);
      return moved(moved(x, h / 2, first), h / 2, f(t + h, moved(x, h, first)));
    },
    rk4(f, t, h, x) {
      const first = f(t, x);
      const second = f(t + h / 2, moved(x, h / 2, first));
      const third = f(t + h / 2, moved(x, h / 2, second));
      const fourth = f(t + h, moved(x, h, third));
      return moved(moved(moved(moved(x, h / 6, first), h / 3, second), h / 3, third), h / 6, fourth);
    },
  };

  /** The points of a path, from t = 0 to t = 1. */
  function follow(f, solver, steps, start) {
    const points = [start];
    for (let i = 0; i < steps; i++) points.push(step[solver](f, i / steps, 1 / steps, points[i]));
    return points;
  }

  const distance = ([x, y], [u, v]) => Math.hypot(x - u, y - v);
  const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

  window.liveFigures.paths = (stage, tools) => {
    const { colours, minus, scientific } = tools;
    const first = { target: "ring", kind: "linear", solver: "euler", steps: 4 };
    let settings = { ...first };
    const random = generator(9);
    const noise = Array.from({ length: SHOWN }, () => [random.normal(), random.normal()]);
    const colorOf = { euler: colours.bad, heun: colours.passive, rk4: colours.good };
    let [ends, errors] = [[], {}]; // the exact end points; the errors of each solver for 1, 2, 4, … steps
    const claims = {
      error: "mean distance from the exact end point",
      fall: "the same with twice the steps, divided by it",
      exact: "exact end points: change with half the steps",
    };
    const table = tools.checks(Object.values(claims));
    const status = tools.status();
    const plane = tools.plot({
      x: { range: [-3.2, 3.2], label: "x₁" }, y: { range: [-3.2, 3.2], label: "x₂" }, title: "From noise (gray) to data", description: "",
    });
    const fall = tools.plot({
      x: { range: [0, 8], label: "evaluations of the velocity, log₂" }, y: { range: [-8, 1], label: "error, log₁₀" },
      title: "Error of the end point", description: "",
    });
    const choose = (name, label, all) => {
      const options = Object.fromEntries(Object.entries(all).map(([key, { text }]) => [key, text]));
      return tools.select({ label, options, value: settings[name], change: (value) => { settings[name] = value; show(); } });
    };
    const controls = { target: choose("target", "data", targets), kind: choose("kind", "paths", kinds), solver: choose("solver", "solver", solvers) };
    const steps = tools.slider({ label: "steps", min: 1, max: 32, step: 1, value: first.steps, input: (value) => { settings.steps = value; show(); } });
    const reset = tools.button("Reset", () => {
      settings = { ...first };
      for (const [name, { control }] of Object.entries(controls)) control.value = first[name];
      steps.set(first.steps);
      show();
    });
    const legend = tools.element("p", { class: "live-legend" },
      "Vermilion: Euler; blue: Heun; green: RK4. Left: the paths, with a dot at each step; black dots, where the exact paths end. Right: the ring marks your choice.");
    stage.append(
      tools.controls(controls.target.element, controls.kind.element), tools.controls(controls.solver.element, steps.element, reset),
      status, tools.panels(plane.element, fall.element), legend, table.element,
    );
    show();

    function show() {
      const f = velocity(targets[settings.target], kinds[settings.kind]);
      ends = noise.map((x) => follow(f, "rk4", EXACT, x).at(-1));
      const errorOf = (solver, n) => mean(noise.map((x, i) => distance(follow(f, solver, n, x).at(-1), ends[i])));
      for (const solver of Object.keys(solvers)) errors[solver] = [1, 2, 4, 8, 16, 32].map((n) => errorOf(solver, n));
      const paths = noise.map((x) => follow(f, settings.solver, settings.steps, x));
      const error = mean(paths.map((path, i) => distance(path.at(-1), ends[i])));
      const finer = errorOf(settings.solver, 2 * settings.steps);
      const change = Math.max(...noise.map((x, i) => distance(follow(f, "rk4", EXACT / 2, x).at(-1), ends[i])));
      drawPaths(paths);
      drawErrors(error);
      write(error, finer, change);
    }

    function drawPaths(paths) {
      plane.draw([
        { dots: noise, color: "#999", radius: 2.5 },
        ...paths.flatMap((path) => [
          { line: path, color: colorOf[settings.solver], width: 1, opacity: 0.7 },
          { dots: path.slice(1), color: colorOf[settings.solver], radius: 1.6, opacity: 0.7 },
        ]),
        { dots: ends, color: colours.truth, radius: 2.5 },
      ]);
      plane.describe(`Paths of ${SHOWN} points from noise to ${targets[settings.target].text} in ${settings.steps} steps of ${solvers[settings.solver].text}.`);
    }

    function drawErrors(error) {
      const log = (value) => Math.max(-8, Math.log10(Math.max(value, 1e-8)));
      const curve = (solver) => errors[solver].map((value, i) => [i + Math.log2(solvers[solver].evaluations), log(value)]);
      const here = [Math.log2(settings.steps * solvers[settings.solver].evaluations), log(error)];
      fall.draw([
        ...Object.keys(solvers).flatMap((solver) => [{ line: curve(solver), color: colorOf[solver] }, { dots: curve(solver), color: colorOf[solver] }]),
        { dots: [here], color: "#fff", radius: 7 }, { dots: [here], color: colours.truth, radius: 7, opacity: 0.35 }, { dots: [here], color: colorOf[settings.solver], radius: 4 },
      ]);
      fall.describe("The mean error of the end point against the number of evaluations, for three solvers, on logarithmic axes.");
    }

    function write(error, finer, change) {
      const { text, evaluations } = solvers[settings.solver];
      const count = settings.steps * evaluations;
      status.textContent = `${settings.steps} step${settings.steps > 1 ? "s" : ""} of ${text}, ${count} evaluation${count > 1 ? "s" : ""} of the velocity: the end points are ${minus(error.toPrecision(2))} away from the exact ones on average.`;
      table.set(claims.error, `≈ ${scientific(error)}`, "–", undefined);
      table.set(claims.fall, error > 1e-9 ? `≈ ${scientific(finer / error)}` : "–", "–", undefined);
      table.set(claims.exact, `≈ ${scientific(change)}`, "≤ 0.0001", change <= 1e-4);
    }
  };
})();
