/* Data of known density: mixtures of equal round Gaussians, standardized. This function has no surroundings. */
function liveData() {
  "use strict";
  const LOG_2PI = Math.log(2 * Math.PI);

  /** `points` evenly spaced values from `start` to `stop`, each in the middle of its interval. */
  const spaced = (points, start, stop) =>
    Array.from({ length: points }, (_, i) => start + ((i + 0.5) / points) * (stop - start));

  // The package's targets of the same names, with a sum in place of their integral.
  const means = {
    moons: () =>
      spaced(40, 0, Math.PI).flatMap((a) => [
        [Math.cos(a), Math.sin(a)],
        [1 - Math.cos(a), 0.5 - Math.sin(a)],
      ]),
    spiral: () =>
      spaced(140, 0.5, 3.5).flatMap((t) => {
        const [x, y] = [t * Math.cos(2.5 * t), t * Math.sin(2.5 * t)];
        return [[x, y], [-x, -y]];
      }),
    bumps: () => [[-1.5, -0.75], [1.5, 0.75]],
  };
  const noise = { moons: 0.1, spiral: 0.12, bumps: 0.4, drawn: 0.15 };

  /** A mixture of Gaussians of one width around the given means, scaled to mean 0 and variance 1. */
  class Mixture {
    constructor(name, drawn) {
      const raw = name === "drawn" ? drawn : means[name]();
      const width = noise[name];
      const n = raw.length;
      this.means = new Float64Array(2 * n);
      this.scales = [0, 1].map((axis) => {
        const mean = raw.reduce((sum, m) => sum + m[axis], 0) / n;
        const variance = raw.reduce((sum, m) => sum + (m[axis] - mean) ** 2, 0) / n + width ** 2;
        raw.forEach((m, i) => (this.means[2 * i + axis] = (m[axis] - mean) / Math.sqrt(variance)));
        return width / Math.sqrt(variance);
      });
    }

    /** Rows of a sample; `random` is a generator. */
    sample(n, random) {
      const rows = new Float64Array(2 * n);
      const count = this.means.length / 2;
      for (let i = 0; i < n; i++) {
        const k = Math.floor(random() * count);
        for (const axis of [0, 1]) rows[2 * i + axis] = this.means[2 * k + axis] + this.scales[axis] * random.normal();
      }
      return rows;
    }

    logProb(x, y) {
      const [sx, sy] = this.scales;
      const n = this.means.length / 2;
      let sum = 0;
      let least = Infinity; // the nearest component's exponent, so that nothing underflows
      for (let k = 0; k < n; k++) {
        const half = 0.5 * (((x - this.means[2 * k]) / sx) ** 2 + ((y - this.means[2 * k + 1]) / sy) ** 2);
        if (half < least) {
          sum = sum * Math.exp(half - least) + 1;
          least = half;
        } else sum += Math.exp(least - half);
      }
      return Math.log(sum / n) - least - LOG_2PI - Math.log(sx * sy);
    }

    /** The divergence of the first coordinate alone from a standard normal, in nats. */
    marginalDivergence() {
      const [width, n, step] = [this.scales[0], this.means.length / 2, 0.01];
      let sum = 0;
      for (let x = -8; x < 8; x += step) {
        let p = 0;
        for (let k = 0; k < n; k++) p += Math.exp(-0.5 * ((x - this.means[2 * k]) / width) ** 2);
        p /= n * width * Math.sqrt(2 * Math.PI);
        if (p > 0) sum += p * (Math.log(p) + 0.5 * x * x + 0.5 * LOG_2PI) * step;
      }
      return sum;
    }
  }

  return { Mixture };
}
