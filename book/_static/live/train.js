/* A coupling flow that trains in the page: data, latent points, samples, density, loss and checks.
 *
 * It teaches that layers must exchange the roles of the coordinates: with one mask in every layer the loss
 * stops above its lower bound. And it shows why a conditioner must not see the active coordinate: the loss
 * falls below the entropy, which no density can do, and three checks fail. */
(() => {
  "use strict";
  const DRAWN = [[-1.5, -1], [-1, 0.2], [-0.4, 1], [0.3, 1.3], [1, 1], [1.5, 0.2], [1.2, -0.8], [0.4, -1.2]];
  const LEAST_DRAWN = 5;

  window.liveFigures.train = (stage, tools, options) => {
    const { colours, calm, minus, fixed, about } = tools;
    const settings = {
      data: "moons", bijector: "affine", pattern: "alternate", layers: 6, rate: 0.01, ...options,
    };
    let drawn = DRAWN.map((point) => [...point]);
    let running = false;
    let run = 0;
    let curve = [];
    let picture = null;

    const claims = {
      loss: "loss minus entropy",
      trip: "round trip, largest error",
      logDet: "sum of log-slopes minus log |det J|",
      mass: "integral of the density over the square from −7 to 7",
    };
    const table = tools.checks(Object.values(claims));
    const status = tools.status(false);
    const before = panel("data (black), density (blue)", "x");
    const latent = panel("data after the flow; circles: radius 1 and 2", "z");
    const after = panel("samples of the flow", "x");
    const lossPlot = tools.plot({
      width: 360, height: 220, x: { range: [0, 1], label: "training step" }, y: { range: [0, 1], label: "loss (nats)" },
      description: "The loss on held-out points against the training step.",
    });
    const lossBox = tools.element("div", {}, lossPlot.element);
    const legend = tools.legend();
    const send = liveTrainer(receive);

    const go = tools.button("Train", () => (running ? pause() : play()));
    const again = tools.button("Start over", () => restart());
    const clear = tools.button("Clear the drawing", () => { drawn = []; restart(); });
    const choice = (name, label, texts) =>
      tools.select({ label, options: texts, value: settings[name], change: (value) => { settings[name] = value; restart(); } }).element;
    const layers = tools.slider({
      label: "layers", min: 1, max: 10, step: 1, value: settings.layers,
      input: (value) => { settings.layers = value; restart(); },
    }).element;
    const rate = tools.slider({
      label: "learning rate", min: -3, max: -1.5, step: 0.25, value: Math.log10(settings.rate),
      format: (value) => (10 ** value).toPrecision(2), input: (value) => { settings.rate = 10 ** value; restart(); },
    }).element;
    const small = tools.panels(before.element, latent.element, after.element);
    small.classList.add("live-three");
    stage.append(
      tools.controls(go, again, clear),
      tools.controls(
        choice("data", "data", { moons: "two moons", spiral: "spiral", bumps: "two bumps", drawn: "your own points" }),
        choice("bijector", "bijector", { affine: "affine", spline: "spline", mixture: "mixture CDF" }),
        choice("pattern", "masks", { alternate: "exchanged in every layer", fixed: "the same in every layer", peek: "fault: the networks see both coordinates" }),
        layers, rate,
      ),
      small, status, tools.panels(tools.element("div", {}, lossBox, legend), table.element),
    );
    tools.pauseOutside(stage, () => running && pause());
    allowDrawing();
    restart();

    function play() {
      if (tooFew()) return;
      running = true;
      go.textContent = "Pause";
      go.setAttribute("aria-pressed", "true");
      send({ running, run });
    }

    function pause() {
      running = false;
      go.textContent = "Train";
      go.setAttribute("aria-pressed", "false");
      send({ running, run });
    }

    /** New weights for the present settings; training goes on if it ran. */
    function restart() {
      run += 1;
      curve = [];
      clear.hidden = settings.data !== "drawn";
      before.canvas.tabIndex = settings.data === "drawn" ? 0 : -1;
      if (tooFew()) {
        if (running) pause();
        return;
      }
      status.textContent = "Computing the first picture …";
      send({ settings: { ...settings, drawn }, running, run });
    }

    function tooFew() {
      const missing = settings.data === "drawn" && drawn.length < LEAST_DRAWN;
      if (missing) {
        status.textContent = `Draw at least ${LEAST_DRAWN} points on the left panel: ${drawn.length} so far.`;
        picture = null;
        before.points(drawn.flat(), colours.truth);
      }
      return missing;
    }

    function receive(next) {
      if (next.run !== run) return; // of earlier settings
      picture = next;
      curve.push([picture.steps, picture.loss]);
      write();
      if (!running || !calm.matches) draw();
    }

    function write() {
      const { steps, loss, entropy, divergence, error, roundTrip, logDet, integral, least } = picture;
      const start = `Step ${steps}: loss ${fixed(loss)}, entropy of the data ${fixed(entropy)} nats. `;
      const below = divergence < -3 * error;
      const remark = least > 0 ? ` With one mask x₁ never moves, and ${fixed(least)} nats always remain.` : "";
      status.textContent = start + (below
        ? "A loss below the entropy is impossible for a density: the networks see what they transform."
        : `The flow is ${fixed(Math.max(divergence, 0))} nats from the truth.${remark}`);
      table.set(claims.loss, `≈ ${fixed(divergence)} nats`, `≥ ${fixed(-3 * error)} (chance)`, !below);
      table.set(claims.trip, about(roundTrip), "≤ 1e−8", roundTrip <= 1e-8);
      table.set(claims.logDet, about(logDet), "≤ 1e−8", logDet <= 1e-8);
      writeIntegral(integral);
    }

    /** The integral over a box must equal the share of the samples that lie there, up to three standard errors. */
    function writeIntegral({ masses: [one, other], share }) {
      const mass = (one + other) / 2;
      const bound = 0.02 + 3 * Math.sqrt((share * (1 - share)) / 1000);
      const sharp = !(Math.abs(one - other) <= 0.01 * mass);
      const measured = sharp ? "not resolved" : `≈ ${tools.number(mass)}`;
      table.set(claims.mass, measured, `${fixed(share)} ± ${fixed(bound)}`, sharp ? undefined : Math.abs(mass - share) <= bound);
      legend.textContent = "Dashed: the entropy of the data." +
        (picture.least > 0 ? " Dotted: the lower bound for one mask." : "") +
        " The integral must equal the share of the samples in the same square, up to chance." +
        (sharp ? " Not resolved: the density is too sharp for the grid of the integral." : "");
    }

    function draw() {
      before.shade(picture.density, picture.grid, picture.view);
      before.points(picture.data, colours.truth, false);
      latent.circles();
      latent.points(picture.latent, colours.passive, false);
      after.points(picture.samples, colours.active);
      const most = Math.max(picture.steps, 50);
      const losses = curve.map(([, loss]) => loss);
      const low = Math.min(picture.entropy, ...losses) - 0.1;
      const high = Math.min(Math.max(picture.entropy + 0.5, ...losses), picture.entropy + 4) + 0.1;
      const fresh = tools.plot({
        width: 360, height: 220, x: { range: [0, most], label: "training step" }, y: { range: [low, high], label: "loss (nats)" },
        description: `The loss on held-out points: ${fixed(picture.loss)} after ${picture.steps} steps. The entropy of the data is ${fixed(picture.entropy)}.`,
      });
      const level = (value) => [[0, value], [most, value]];
      const shapes = [
        { line: level(picture.entropy), color: colours.truth, dash: "6 4", width: 1.5 },
        { line: curve, color: colours.passive },
      ];
      if (picture.least > 0) {
        const bound = picture.entropy + picture.least;
        shapes.push({ line: level(bound), color: colours.bad, dash: "2 3", width: 1.5 });
      }
      fresh.draw(shapes);
      lossBox.replaceChildren(fresh.element);
    }

    /** The reader draws on the first panel: by pointer, or by arrow keys and the space bar. */
    function allowDrawing() {
      const { canvas } = before;
      let cursor = [0, 0];
      let down = false;
      const add = ([x, y]) => {
        if (Math.abs(x) > 3 || Math.abs(y) > 3 || drawn.length >= 200) return;
        drawn.push([x, y]);
        before.points(drawn.flat(), colours.truth);
      };
      const active = () => settings.data === "drawn";
      canvas.addEventListener("pointerdown", (event) => {
        if (!active()) return;
        down = true;
        canvas.setPointerCapture(event.pointerId);
        add(before.place(event));
      });
      canvas.addEventListener("pointermove", (event) => down && active() && add(before.place(event)));
      canvas.addEventListener("pointerup", () => {
        if (down) restart();
        down = false;
      });
      canvas.addEventListener("keydown", (event) => {
        const move = { ArrowLeft: [-0.25, 0], ArrowRight: [0.25, 0], ArrowUp: [0, 0.25], ArrowDown: [0, -0.25] }[event.key];
        if (!active() || !(move || event.key === " ")) return;
        event.preventDefault();
        if (move) cursor = cursor.map((v, i) => Math.max(-3, Math.min(3, v + move[i])));
        else {
          add(cursor);
          restart();
        }
        before.points(drawn.flat(), colours.truth);
        before.cross(cursor);
      });
      canvas.setAttribute("aria-label", `${canvas.getAttribute("aria-label")} If you chose your own points, arrow keys move a cross and the space bar sets a point.`);
    }

    /** A square panel on a canvas, from −3 to 3 in both coordinates. */
    function panel(title, letter) {
      const [size, margin, half] = [300, 34, 3];
      const canvas = tools.element("canvas", {
        width: 2 * size, height: 2 * size, class: "live-canvas", role: "img",
        "aria-label": `${title}, from −3 to 3 in both coordinates.`,
      });
      const g = canvas.getContext("2d");
      g.scale(2, 2);
      const inner = size - margin - 8;
      const px = (v) => margin + ((v + half) / (2 * half)) * inner;
      const py = (v) => 8 + ((half - v) / (2 * half)) * inner;

      function clean() {
        g.fillStyle = "#fff";
        g.fillRect(0, 0, size, size);
        g.strokeStyle = "#999";
        g.lineWidth = 1;
        g.strokeRect(px(-half), py(half), inner, inner);
        g.fillStyle = "#222";
        g.font = "17px sans-serif";
        g.textAlign = "center";
        for (const v of [-2, 0, 2]) {
          g.fillText(minus(v), px(v), size - 8);
          g.fillText(minus(v), 18, py(v) + 6);
        }
        g.fillText(`${letter}₁`, px(2.75), size - 8);
        g.fillText(`${letter}₂`, 18, py(2.75) + 6);
      }
      function points(values, colour, cleared = true) {
        if (cleared) clean();
        g.fillStyle = colour;
        g.globalAlpha = 0.55;
        for (let i = 0; i < values.length; i += 2)
          if (Math.abs(values[i]) < half && Math.abs(values[i + 1]) < half)
            g.fillRect(px(values[i]) - 1.5, py(values[i + 1]) - 1.5, 3, 3);
        g.globalAlpha = 1;
      }
      function shade(density, cells) {
        clean();
        const edge = (k) => Math.round((2 * k * inner) / cells) / 2; // whole pixels, so that no cells overlap
        for (let i = 0; i < cells * cells; i++) {
          const depth = Math.min(1, density[i] / 0.35);
          if (depth < 0.02) continue;
          g.fillStyle = `rgb(0 114 178 / ${(0.75 * depth).toFixed(2)})`;
          const [left, top] = [i % cells, Math.floor(i / cells)];
          g.fillRect(margin + edge(left), 8 + edge(top), edge(left + 1) - edge(left), edge(top + 1) - edge(top));
        }
      }
      /** A standard normal has 39 % of its mass inside the first circle, 86 % inside the second. */
      function circles() {
        clean();
        g.strokeStyle = "#6b6b6b";
        for (const r of [1, 2]) {
          g.beginPath();
          g.arc(px(0), py(0), px(r) - px(0), 0, 2 * Math.PI);
          g.stroke();
        }
      }
      function cross([x, y]) {
        g.strokeStyle = colours.bad;
        g.strokeRect(px(x) - 5, py(y) - 5, 10, 10);
      }
      function place(event) {
        const box = canvas.getBoundingClientRect();
        const [u, v] = [((event.clientX - box.left) / box.width) * size, ((event.clientY - box.top) / box.height) * size];
        return [((u - margin) / inner) * 2 * half - half, half - ((v - 8) / inner) * 2 * half];
      }
      clean();
      const caption = tools.element("p", { class: "live-caption" }, title);
      const element = tools.element("div", {}, caption, canvas);
      return { element, canvas, points, shade, circles, cross, place };
    }
  };
})();
