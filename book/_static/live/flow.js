/* Coupling flows, their loss, Adam, and the checks. This function has no surroundings but its argument. */
function liveFlow(parts) {
  "use strict";
  const { affine, spline, mixture, Network } = parts;
  const LOG_SQRT_2PI = 0.5 * Math.log(2 * Math.PI);
  const bijectors = { affine, spline, mixture };

  /** A stack of coupling layers from the data to a standard normal vector.
   *
   * Each mask is an array of booleans, true for a passive coordinate. With `peek`, the networks also get the
   * active coordinates: then this is no flow, and the checks say so. */
  class Flow {
    constructor({ bijector = "affine", options = [], masks, width = 32, depth = 1, activation = "tanh", peek = false }) {
      this.dim = masks[0].length;
      this.bijector = bijectors[bijector](...options);
      const { size } = this.bijector;
      let end = 0;
      this.layers = masks.map((mask) => {
        const all = [...mask.keys()];
        const active = all.filter((i) => !mask[i]);
        const inputs = peek ? all : all.filter((i) => mask[i]);
        const sizes = [inputs.length, ...Array(depth).fill(width), active.length * size];
        const network = new Network(sizes, activation, end);
        end = network.end;
        const row = () => active.map(() => new Float64Array(size));
        const byOutput = new Float64Array(active.length * size);
        return { active, inputs, network, parameters: row(), derivatives: row(), byOutput };
      });
      this.parameters = new Float64Array(end);
      this.gradient = new Float64Array(end);
      this.states = Array.from({ length: masks.length + 1 }, () => new Float64Array(this.dim));
    }

    initialize(random) {
      for (const { network } of this.layers) network.initialize(this.parameters, random);
    }

    /** The parameters of a layer's bijectors, from the coordinates that its network takes. */
    #predict({ inputs, network, parameters }, state) {
      inputs.forEach((i, at) => (network.input[at] = state[i]));
      const output = network.run(this.parameters);
      const { size, start } = this.bijector;
      parameters.forEach((p, j) => {
        for (let k = 0; k < size; k++) p[k] = start[k] + output[j * size + k];
      });
    }

    /** Sets `this.z` and returns the log-determinant: the sum of the log-slopes of all layers. */
    forward(x) {
      this.states[0].set(x);
      let logDet = 0;
      this.layers.forEach((layer, l) => {
        const [before, after] = [this.states[l], this.states[l + 1]];
        after.set(before);
        this.#predict(layer, before);
        layer.active.forEach((i, j) => {
          this.bijector.forward(before[i], layer.parameters[j]);
          after[i] = this.bijector.value;
          logDet += this.bijector.logSlope;
        });
      });
      this.z = this.states[this.layers.length];
      return logDet;
    }

    inverse(z) {
      const x = Float64Array.from(z);
      for (let l = this.layers.length - 1; l >= 0; l--) {
        const layer = this.layers[l];
        this.#predict(layer, x);
        layer.active.forEach((i, j) => (x[i] = this.bijector.inverse(x[i], layer.parameters[j])));
      }
      return x;
    }

    /** After `forward`: from the derivatives by z and by the log-determinant, those by x. Those by the
     * parameters are added to `this.gradient`, unless `withParameters` is false. */
    pullBack(byZ, byLogDet, withParameters = true) {
      const by = Float64Array.from(byZ);
      const gradient = withParameters ? this.gradient : null;
      const { bijector } = this;
      for (let l = this.layers.length - 1; l >= 0; l--) {
        const { active, inputs, network, parameters, derivatives, byOutput } = this.layers[l];
        active.forEach((i, j) => {
          by[i] = bijector.backward(this.states[l][i], parameters[j], by[i], byLogDet, derivatives[j]);
          byOutput.set(derivatives[j], j * bijector.size);
        });
        const byInput = network.pullBack(this.parameters, gradient, byOutput);
        inputs.forEach((i, at) => (by[i] += byInput[at]));
      }
      return by;
    }

    logProb(x) {
      const logDet = this.forward(x);
      let squares = 0;
      for (const z of this.z) squares += z * z;
      return logDet - 0.5 * squares - this.dim * LOG_SQRT_2PI;
    }

    /** The mean of -log p over the rows, whose gradient it leaves in `this.gradient`. */
    loss(rows) {
      this.gradient.fill(0);
      const n = rows.length / this.dim;
      let sum = 0;
      for (let i = 0; i < n; i++) {
        sum -= this.logProb(rows.subarray(i * this.dim, (i + 1) * this.dim));
        this.pullBack(this.z.map((z) => z / n), -1 / n);
      }
      return sum / n;
    }

    /** The Jacobian at x, one backward pass per row. */
    jacobian(x) {
      this.forward(x);
      return [...this.z.keys()].map((i) =>
        this.pullBack(Float64Array.from(this.z, (_, j) => Number(i === j)), 0, false),
      );
    }
  }

  /** log |det A| by Gaussian elimination with pivots. */
  function logAbsDet(matrix) {
    const a = matrix.map((row) => Array.from(row));
    let sum = 0;
    for (let k = 0; k < a.length; k++) {
      let pivot = k;
      for (let i = k + 1; i < a.length; i++) if (Math.abs(a[i][k]) > Math.abs(a[pivot][k])) pivot = i;
      [a[k], a[pivot]] = [a[pivot], a[k]];
      sum += Math.log(Math.abs(a[k][k]));
      for (let i = k + 1; i < a.length; i++) {
        const factor = a[i][k] / a[k][k];
        for (let j = k; j < a.length; j++) a[i][j] -= factor * a[k][j];
      }
    }
    return sum;
  }

  /** Adam, with the usual constants (optax has the same). Each call makes one step from flow.gradient. */
  function adam(flow, rate) {
    const [mean, square] = [new Float64Array(flow.gradient.length), new Float64Array(flow.gradient.length)];
    let t = 0;
    return () => {
      t += 1;
      const [meanFactor, squareFactor] = [1 / (1 - 0.9 ** t), 1 / (1 - 0.999 ** t)];
      const { parameters, gradient } = flow;
      for (let i = 0; i < gradient.length; i++) {
        mean[i] += 0.1 * (gradient[i] - mean[i]);
        square[i] += 0.001 * (gradient[i] * gradient[i] - square[i]);
        parameters[i] -= (rate * mean[i] * meanFactor) / (Math.sqrt(square[i] * squareFactor) + 1e-8);
      }
    };
  }

  /** The largest distance between x and the inverse of its image, over the rows. */
  function roundTripError(flow, rows) {
    let worst = 0;
    for (let i = 0; i < rows.length; i += flow.dim) {
      const x = rows.subarray(i, i + flow.dim);
      flow.forward(x);
      const back = flow.inverse(flow.z);
      x.forEach((value, j) => (worst = Math.max(worst, Math.abs(back[j] - value))));
      if (back.some(Number.isNaN)) return NaN;
    }
    return worst;
  }

  /** The largest difference between the log-determinant and that of the whole Jacobian. */
  function logDetError(flow, rows) {
    let worst = 0;
    for (let i = 0; i < rows.length; i += flow.dim) {
      const x = rows.subarray(i, i + flow.dim);
      const error = Math.abs(flow.forward(x) - logAbsDet(flow.jacobian(x)));
      worst = Number.isNaN(error) ? error : Math.max(worst, error);
    }
    return worst;
  }

  /** A generator of random numbers in (0, 1), Marsaglia's xorshift of 32 bits; `normal` by Box and Muller. */
  function generator(seed) {
    let state = (seed * 2654435769) | 1;
    const uniform = () => {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      return ((state >>> 0) + 0.5) / 4294967296;
    };
    for (let i = 0; i < 8; i++) uniform(); // nearby seeds move apart
    uniform.normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
    return uniform;
  }

  return { Flow, adam, logAbsDet, roundTripError, logDetError, generator };
}
