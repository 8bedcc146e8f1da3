// Draws the charts of a comparison: {groups: [{name, round: [], accuracy: [], bytes_up: [], time_s: []}]}.
(function () {
  "use strict";
  const { groups } = charts.data;
  const seconds = (v) => (v >= 100 ? v.toFixed(0) : v.toFixed(1)) + " s";
  const percent = (v) => (v == null ? "-" : charts.percent(v));
  const by = [
    { title: "Accuracy by round", key: "round", show: String },
    { title: "Accuracy by bytes sent up", key: "bytes_up", show: charts.bytes },
    { title: "Accuracy by time of the run's own clock", key: "time_s", show: seconds },
  ];

  // All groups on one axis: the union of their x, with gaps that the lines bridge.
  function align(key) {
    const xs = [...new Set(groups.flatMap((group) => group[key]))].sort((a, b) => a - b);
    const index = new Map(xs.map((x, i) => [x, i]));
    const columns = groups.map((group) => {
      const column = new Array(xs.length).fill(null);
      group[key].forEach((x, i) => { if (group.accuracy[i] != null) column[index.get(x)] = group.accuracy[i]; });
      return column;
    });
    return [xs, ...columns];
  }

  charts.show(() => {
    const colours = charts.palette();
    for (const { title, key, show } of by) {
      const series = groups.map((group, i) => ({
        label: group.name,
        stroke: colours[i % colours.length],
        dash: i >= colours.length ? [6, 4] : undefined,
        width: 2,
        spanGaps: true,
        points: { show: false },
        value: (_, v) => percent(v),
      }));
      charts.panel(title)({
        height: 280,
        axes: [
          { ...charts.axis(), values: (_, ticks) => ticks.map(show) },
          { ...charts.axis(), size: 64, values: (_, ticks) => ticks.map(percent) },
        ],
        series: [{ label: key, value: (_, v) => (v == null ? "-" : show(v)) }, ...series],
      }, align(key));
    }
  });
})();
