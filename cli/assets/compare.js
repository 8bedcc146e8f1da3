// Draws the charts of a comparison from the JSON in #data:
// {groups: [{name, round: [], accuracy: [], bytes_up: [], time_s: []}]}.
(function () {
  "use strict";
  const groups = JSON.parse(document.getElementById("data").textContent).groups;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const palette = () => (dark.matches
    ? ["#6cc0dc", "#f0a868", "#9fd38a", "#d59ad6", "#e88b8b", "#c9c46a", "#9aa7ff", "#7fd6c2"]
    : ["#1f6f8b", "#b8581a", "#3f7d2c", "#8a3f8c", "#b03434", "#7a7413", "#3f4fb8", "#1d7a66"]);
  const bytes = (v) => (v >= 1e9 ? (v / 1e9).toFixed(2) + " GB" : v >= 1e6 ? (v / 1e6).toFixed(1) + " MB"
    : v >= 1e3 ? (v / 1e3).toFixed(1) + " kB" : v + " B");
  const seconds = (v) => (v >= 100 ? v.toFixed(0) : v.toFixed(1)) + " s";
  const percent = (v) => (100 * v).toFixed(1) + " %";

  const charts = [
    { title: "Accuracy by round", key: "round", show: String },
    { title: "Accuracy by bytes sent up", key: "bytes_up", show: bytes },
    { title: "Accuracy by time of the run's own clock", key: "time_s", show: seconds },
  ];

  // All groups on one axis: the union of their x, with gaps that the lines bridge.
  function align(key) {
    const xs = [...new Set(groups.flatMap((group) => group[key]))].sort((a, b) => a - b);
    const index = new Map(xs.map((x, i) => [x, i]));
    const columns = groups.map((group) => {
      const column = new Array(xs.length).fill(undefined);
      group[key].forEach((x, i) => { if (group.accuracy[i] != null) column[index.get(x)] = group.accuracy[i]; });
      return column.map((v) => (v === undefined ? null : v));
    });
    return [xs, ...columns];
  }

  function draw() {
    const root = document.getElementById("charts");
    root.replaceChildren();
    const style = getComputedStyle(document.documentElement);
    const soft = style.getPropertyValue("--soft").trim();
    const line = style.getPropertyValue("--line").trim();
    const colours = palette();
    for (const chart of charts) {
      const panel = document.createElement("section");
      panel.className = "panel";
      const heading = document.createElement("h2");
      heading.textContent = chart.title;
      panel.append(heading);
      root.append(panel);
      const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
      const series = groups.map((group, i) => ({
        label: group.name,
        stroke: colours[i % colours.length],
        dash: i >= colours.length ? [6, 4] : undefined,
        width: 2,
        spanGaps: true,
        points: { show: false },
        value: (_, v) => (v == null ? "-" : percent(v)),
      }));
      new uPlot({
        width: Math.max(280, panel.clientWidth - 32),
        height: 280,
        scales: { x: { time: false } },
        axes: [
          { ...axis, values: (_, ticks) => ticks.map(chart.show) },
          { ...axis, size: 64, values: (_, ticks) => ticks.map(percent) },
        ],
        series: [{ label: chart.key, value: (_, v) => (v == null ? "-" : chart.show(v)) }, ...series],
      }, align(chart.key), panel);
    }
  }
  draw();
  dark.addEventListener("change", draw);
  let timer;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(draw, 150); });
})();
