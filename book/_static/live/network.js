/* Multilayer perceptrons with derivatives written by hand. This function has no surroundings. */
function liveNetwork() {
  "use strict";
  const activations = {
    tanh: { value: Math.tanh, slope: (a) => 1 - a * a }, // the slope from the value
    relu: { value: (s) => (s > 0 ? s : 0), slope: (a) => (a > 0 ? 1 : 0) },
  };

  /** A network whose weights are a part of one long array: per layer the matrix by rows, then the bias. */
  class Network {
    constructor(sizes, activation, offset) {
      this.activation = activations[activation];
      this.input = new Float64Array(sizes[0]);
      this.layers = [];
      let end = offset;
      for (let k = 1; k < sizes.length; k++) {
        const [inputs, outputs] = [sizes[k - 1], sizes[k]];
        const [weights, bias] = [end, end + inputs * outputs];
        end = bias + outputs;
        const [values, derivatives] = [new Float64Array(outputs), new Float64Array(outputs)];
        this.layers.push({ inputs, outputs, weights, bias, values, derivatives });
      }
      this.end = end;
      this.byInput = new Float64Array(sizes[0]);
    }

    /** Uniform between plus and minus one over the root of the number of inputs, as equinox does it. */
    initialize(parameters, random) {
      for (const { inputs, outputs, weights, bias } of this.layers) {
        const limit = 1 / Math.sqrt(inputs);
        for (let i = weights; i < bias + outputs; i++) parameters[i] = limit * (2 * random() - 1);
      }
    }

    /** The output for `this.input`. */
    run(parameters) {
      let input = this.input;
      this.layers.forEach(({ inputs, outputs, weights, bias, values }, k) => {
        const last = k === this.layers.length - 1;
        for (let j = 0, w = weights; j < outputs; j++) {
          let sum = parameters[bias + j];
          for (let i = 0; i < inputs; i++, w++) sum += parameters[w] * input[i];
          values[j] = last ? sum : this.activation.value(sum);
        }
        input = values;
      });
      return input;
    }

    /** From the derivatives by the output of the last run: adds those by the parameters to `gradient`
     * (unless it is null), and returns those by the input. */
    pullBack(parameters, gradient, byOutput) {
      let by = byOutput;
      for (let k = this.layers.length - 1; k >= 0; k--) {
        const { inputs, outputs, weights, bias } = this.layers[k];
        const input = k ? this.layers[k - 1].values : this.input;
        const byInput = k ? this.layers[k - 1].derivatives : this.byInput;
        byInput.fill(0);
        for (let j = 0; j < outputs; j++) {
          const d = by[j];
          if (d === 0) continue;
          const row = weights + j * inputs;
          for (let i = 0; i < inputs; i++) byInput[i] += d * parameters[row + i];
          if (!gradient) continue;
          gradient[bias + j] += d;
          for (let i = 0; i < inputs; i++) gradient[row + i] += d * input[i];
        }
        if (k) for (let i = 0; i < inputs; i++) byInput[i] *= this.activation.slope(input[i]);
        by = byInput;
      }
      return by;
    }
  }

  return { Network };
}
