// Draws the charts of a comparison: {clock, metric, groups: [{name, seeds, round: [],
// accuracy: [], bytes_up: [], time_s: []}]}, where `accuracy` holds mean absolute errors if that is the metric.
(() => {
  "use strict";
  const { groups, clock, metric } = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("charts");
  const { ticks, percent, loss, count, bytes, duration } = page;
  const isError = metric === "absolute_error";
  const result = isError ? "Mean absolute error" : "Accuracy";
  const CHARTS = [
    { title: result + " by round", key: "round", height: 300,
      x: { label: "Round", tick: ticks.round, format: count, whole: true } },
    { title: result + " by bytes sent up", key: "bytes_up",
      x: { label: "Bytes that all clients sent up", name: "Sent up", tick: ticks.bytes, format: bytes } },
    { title: result + " by time", key: "time_s",
      x: { label: clock, name: "Time", tick: ticks.seconds, format: duration } },
  ];
  const lines = () => groups.map(({ name }, i) => page.line(name, i, isError ? loss : percent, i >= page.colours ? [6, 4] : undefined));

  // All groups on one axis: the union of their x, with gaps that the lines bridge.
  function align(key) {
    const xs = [...new Set(groups.flatMap((group) => group[key]))].sort((a, b) => a - b);
    const index = new Map(xs.map((x, i) => [x, i]));
    const columns = groups.map((group) => {
      const column = new Array(xs.length).fill(null);
      group[key].forEach((x, i) => { if (group.accuracy[i] !== null) column[index.get(x)] = group.accuracy[i]; });
      return column;
    });
    return [xs, ...columns];
  }

  root.hidden = !groups.some((group) => group.round.length);
  if (root.hidden) return;
  root.classList.add("runs");
  const severalSeeds = groups.some((group) => group.seeds > 1);
  const figures = CHARTS.map((chart, i) => {
    const label = `${chart.title} of ${page.plural(groups.length, "group", "groups")} of runs. The numbers are in the tables.`;
    const figure = page.figure(chart.title, severalSeeds ? "means over seeds" : "", label);
    if (i === 0) figure.card.classList.add("wide");
    return { chart, ...figure };
  });
  root.append(...figures.map(({ card }) => card));
  // Only when every figure has its place is its width known.
  for (const { chart: { key, x, height }, node } of figures) {
    const y = isError ? { tick: ticks.number, scale: { range: page.fromZero } } : { tick: ticks.percent, scale: { range: page.share } };
    page.draw(node, { x, y, lines, height }, align(key));
  }
})();
