/* The inverse of a residual block by iteration, in one dimension, for the chapter on residual flows.
 *
 * The block is z = x + g(x) with g(x) = slope tanh(x - 1), and z = 1. The solution is x = 1, where |g'| is largest:
 * there it equals kappa, the Lipschitz constant of g. The figure teaches that kappa < 1 makes the iteration
 * x <- z - g(x) converge; that a larger positive slope spoils the iteration but not the inverse; and that a slope
 * below -1 folds the map, so that no inverse exists. */
(() => {
  "use strict";
  const Z = 1;
  const CENTRE = 1;
  const MANY = 2000; // steps after which an iteration that converges at all has converged
  const EPS = Number.EPSILON;
  const STEP_ROUNDING = 6 * EPS; // of one step z - g(x), for |x| < 5
  const first = { slope: 0.75, start: 3.5, steps: 12 };
  const line = Array.from({ length: 513 }, (_, i) => -7 + i / 32); // from -7 to 9; contains the centre

  /** All x in the line with f(x) = 0, by bisection where the sign changes. */
  function roots(f) {
    const found = line.filter((x) => f(x) === 0);
    for (let i = 1; i < line.length; i++) {
      let [low, high] = [line[i - 1], line[i]];
      const rises = f(low) < 0;
      if (!(f(low) * f(high) < 0)) continue;
      for (let k = 0; k < 60; k++) {
        const middle = 0.5 * (low + high);
        if (f(middle) < 0 === rises) low = middle;
        else high = middle;
      }
      found.push(low);
    }
    return found.sort((a, b) => a - b);
  }

  function iterate(step, start, count) {
    const path = [start];
    for (let k = 0; k < count; k++) path.push(step(path[k]));
    return path;
  }

  /** Everything that the figure shows, from its three controls. */
  function study({ slope, start, steps }) {
    const g = (x) => slope * Math.tanh(x - CENTRE);
    const gSlopes = line.map((x) => slope / Math.cosh(x - CENTRE) ** 2);
    const next = (x) => Z - g(x);
    const gap = (x) => x + g(x) - Z;
    const solutions = roots(gap);
    const distance = (x) => Math.min(...solutions.map((solution) => Math.abs(x - solution)));
    const path = iterate(next, start, steps);
    return {
      slope, start, steps, g, next, gap, solutions, path,
      kappa: Math.max(...gSlopes.map(Math.abs)),
      least: 1 + Math.min(...gSlopes),
      ends: iterate(next, start, MANY + 1).slice(-2),
      errors: [distance(start), distance(path.at(-1))],
    };
  }

  window.liveFigures.cobweb = (stage, tools) => {
    const { colours, element, fixed: number } = tools;
    const short = (value) => (value === 0 ? "0" : tools.scientific(value));
    const state = { ...first };
    const slider = (name, label, min, max, step, format) => tools.slider({
      label, min, max, step, value: first[name], format,
      input: (value) => { state[name] = value; draw(); },
    });
    const sliders = {
      // Never exactly 1 or −1, where no check could tell what happens.
      slope: slider("slope", "Slope g′(1)", -1.45, 1.45, 0.1, (v) => number(v)),
      start: slider("start", "Start", -2, 4, 0.1, (v) => number(v, 1)),
      steps: slider("steps", "Number of steps k", 0, 60, 1),
    };
    const range = [-2.5, 4.5];
    const web = tools.plot({
      width: 320, height: 330, title: "Repeat x ← z − g(x)",
      x: { range, label: "current x" }, y: { range, label: "next x: z − g(x)" },
    });
    const map = tools.plot({
      width: 320, height: 330, title: "x + g(x)", x: { range, label: "x" }, y: { range: [-4, 6], label: "x + g(x)" },
    });
    const webLegend = tools.legend();
    const mapLegend = tools.legend("Dashed: y = x. Dotted: z = 1 and the solutions of x + g(x) = z (black dots).");
    const formula = element("p", { class: "live-status" });
    const status = tools.status();
    const claims = {
      error: "error after k steps, against κᵏ × first error", kappa: "g is a contraction: its κ",
      least: "x + g(x) increases: smallest slope",
      solved: "solutions, by bisection: |x + g(x) − z|", limit: "after 2,000 steps: |x + g(x) − z|",
    };
    const checks = tools.checks(Object.values(claims));

    function draw() {
      const s = study(state);
      formula.textContent = `g(x) = ${number(s.slope)} · tanh(x − 1) and z = 1, so x = 1 is always a solution. κ = |g′(1)| = ${number(s.kappa)}.`;
      drawWeb(s);
      drawMap(s);
      status.textContent = finding(s);
      showChecks(s);
    }

    function drawWeb({ next, path, start, steps }) {
      const corners = path.flatMap((x, k) => (k ? [[path[k - 1], x], [x, x]] : [[x, x]]));
      const last = path.at(-1);
      web.draw([
        { line: [[-3, -3], [5, 5]], color: colours.muted, dash: "5 4", width: 1 },
        { line: line.map((x) => [x, next(x)]), color: colours.active, width: 2.5 },
        { line: corners, width: 1.2 },
        { dots: [[start, start]], radius: 5 },
        start < Z
          ? { text: "start", at: [start + 0.25, start - 0.35] }
          : { text: "start", at: [start - 0.2, start + 0.15], anchor: "end" },
        { dots: [[last, last]], radius: 5, color: colours.other },
      ]);
      webLegend.textContent = `Orange: z − g(x). Dashed: next x = current x. Black dot: start. Pink dot: after ${steps} steps, x = ${number(last, 3)}.`;
      web.describe(`Cobweb of the iteration from ${number(start, 1)}; after ${steps} steps x is ${number(last, 4)}.`);
    }

    function drawMap({ g, least, solutions }) {
      const folds = least < 0;
      const title = folds ? `x + g(x) folds: ${solutions.length} solutions` : "x + g(x) increases: one solution";
      map.rename(title);
      map.describe(`${title}, at x = ${solutions.map((x) => number(x)).join(", ")}.`);
      map.draw([
        { line: [[-3, -3], [5, 5]], color: colours.muted, dash: "5 4", width: 1 },
        { line: [[-3, Z], [5, Z]], width: 1, dash: "2 3" },
        { text: "z = 1", at: [-2.4, Z + 0.2] },
        { line: line.map((x) => [x, x + g(x)]), color: folds ? colours.bad : colours.active, width: 2.5 },
        ...solutions.map((x) => ({ line: [[x, -4], [x, Z]], width: 1, dash: "2 3" })),
        { dots: solutions.map((x) => [x, Z]), radius: 5 },
      ]);
    }

    function finding({ slope, kappa, solutions, ends, errors }) {
      if (errors[0] === 0) return `The start, x = ${number(ends[0])}, is a solution, so every step stays there. Choose another start.`;
      if (slope < -1) {
        const where = solutions.map((x) => number(x)).join(", ");
        return `κ = ${number(kappa)}, and the map folds: z = 1 has the ${solutions.length} solutions ${where}, so there is no inverse. ` +
          `From this start the iteration ends at ${number(ends[0])}.`;
      }
      if (slope > 1)
        return `κ = ${number(kappa)}: x + g(x) increases, so it has an inverse, but the iteration does not find it: ` +
          `in the end it jumps between ${number(Math.min(...ends))} and ${number(Math.max(...ends))}.`;
      return `κ = ${number(kappa)} is less than 1, so g is a contraction: the iteration converges from every start, ` +
        `and each step multiplies the error by at most ${number(kappa)}.`;
    }

    function showChecks({ kappa, least, solutions, gap, ends, errors, steps }) {
      const bound = kappa ** steps * errors[0] + STEP_ROUNDING / (1 - kappa);
      if (kappa < 1) checks.set(claims.error, short(errors[1]), `≤ ${short(bound)}`, errors[1] <= bound);
      else checks.set(claims.error, short(errors[1]), "no bound: κ > 1");
      checks.set(claims.kappa, number(kappa), "< 1", kappa < 1);
      checks.set(claims.least, number(least), "> 0", least > 0);
      const worst = Math.max(...solutions.map((x) => Math.abs(gap(x))));
      checks.set(claims.solved, short(worst), `≤ ${short(2 * STEP_ROUNDING)}`, worst <= 2 * STEP_ROUNDING);
      // Near a solution the slope is at most 0.95, so rounding is magnified by at most 1.95 / 0.05 = 39.
      const floor = 40 * STEP_ROUNDING;
      const end = Math.abs(gap(ends[0]));
      checks.set(claims.limit, short(end), `≤ ${short(floor)}`, end <= floor);
    }

    function reset() {
      Object.assign(state, first);
      for (const name of Object.keys(first)) sliders[name].set(first[name]);
      draw();
    }
    stage.append(
      tools.controls(...Object.values(sliders).map(({ element: row }) => row), tools.button("Reset", reset)),
      formula, tools.panels(element("div", {}, web.element, webLegend), element("div", {}, map.element, mapLegend)), status, checks.element,
    );
    draw();
  };
})();
