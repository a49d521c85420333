/* Training in small pieces: in a worker where the browser allows one, else between the page's other tasks.
 * This function has no surroundings but its argument. */
function liveTraining(parts) {
  "use strict";
  const { Flow, adam, roundTripError, logDetError, generator, Mixture } = parts;
  const BATCH = 128;
  const HELD_OUT = 1000; // points that measure the divergence
  const CHECKED = 100; // points of the checks
  const GRID = 72; // cells of the picture, along each axis
  const WIDE = 120; // cells of the integral, along each axis
  const VIEW = 3; // the picture shows [-VIEW, VIEW]
  const BOX = 7; // the integral covers [-BOX, BOX]
  const RARE = 5; // the integral takes as long as the rest of a picture: one of so many has a new one

  const patterns = {
    alternate: (l) => (l % 2 ? [false, true] : [true, false]),
    fixed: () => [true, false],
    peek: (l) => (l % 2 ? [false, true] : [true, false]),
  };
  const networks = {
    affine: { options: [], width: 32 },
    spline: { options: [6, 3.5], width: 16 },
    mixture: { options: [4], width: 16 },
  };

  /** One training run. `work` is a generator that does a little and yields; `emit` gets pictures of the state. */
  class Training {
    constructor({ data, drawn, bijector, pattern, layers, rate }, emit) {
      const random = generator(7);
      this.target = new Mixture(data, drawn);
      const masks = Array.from({ length: layers }, (_, l) => patterns[pattern](l));
      this.flow = new Flow({ bijector, masks, peek: pattern === "peek", ...networks[bijector] });
      this.flow.initialize(random);
      this.random = random;
      this.heldOut = this.target.sample(HELD_OUT, generator(11));
      this.truth = this.average((x, y) => this.target.logProb(x, y));
      this.noise = Float64Array.from({ length: 2 * HELD_OUT }, generator(13).normal);
      this.update = adam(this.flow, rate);
      this.steps = 0;
      this.pictures = 0;
      this.emit = emit;
      // With one mask the first coordinate stays what it is: so much of the divergence cannot be removed.
      this.least = pattern === "fixed" ? this.target.marginalDivergence() : 0;
    }

    /** A function of the held-out points, one value each. */
    average(of) {
      return Float64Array.from({ length: HELD_OUT }, (_, i) => of(this.heldOut[2 * i], this.heldOut[2 * i + 1]));
    }

    /** Repeats: trains for `milliseconds`, then takes a picture. With 0 it takes one picture and stops. */
    *work(milliseconds) {
      for (;;) {
        let spent = 0;
        while (spent < milliseconds) {
          const begin = performance.now();
          this.flow.loss(this.target.sample(BATCH, this.random));
          this.update();
          this.steps += 1;
          spent += performance.now() - begin;
          yield;
        }
        yield* this.picture(!milliseconds);
        if (!milliseconds) return;
      }
    }

    *picture(last) {
      const { flow } = this;
      const gaps = new Float64Array(HELD_OUT);
      const latent = new Float32Array(2 * HELD_OUT);
      let loss = 0;
      for (let i = 0; i < HELD_OUT; i++) {
        const logProb = flow.logProb(this.heldOut.subarray(2 * i, 2 * i + 2));
        gaps[i] = this.truth[i] - logProb;
        loss -= logProb / HELD_OUT;
        latent.set(flow.z, 2 * i);
        if (i % 50 === 49) yield;
      }
      const samples = new Float32Array(2 * HELD_OUT);
      let inside = 0; // samples in the box of the integral
      for (let i = 0; i < HELD_OUT; i++) {
        const x = flow.inverse(this.noise.subarray(2 * i, 2 * i + 2));
        samples.set(x, 2 * i);
        if (Math.abs(x[0]) < BOX && Math.abs(x[1]) < BOX) inside += 1;
        if (i % 50 === 49) yield;
      }
      const density = new Float32Array(GRID * GRID);
      yield* this.over(GRID, VIEW, (i, p) => (density[i] = p));
      if (last || this.pictures++ % RARE === 0) {
        // Two grids, the second between the points of the first: where they disagree, the density is too
        // sharp for both.
        const masses = [0, 0];
        const area = ((2 * BOX) / WIDE) ** 2;
        for (const grid of [0, 1]) yield* this.over(WIDE, BOX, (_, p) => (masses[grid] += p * area), 0.5 * grid);
        this.integral = { masses, share: inside / HELD_OUT, box: BOX };
      }
      const points = this.heldOut.subarray(0, 2 * CHECKED);
      const roundTrip = roundTripError(flow, points);
      yield;
      const logDet = logDetError(flow, points);
      yield;
      const mean = gaps.reduce((a, b) => a + b) / HELD_OUT;
      const variance = gaps.reduce((a, b) => a + (b - mean) ** 2, 0) / (HELD_OUT - 1);
      this.emit({
        steps: this.steps, loss, entropy: -this.truth.reduce((a, b) => a + b) / HELD_OUT,
        divergence: mean, error: Math.sqrt(variance / HELD_OUT),
        data: Float32Array.from(this.heldOut), latent, samples, density, grid: GRID, view: VIEW,
        roundTrip, logDet, integral: this.integral, least: this.least,
      });
    }

    /** The density at the middles of a grid's cells, row by row from the top; `shift` is a part of a cell. */
    *over(cells, half, use, shift = 0) {
      const place = (i) => ((i + 0.5 + shift) / cells) * 2 * half - half;
      for (let row = 0; row < cells; row++) {
        for (let column = 0; column < cells; column++)
          use(row * cells + column, Math.exp(this.flow.logProb([place(column), -place(row)])));
        yield;
      }
    }
  }

  /** Runs at most one training at a time. `later` calls a function soon; each turn lasts `turn` milliseconds. */
  function conductor(later, turn, emit) {
    let training = null;
    let work = null;
    let waiting = false;
    function tick() {
      waiting = false;
      if (!work) return;
      const begin = performance.now();
      while (performance.now() - begin < turn) {
        if (!work.next().done) continue;
        work = null;
        return;
      }
      schedule();
    }
    function schedule() {
      if (!waiting) later(tick);
      waiting = true;
    }
    /** { settings } starts anew; { running: true } goes on; { running: false } stops after one more picture. */
    return ({ settings, running, run }) => {
      if (settings) training = new Training(settings, (picture) => emit({ ...picture, run }));
      work = training.work(running ? 150 : 0);
      schedule();
    };
  }

  return { conductor };
}

