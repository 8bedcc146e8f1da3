// Draws the charts of a report: {runs: [{name, history: [record, ...]}]}.
(function () {
  "use strict";
  const { runs } = charts.data;
  const last = (run) => run.history[run.history.length - 1].round;
  const rounds = Math.max(...runs.map(last));
  const xs = Array.from({ length: rounds }, (_, i) => i + 1);
  const column = (run, get) => {
    const byRound = new Map(run.history.map((record, i) => [record.round, get(record, i, run)]));
    return xs.map((x) => (byRound.has(x) ? byRound.get(x) : null));
  };
  const running = (key) => {
    const sums = new Map();
    return (record, _, run) => {
      const sum = (sums.get(run) || 0) + record[key];
      sums.set(run, sum);
      return sum;
    };
  };
  // Made anew for each drawing: sums start at 0.
  const plots = () => [
    { title: "Test accuracy", lines: [["", (r) => r.test_accuracy]], show: charts.percent },
    { title: "Loss (nats)", lines: [["test", (r) => r.test_loss], ["train", (r) => r.train_loss]], show: (v) => v.toFixed(3) },
    { title: "Bytes, summed over rounds", lines: [["up", running("bytes_up")], ["down", running("bytes_down")]], show: charts.bytes },
    { title: "Round duration (ms)", lines: [["", (r) => 1000 * r.duration_s]], show: (v) => v.toFixed(1) },
  ];

  charts.show(() => {
    const colours = charts.palette();
    for (const { title, lines, show } of plots()) {
      const series = [{ label: "round" }];
      const data = [xs];
      runs.forEach((run, i) => lines.forEach(([suffix, get], j) => {
        const name = runs.length > 1 ? run.name : suffix || "value";
        series.push({
          label: runs.length > 1 && suffix ? name + " " + suffix : name,
          stroke: colours[(runs.length > 1 ? i : j) % colours.length],
          dash: runs.length > 1 && j > 0 ? [4, 4] : undefined,
          width: 2,
          points: { show: rounds <= 30, size: 5 },
          value: (_, v) => (v == null ? "-" : show(v)),
        });
        data.push(column(run, get));
      }));
      charts.panel(title)({
        height: 240,
        axes: [charts.axis(), { ...charts.axis(), size: 72, values: (_, ticks) => ticks.map((v) => show(v)) }],
        series,
      }, data);
    }
  });
})();
