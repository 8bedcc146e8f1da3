// What the reports share: data, palette, how numbers are written, panels, and drawing again when it must be.
const charts = (function () {
  "use strict";
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const root = document.getElementById("charts");
  const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return {
    data: JSON.parse(document.getElementById("data").textContent),
    percent: (v) => (100 * v).toFixed(1) + " %",
    bytes: (v) => (v >= 1e9 ? (v / 1e9).toFixed(2) + " GB" : v >= 1e6 ? (v / 1e6).toFixed(2) + " MB"
      : v >= 1e3 ? (v / 1e3).toFixed(1) + " kB" : v + " B"),
    // The colours of the lines, legible on the page's background.
    palette: () => (dark.matches
      ? ["#6cc0dc", "#f0a868", "#9fd38a", "#d59ad6", "#e88b8b", "#c9c46a", "#9aa7ff", "#7fd6c2"]
      : ["#1f6f8b", "#b8581a", "#3f7d2c", "#8a3f8c", "#b03434", "#7a7413", "#3f4fb8", "#1d7a66"]),
    axis: () => ({
      stroke: style("--soft"),
      grid: { stroke: style("--line"), width: 1 },
      ticks: { stroke: style("--line"), width: 1 },
    }),
    // A panel with a heading: plot(options, data) draws into it, as wide as it is.
    panel(title) {
      const panel = document.createElement("section");
      panel.className = "panel";
      const heading = document.createElement("h2");
      heading.textContent = title;
      panel.append(heading);
      root.append(panel);
      return (options, data) =>
        new uPlot({ width: Math.max(280, panel.clientWidth - 32), scales: { x: { time: false } }, ...options }, data, panel);
    },
    // Draws now, and whenever colours or sizes change.
    show(draw) {
      const again = () => { root.replaceChildren(); draw(); };
      again();
      dark.addEventListener("change", again);
      let timer;
      addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(again, 150); });
    },
  };
})();