/** A function that sends commands to a training in a worker, or in this page where workers are refused. */
function liveTrainer(receive) {
  "use strict";
  const engine = [liveBijectors, liveNetwork, liveFlow, liveData, liveTraining];
  function inPage() {
    const flow = liveFlow({ ...liveBijectors(), ...liveNetwork() });
    const { conductor } = liveTraining({ ...flow, ...liveData() });
    return conductor((tick) => requestAnimationFrame(tick), 8, receive);
  }
  let worker;
  try {
    const text = `${engine.join("\n")}
      const flow = liveFlow({ ...liveBijectors(), ...liveNetwork() });
      const { conductor } = liveTraining({ ...flow, ...liveData() });
      const command = conductor((tick) => setTimeout(tick), 40, (picture) => postMessage(picture));
      onmessage = (event) => command(event.data);`;
    const address = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
    worker = new Worker(address);
  } catch {
    return inPage();
  }
  let fallback = null;
  const sent = [];
  let alive = false;
  worker.onmessage = (event) => {
    alive = true;
    receive(event.data);
  };
  worker.onerror = () => {
    // A policy that refuses workers may say so only now: start again in the page.
    if (alive || fallback) return;
    fallback = inPage();
    const last = sent.findLast((command) => command.settings);
    if (last) fallback({ ...last, ...sent.at(-1), settings: last.settings, run: last.run });
  };
  return (command) => {
    if (fallback) fallback(command);
    else {
      sent.push(command);
      worker.postMessage(command);
    }
  };
}
