// Draws the charts of one run: {history: [record, ...]}.
(() => {
  "use strict";
  const { history } = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("charts");
  root.hidden = history.length === 0;
  if (root.hidden) return;
  const last = history[history.length - 1];
  const figures = page.ROUND_CHARTS.filter((chart) => chart.has(history)).map((chart) => {
    const figure = page.figure(chart.title, chart.caption(last, history), page.roundLabel(chart, history));
    return { chart, ...figure };
  });
  root.append(...figures.map(({ card }) => card));
  // Only when every figure has its place is its width known.
  for (const { chart, node } of figures) page.draw(node, chart, page.roundData(chart, history));
})();
