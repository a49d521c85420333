// Runs the engine of the live figures on what the package exported; what it returns is compared in Python.
({ bijector, options, masks, width, depth, parameters, rows, normals, rate, steps }) => {
  const { Flow, adam } = liveFlow({ ...liveBijectors(), ...liveNetwork() });
  const flow = new Flow({ bijector, options, masks, width, depth });
  if (flow.parameters.length !== parameters.length) throw new Error(`expected ${flow.parameters.length} weights`);
  flow.parameters.set(parameters);
  const data = Float64Array.from(rows.flat());
  const z = [];
  const log_det = rows.map((row) => {
    const sum = flow.forward(row);
    z.push([...flow.z]);
    return sum;
  });
  const x = normals.map((row) => [...flow.inverse(row)]);
  const jacobian = rows.slice(0, 8).map((row) => flow.jacobian(row).map((line) => [...line]));
  const loss = flow.loss(data);
  const gradient = [...flow.gradient];
  const step = adam(flow, rate);
  const losses = [];
  for (let i = 0; i < steps; i++) {
    losses.push(flow.loss(data));
    step();
  }
  return { z, log_det, x, jacobian, loss, gradient, losses };
}
