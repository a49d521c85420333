/* Scalar bijectors in double precision, with derivatives written by hand. The parameters are those of
 * gauss_flows, so that a flow trained there runs here.
 *
 * A bijector has
 *   size                        P, the number of its parameters,
 *   start                       the parameters to which a network's output is added,
 *   forward(x, p)               which sets `value` to T(x) and `logSlope` to log T'(x),
 *   inverse(y, p)               which returns the x with T(x) = y,
 *   backward(x, p, byValue, byLogSlope, byP)
 *                               which takes the derivatives of a loss with respect to T(x) and to log T'(x),
 *                               writes those with respect to p into byP, and returns that with respect to x.
 *
 * This function has no surroundings: a worker is made from its text. */
function liveBijectors() {
  "use strict";
  const LOG_SQRT_2PI = 0.5 * Math.log(2 * Math.PI);
  const LOG_HALF = -Math.LN2;

  const softplus = (r) => Math.max(r, 0) + Math.log1p(Math.exp(-Math.abs(r)));
  const softplusInverse = (s) => s + Math.log(-Math.expm1(-s));
  const sigmoid = (r) => (r < 0 ? Math.exp(r) / (1 + Math.exp(r)) : 1 / (1 + Math.exp(-r)));

  /** T(x) = softplus(r) x + b. */
  function affine() {
    return {
      size: 2,
      start: Float64Array.of(0, softplusInverse(1)),
      value: 0,
      logSlope: 0,
      forward(x, p) {
        const slope = softplus(p[1]);
        this.value = slope * x + p[0];
        this.logSlope = Math.log(slope);
      },
      inverse: (y, p) => (y - p[0]) / softplus(p[1]),
      backward(x, p, byValue, byLogSlope, byP) {
        const slope = softplus(p[1]);
        byP[0] = byValue;
        byP[1] = (byValue * x + byLogSlope / slope) * sigmoid(p[1]);
        return byValue * slope;
      },
    };
  }

  /** A rational-quadratic spline with K bins on [-B, B]: K widths, K heights, K - 1 slopes. */
  function spline(bins = 8, interval = 4, minWidth = 0.01, minSlope = 0.1) {
    const width = 2 * interval;
    const free = 1 - bins * minWidth; // what the softmax shares out
    const unit = softplusInverse(1 - minSlope); // where a slope is 1
    const shares = [new Float64Array(bins), new Float64Array(bins)]; // of the widths and of the heights
    const byShare = new Float64Array(bins);

    function softmax(p, offset, shares) {
      let largest = -Infinity;
      let sum = 0;
      for (let i = 0; i < bins; i++) largest = Math.max(largest, p[offset + i]);
      for (let i = 0; i < bins; i++) sum += shares[i] = Math.exp(p[offset + i] - largest);
      for (let i = 0; i < bins; i++) shares[i] /= sum;
    }
    const size = (share) => width * (minWidth + free * share);
    const slopeInput = (raw) => unit + Math.tanh(raw * minSlope) / minSlope;
    const slope = (k, p) =>
      k === 0 || k === bins ? 1 : minSlope + softplus(slopeInput(p[2 * bins + k - 1]));

    /** The bin that holds a value of x (axis 0) or of y (axis 1). */
    function locate(value, p, axis) {
      softmax(p, 0, shares[0]);
      softmax(p, bins, shares[1]);
      const bin = { i: 0, x0: -interval, y0: -interval };
      for (; bin.i < bins - 1; bin.i++) {
        const [dx, dy] = [size(shares[0][bin.i]), size(shares[1][bin.i])];
        if (value < (axis ? bin.y0 + dy : bin.x0 + dx)) break;
        bin.x0 += dx;
        bin.y0 += dy;
      }
      bin.dx = size(shares[0][bin.i]);
      bin.dy = size(shares[1][bin.i]);
      bin.s = bin.dy / bin.dx;
      bin.d0 = slope(bin.i, p);
      bin.d1 = slope(bin.i + 1, p);
      return bin;
    }

    /** In one bin: with b = xi (1 - xi), T = y0 + dy above / below, T' = s^2 top / below^2. */
    function terms(xi, { s, d0, d1 }) {
      const b = xi * (1 - xi);
      return {
        b,
        above: s * xi * xi + d0 * b,
        below: s + (d0 + d1 - 2 * s) * b,
        top: d1 * xi * xi + 2 * s * b + d0 * (1 - xi) * (1 - xi),
      };
    }

    /** Derivatives by the raw numbers of one axis, from those by the bin's left edge and by its size. */
    function softmaxBackward(axis, i, byEdge, bySize, byP) {
      const share = shares[axis];
      let mean = 0;
      for (let j = 0; j < bins; j++) {
        byShare[j] = width * free * (j < i ? byEdge : j === i ? bySize : 0);
        mean += share[j] * byShare[j];
      }
      for (let j = 0; j < bins; j++) byP[axis * bins + j] = share[j] * (byShare[j] - mean);
    }

    return {
      size: 3 * bins - 1,
      start: new Float64Array(3 * bins - 1),
      value: 0,
      logSlope: 0,
      forward(x, p) {
        this.value = x;
        this.logSlope = 0;
        if (!(Math.abs(x) < interval)) return;
        const bin = locate(x, p, 0);
        const { above, below, top } = terms((x - bin.x0) / bin.dx, bin);
        this.value = bin.y0 + (bin.dy * above) / below;
        this.logSlope = 2 * Math.log(bin.s / below) + Math.log(top);
      },
      inverse(y, p) {
        if (!(Math.abs(y) < interval)) return y;
        const bin = locate(y, p, 1);
        const eta = (y - bin.y0) / bin.dy;
        const bend = eta * (bin.d0 + bin.d1 - 2 * bin.s);
        const [a, b, c] = [bin.s - bin.d0 + bend, bin.d0 - bend, -bin.s * eta];
        const root = Math.sqrt(Math.max(b * b - 4 * a * c, 0));
        const xi = b < 0 ? (root - b) / (2 * a) : (2 * c) / (-b - root); // adds numbers of the same sign
        return bin.x0 + bin.dx * Math.min(1, Math.max(0, xi));
      },
      backward(x, p, byValue, byLogSlope, byP) {
        byP.fill(0);
        if (!(Math.abs(x) < interval)) return byValue;
        const bin = locate(x, p, 0);
        const { i, s, d0, d1, dx, dy } = bin;
        const xi = (x - bin.x0) / dx;
        const { b, above, below, top } = terms(xi, bin);
        const byAbove = (byValue * dy) / below;
        const byBelow = -(byAbove * above + 2 * byLogSlope) / below;
        const byTop = byLogSlope / top;
        const byS = (2 * byLogSlope) / s + byAbove * xi * xi + byBelow * (1 - 2 * b) + byTop * 2 * b;
        const byB = byAbove * d0 + byBelow * (d0 + d1 - 2 * s) + byTop * 2 * s;
        const byXi = byAbove * 2 * s * xi + byTop * 2 * (d1 * xi - d0 * (1 - xi)) + byB * (1 - 2 * xi);
        softmaxBackward(0, i, -byXi / dx, -(byS * s + byXi * xi) / dx, byP);
        softmaxBackward(1, i, byValue, (byValue * above) / below + byS / dx, byP);
        const bySlope = [
          byAbove * b + byBelow * b + byTop * (1 - xi) * (1 - xi),
          byBelow * b + byTop * xi * xi,
        ];
        for (const k of [i, i + 1]) {
          if (k === 0 || k === bins) continue; // the outer slopes are 1
          const raw = p[2 * bins + k - 1];
          const bounded = Math.tanh(raw * minSlope);
          byP[2 * bins + k - 1] = bySlope[k - i] * sigmoid(slopeInput(raw)) * (1 - bounded * bounded);
        }
        return byXi / dx;
      },
      /** The knots and their slopes, for a drawing. */
      knots(p) {
        softmax(p, 0, shares[0]);
        softmax(p, bins, shares[1]);
        const knots = [{ x: -interval, y: -interval, slope: 1 }];
        for (let k = 1; k <= bins; k++) {
          const { x, y } = knots[k - 1];
          knots.push({ x: x + size(shares[0][k - 1]), y: y + size(shares[1][k - 1]), slope: slope(k, p) });
        }
        return knots;
      },
      /** The parameters of a spline with these knots; every bin must be wider and higher than the least. */
      fromKnots(knots) {
        const p = new Float64Array(3 * bins - 1);
        for (let k = 0; k < bins; k++)
          for (const [axis, name] of ["x", "y"].entries()) {
            const share = (knots[k + 1][name] - knots[k][name]) / width - minWidth;
            p[axis * bins + k] = Math.log(Math.max(share, 1e-12));
          }
        for (let k = 1; k < bins; k++) {
          const input = softplusInverse(Math.max(knots[k].slope - minSlope, 1e-6)) - unit;
          const inside = Math.min(0.999999, Math.max(-0.999999, input * minSlope));
          p[2 * bins + k - 1] = Math.atanh(inside) / minSlope;
        }
        return p;
      },
    };
  }

  /** log of Phi(-v), for v >= 0: a series near zero, a continued fraction for Mills' ratio in the tail. */
  function logTail(v) {
    const logDensity = -0.5 * v * v - LOG_SQRT_2PI;
    if (v > 3) {
      let fraction = v;
      for (let k = 40; k > 0; k--) fraction = v + k / fraction;
      return logDensity - Math.log(fraction);
    }
    let term = v;
    let sum = v;
    for (let k = 3; term > 1e-17 * sum; k += 2) sum += term *= (v * v) / k;
    return Math.log(0.5 - Math.exp(logDensity) * sum);
  }
  const logCdf = (u) => (u > 0 ? Math.log1p(-Math.exp(logTail(u))) : logTail(-u));

  /** The v >= 0 with log Phi(-v) = logP. Newton's steps fall from a bound above: log Phi is concave. */
  function tailQuantile(logP) {
    let v = Math.sqrt(2 * Math.max(LOG_HALF - logP, 0));
    for (let k = 0; k < 60; k++) {
      const tail = logTail(v);
      const step = (tail - logP) * Math.exp(tail + 0.5 * v * v + LOG_SQRT_2PI);
      v += step;
      if (Math.abs(step) < 1e-15 * (1 + v)) break;
    }
    return v;
  }

  /** The CDF of a Gaussian mixture with K components, then the normal quantile function. */
  function mixture(components = 8, bound = 5) {
    const K = components;
    const [share, pull, below, above] = [0, 0, 0, 0].map(() => new Float64Array(K));
    const scales = new Float64Array(K);
    const u = new Float64Array(K);
    let logF, logUpper, logDensity; // of the mixture at x: lower tail, upper tail, density

    function evaluate(x, p) {
      let largest = -Infinity;
      let sum = 0;
      for (let k = 0; k < K; k++) largest = Math.max(largest, p[k]);
      for (let k = 0; k < K; k++) sum += Math.exp(p[k] - largest);
      const logSum = largest + Math.log(sum);
      let [most, mostBelow, mostAbove] = [-Infinity, -Infinity, -Infinity];
      for (let k = 0; k < K; k++) {
        const logScale = bound * Math.tanh(p[2 * K + k] / bound);
        scales[k] = Math.exp(logScale);
        u[k] = (x - p[K + k]) / scales[k];
        share[k] = p[k] - logSum;
        pull[k] = share[k] - logScale - 0.5 * u[k] * u[k] - LOG_SQRT_2PI;
        below[k] = logCdf(u[k]);
        above[k] = logCdf(-u[k]);
        most = Math.max(most, pull[k]);
        mostBelow = Math.max(mostBelow, share[k] + below[k]);
        mostAbove = Math.max(mostAbove, share[k] + above[k]);
      }
      let [f, lower, upper] = [0, 0, 0];
      for (let k = 0; k < K; k++) {
        f += Math.exp(pull[k] - most);
        lower += Math.exp(share[k] + below[k] - mostBelow);
        upper += Math.exp(share[k] + above[k] - mostAbove);
      }
      logDensity = most + Math.log(f);
      logF = mostBelow + Math.log(lower);
      logUpper = mostAbove + Math.log(upper);
      return logF < logUpper ? -tailQuantile(logF) : tailQuantile(logUpper);
    }

    // At first the components lie at quantiles, and the whole has variance 1.
    const start = new Float64Array(3 * K).fill(-Math.log(K), 0, K);
    let spread = 0;
    for (let k = 0; k < K; k++) {
      const part = (k + 0.5) / K;
      const v = tailQuantile(Math.log(Math.min(part, 1 - part)));
      start[K + k] = 0.8 * (part < 0.5 ? -v : v);
      spread += start[K + k] ** 2 / K;
    }
    const scale = Math.sqrt(Math.max(1 - spread, 0.1));
    start.fill(bound * Math.atanh(Math.log(scale) / bound), 2 * K);

    return {
      size: 3 * K,
      start,
      value: 0,
      logSlope: 0,
      forward(x, p) {
        this.value = evaluate(x, p);
        this.logSlope = logDensity + 0.5 * this.value * this.value + LOG_SQRT_2PI;
      },
      /** Newton's steps inside the exact bracket; a step that leaves it is replaced by a halving. */
      inverse(z, p) {
        evaluate(0, p); // for the scales
        let [low, high] = [Infinity, -Infinity];
        for (let k = 0; k < K; k++) {
          low = Math.min(low, p[K + k] + scales[k] * z);
          high = Math.max(high, p[K + k] + scales[k] * z);
        }
        let x = 0.5 * (low + high);
        for (let i = 0; i < 100 && high - low > 1e-15 * (1 + Math.abs(x)); i++) {
          this.forward(x, p);
          const gap = this.value - z;
          if (gap > 0) high = x;
          else low = x;
          const newton = x - gap * Math.exp(-this.logSlope);
          const next = newton > low && newton < high ? newton : 0.5 * (low + high);
          const step = Math.abs(next - x);
          x = next;
          if (step < 1e-15 * (1 + Math.abs(x))) break;
        }
        return x;
      },
      backward(x, p, byValue, byLogSlope, byP) {
        const z = evaluate(x, p);
        const logPhi = -0.5 * z * z - LOG_SQRT_2PI;
        const slope = Math.exp(logDensity - logPhi);
        const byZ = byValue + byLogSlope * z; // log T' = log f(x) - log phi(z), and -log phi grows as z^2 / 2
        let byX = byZ * slope;
        for (let k = 0; k < K; k++) {
          const part = Math.exp(pull[k] - logDensity); // this component's part of the density
          const weight = Math.exp(share[k]);
          const raised = // (Phi(u) - F) / phi(z), from the smaller tail
            z < 0
              ? Math.exp(below[k] - logPhi) - Math.exp(logF - logPhi)
              : Math.exp(logUpper - logPhi) - Math.exp(above[k] - logPhi);
          const tanh = Math.tanh(p[2 * K + k] / bound);
          byP[k] = byZ * weight * raised + byLogSlope * (part - weight);
          byP[K + k] = -byZ * slope * part + (byLogSlope * part * u[k]) / scales[k];
          byP[2 * K + k] =
            (-byZ * slope * part * u[k] * scales[k] + byLogSlope * part * (u[k] * u[k] - 1)) *
            (1 - tanh * tanh);
          byX -= (byLogSlope * part * u[k]) / scales[k];
        }
        return byX;
      },
    };
  }

  return { affine, spline, mixture };
}
