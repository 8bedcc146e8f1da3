// Draws the charts of a report from the JSON in #data: {runs: [{name, history: [record, ...]}]}.
(function () {
  "use strict";
  const runs = JSON.parse(document.getElementById("data").textContent).runs;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const palette = () => (dark.matches
    ? ["#6cc0dc", "#f0a868", "#9fd38a", "#d59ad6", "#e88b8b", "#c9c46a"]
    : ["#1f6f8b", "#b8581a", "#3f7d2c", "#8a3f8c", "#b03434", "#7a7413"]);

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
  const bytes = (v) => (v >= 1e9 ? (v / 1e9).toFixed(2) + " GB" : v >= 1e6 ? (v / 1e6).toFixed(2) + " MB"
    : v >= 1e3 ? (v / 1e3).toFixed(1) + " kB" : v + " B");

  const charts = [
    { title: "Test accuracy", lines: [["", (r) => r.test_accuracy]], show: (v) => (100 * v).toFixed(1) + " %" },
    { title: "Loss (nats)", lines: [["test", (r) => r.test_loss], ["train", (r) => r.train_loss]], show: (v) => v.toFixed(3) },
    { title: "Bytes up, summed over rounds", lines: [["", running("bytes_up")]], show: bytes },
    { title: "Round duration (ms)", lines: [["", (r) => 1000 * r.duration_s]], show: (v) => v.toFixed(1) },
  ];

  function draw() {
    const root = document.getElementById("charts");
    root.replaceChildren();
    const style = getComputedStyle(document.documentElement);
    const soft = style.getPropertyValue("--soft").trim();
    const line = style.getPropertyValue("--line").trim();
    for (const chart of charts) {
      const panel = document.createElement("section");
      panel.className = "panel";
      const heading = document.createElement("h2");
      heading.textContent = chart.title;
      panel.append(heading);
      root.append(panel);
      const colours = palette();
      const series = [{ label: "round" }];
      const data = [xs];
      runs.forEach((run, i) => chart.lines.forEach(([suffix, get], j) => {
        const name = runs.length > 1 ? run.name : suffix || "value";
        series.push({
          label: runs.length > 1 && suffix ? name + " " + suffix : name,
          stroke: colours[(runs.length > 1 ? i : j) % colours.length],
          dash: runs.length > 1 && j > 0 ? [4, 4] : undefined,
          width: 2,
          points: { show: rounds <= 30, size: 5 },
          value: (_, v) => (v == null ? "-" : chart.show(v)),
        });
        data.push(column(run, get));
      }));
      const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
      new uPlot({
        width: Math.max(280, panel.clientWidth - 32),
        height: 240,
        scales: { x: { time: false } },
        axes: [axis, { ...axis, size: 72, values: (_, ticks) => ticks.map((v) => chart.show(v)) }],
        series,
      }, data, panel);
    }
  }
  draw();
  dark.addEventListener("change", draw);
  let timer;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(draw, 150); });
})();
