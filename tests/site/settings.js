// Trains without a page, synchronously: the pictures that a training emits, the first and the last.
({ settings, steps }) => {
  const flow = liveFlow({ ...liveBijectors(), ...liveNetwork() });
  const { conductor } = liveTraining({ ...flow, ...liveData() });
  const queue = [];
  const pictures = [];
  const command = conductor((tick) => queue.push(tick), 5, (picture) => pictures.push(picture));
  const drain = (enough) => {
    while (queue.length && !enough()) queue.shift()();
  };
  command({ settings, running: false, run: 1 });
  drain(() => false);
  command({ running: true, run: 1 });
  drain(() => pictures.at(-1).steps >= steps);
  command({ running: false, run: 1 });
  drain(() => false);
  const keep = ({ steps, loss, entropy, divergence, error, roundTrip, logDet, integral, least }) =>
    ({ steps, loss, entropy, divergence, error, roundTrip, logDet, integral, least });
  return [keep(pictures[0]), keep(pictures.at(-1))];
}
