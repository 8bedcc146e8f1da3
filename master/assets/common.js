// What the dashboard and the reports of `fl` share: formats, charts that follow the width of their place and the
// colours of the page, and a hint at tables that are wider than the screen. Needs uPlot.
const page = (() => {
  "use strict";

  // ---- formats, as in http/dashboard/format.rs ---------------------------------------------------------------------
  const NONE = "–";
  const known = (value) => typeof value === "number" && Number.isFinite(value);
  const count = (value) => (known(value) ? Math.round(value).toLocaleString("en-US") : NONE);
  const three = (value) => value.toPrecision(3).replace(/e.*/, "");
  const percent = (value) => (known(value) ? (100 * value).toFixed(1) + "%" : NONE);
  const loss = (value) => (known(value) ? value.toFixed(4) : NONE);
  const bits = (value) => (known(value) ? value.toFixed(2) : NONE);

  function bytes(value) {
    if (!known(value)) return NONE;
    if (value < 999.5) return Math.round(value) + " B";
    for (const unit of ["kB", "MB", "GB"]) {
      value /= 1000;
      if (value < 999.5) return three(value) + " " + unit;
    }
    return three(value / 1000) + " TB";
  }

  function duration(seconds) {
    if (!known(seconds)) return NONE;
    const s = Math.max(0, seconds);
    if (s < 0.01) return (1000 * s).toFixed(1) + " ms";
    if (s < 0.9995) return Math.round(1000 * s) + " ms";
    if (s < 10) return s.toFixed(1) + " s";
    if (s < 120) return Math.floor(s) + " s";
    const minutes = Math.floor(s / 60);
    if (minutes < 120) return minutes + " min";
    const hours = Math.floor(minutes / 60);
    return hours < 48 ? hours + " h " + (minutes % 60) + " min" : Math.floor(hours / 24) + " days";
  }

  const age = (seconds) => (seconds < 1 ? "now" : duration(Math.floor(seconds)).replace(/\.0 s$/, " s") + " ago");
  const plural = (n, one, many) => count(n) + " " + (n === 1 ? one : many);

  function median(values) {
    const sorted = values.filter(known).sort((a, b) => a - b);
    const middle = sorted.length >> 1;
    if (!sorted.length) return NaN;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  // ---- ticks: the text of a value on an axis whose ticks are `step` apart ---------------------------------------------
  const decimals = (step) => Math.min(6, Math.max(0, -Math.floor(Math.log10(step) + 1e-6)));
  const ticks = {
    round: (value) => count(value),
    percent: (value, step) => (100 * value).toFixed(decimals(100 * step)) + "%",
    number: (value) => String(Number(value.toPrecision(3))),
    bytes: (value) => bytes(value).replace(/(\.\d*?)0+(?= )/, "$1").replace(/\.(?= )/, ""),
    // One unit for the whole axis, chosen by the distance of its ticks.
    seconds: (value, step) => (value === 0 ? "0" : step < 0.2 ? Number((1000 * value).toPrecision(4)) + " ms"
      : Number(value.toPrecision(4)) + " s"),
  };

  // ---- charts ----------------------------------------------------------------------------------------------------------
  const COLOURS = ["--one", "--two", "--three", "--four", "--five", "--six", "--seven", "--eight"];
  const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif";
  const WHOLE = [1, 2, 5].flatMap((first) => Array.from({ length: 12 }, (_, power) => first * 10 ** power)).sort((a, b) => a - b);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  // Points are drawn while there are few.
  const fewPoints = (plot) => plot.data[0].length <= 40;

  // A line of a chart. Its legend has the value under the cursor; without a cursor, the last that is known.
  function line(label, index, format, dash) {
    const stroke = colour(COLOURS[index % COLOURS.length]);
    return {
      label, stroke, width: 2, dash, spanGaps: true, points: { show: fewPoints, size: 5, width: 1, stroke, fill: stroke },
      value: shown(format),
    };
  }

  const shown = (format) => (plot, value, series, index) => {
    const current = index === null ? plot.data[series]?.findLast(known) : value;
    return known(current) ? format(current) : NONE;
  };

  const oneOrMore = (_, min, max) => (min === max ? [min - 1, max + 1] : [min, max]);

  // A chart description becomes uPlot's options: {x: {label, name, tick, format, whole}, y: {tick, scale}, lines()}.
  function options({ x, y, lines, height, bands }, data) {
    const logarithmic = y.scale.distr === 3;
    const shared = { stroke: colour("--soft"), ticks: { show: false }, font: FONT };
    // Of a logarithmic axis only the powers of ten.
    const decades = (_, splits) => splits.map((v) => (Number.isInteger(Math.round(1e6 * Math.log10(v)) / 1e6) ? v : null));
    const grid = { stroke: colour("--line"), width: 1, ...(logarithmic && { filter: decades }) };
    const text = (tick) => (_, splits, _axis, _space, step) => splits.map((v) => (v === null ? "" : tick(v, step)));
    return {
      height: height ?? 216, padding: [10, 26, 0, 0],
      cursor: { sync: { key: x.label }, drag: { x: true, y: false }, points: { size: 7 } },
      scales: { x: { time: false, range: oneOrMore }, y: y.scale },
      axes: [
        { ...shared, grid: { show: false }, values: text(x.tick), size: 28, space: x.whole ? 56 : 70, gap: 4,
          label: x.label, labelSize: 20, labelFont: FONT, labelGap: 0, ...(x.whole && { incrs: WHOLE }) },
        { ...shared, grid, values: text(y.tick), size: 64, space: 34 },
      ],
      legend: { markers: { dash: (plot, i) => (plot.series[i].dash ? "dashed" : "solid") } },
      bands: bands?.(data),
      series: [{ label: x.name ?? x.label, value: shown(x.format) }, ...lines()],
    };
  }

  const charts = new Map(); // by the node that they are drawn in
  const widthOf = (node) => Math.max(200, Math.floor(node.clientWidth));
  const observer = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const { plot } = charts.get(target);
      if (plot.width !== widthOf(target)) plot.setSize({ width: widthOf(target), height: plot.height });
    }
  });

  function build(node) {
    const chart = charts.get(node);
    chart.plot?.destroy();
    chart.plot = new uPlot({ width: widthOf(node), ...options(chart.description, chart.data) }, chart.data, node);
  }

  // Draws `data` into `node`, or draws it anew. The node has its place in the page by then: the chart takes its width.
  function draw(node, description, data) {
    const chart = charts.get(node);
    if (chart) {
      chart.data = data;
      chart.plot.setData(data);
      return;
    }
    charts.set(node, { description, data });
    build(node);
    observer.observe(node);
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach((_, node) => build(node)));

  // An empty figure with a heading; `node` is where its chart goes.
  function figure(title, caption, label) {
    const card = document.createElement("figure");
    const head = document.createElement("figcaption");
    const heading = document.createElement("h2");
    const note = document.createElement("p");
    const node = document.createElement("div");
    card.className = "card";
    node.className = "plot";
    node.setAttribute("role", "img");
    node.setAttribute("aria-label", label);
    heading.textContent = title;
    note.textContent = caption;
    head.append(heading, note);
    card.append(head, node);
    return { card, node };
  }

  // ---- the charts of a run's rounds ------------------------------------------------------------------------------------
  // A logarithmic axis for traffic: a model down can be a hundred times an update up.
  const positive = (value) => (known(value) && value > 0 ? value : null);
  const orNull = (value) => (known(value) ? value : null);
  const fromZero = (_, min, max) => [0, max > 0 ? max * 1.08 : 1];
  const wholeDecades = (_, min, max) => (min > 0
    ? [10 ** Math.floor(Math.log10(min * 0.99)), 10 ** Math.ceil(Math.log10(max * 1.01))] : [1, 10]);
  const share = (_, min, max) => (known(min)
    ? [Math.max(0, min - 0.05 * (max - min) - 0.005), Math.min(1, max + 0.02 * (max - min) + 0.005)] : [0, 1]);
  const byRound = { label: "Round", tick: ticks.round, format: count, whole: true };
  const always = () => true;
  // Of the metrics that workers report the one that is shown.
  function mainMetric(evaluation) {
    const metrics = evaluation?.metrics ?? {};
    const name = ["accuracy", "absolute_error", "loss"].find((key) => key in metrics) ?? Object.keys(metrics).sort()[0];
    return name === undefined ? undefined : { name, spread: metrics[name] };
  }
  const titleOf = (name) => (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll("_", " ");
  const figure4 = (value) => (known(value) ? value.toFixed(4) : NONE);
  const spreadRange = (_, min, max) => (known(min)
    ? [min - 0.05 * (max - min) - 0.001 * Math.abs(min), max + 0.05 * (max - min) + 0.001 * Math.abs(max)] : [0, 1]);
  function spreadCaption(record) {
    if (!record) return "";
    const { name, spread } = mainMetric(record.evaluation);
    const number = name === "accuracy" ? percent : loss;
    return `${titleOf(name).toLowerCase()} ${number(spread.mean)}, worst ${number(spread.worst)} (${spread.worst_client})`;
  }
  const accuracyOrError = (r) => (known(r.test_absolute_error) ? loss(r.test_absolute_error) : percent(r.test_accuracy));
  const ROUND_CHARTS = [
    {
      id: "accuracy", title: "Test accuracy", x: byRound, y: { tick: ticks.percent, scale: { range: share } },
      has: (all) => !all.some((r) => known(r.test_absolute_error)),
      lines: () => [line("Test accuracy", 0, percent)], columns: [(r) => orNull(r.test_accuracy)],
      caption: (r) => (known(r.test_accuracy) ? percent(r.test_accuracy) + " after round " + count(r.round) : ""),
    },
    {
      id: "error", title: "Mean absolute error", x: byRound, y: { tick: ticks.number, scale: { range: fromZero } },
      has: (all) => all.some((r) => known(r.test_absolute_error)),
      lines: () => [line("Mean absolute error", 0, loss)], columns: [(r) => orNull(r.test_absolute_error)],
      caption: (r) => (known(r.test_absolute_error) ? loss(r.test_absolute_error) + " after round " + count(r.round) : ""),
    },
    {
      id: "clients", title: "On the workers' data", x: byRound, y: { tick: ticks.number, scale: { range: spreadRange } },
      has: (all) => all.some((r) => mainMetric(r.evaluation)),
      lines: () => [line("Mean", 0, figure4), line("Median", 1, figure4, [2, 4]), line("10th percentile", 2, figure4, [6, 4]),
        line("Worst worker", 3, figure4, [6, 4])],
      // The band between the median and the worst worker.
      bands: ([, , median, , worst]) => {
        const at = median.findLastIndex(known);
        return [{ series: at >= 0 && median[at] < worst[at] ? [4, 2] : [2, 4], fill: colour(COLOURS[0]) + "22" }];
      },
      columns: ["mean", "median", "p10", "worst"].map((key) => (r) => orNull(mainMetric(r.evaluation)?.spread[key])),
      caption: (_, all) => spreadCaption(all.findLast((r) => mainMetric(r.evaluation))),
    },
    {
      id: "loss", title: "Loss", has: always, x: byRound, y: { tick: ticks.number, scale: { range: fromZero } },
      lines: () => [line("Test", 0, loss), line("Training", 1, loss, [6, 4])],
      columns: [(r) => orNull(r.test_loss), (r) => orNull(r.train_loss)],
      caption: (r) => [known(r.test_loss) && "test " + loss(r.test_loss), known(r.train_loss) && "training " + loss(r.train_loss)]
        .filter(Boolean).join(", "),
    },
    {
      id: "bytes", title: "Traffic per round", has: always, x: byRound, y: { tick: ticks.bytes, scale: { distr: 3, range: wholeDecades } },
      lines: () => [line("Updates up", 0, bytes), line("Models down", 1, bytes, [6, 4])],
      columns: [(r) => positive(r.bytes_up), (r) => positive(r.bytes_down)],
      caption: (r) => `${bits(r.bits_per_param)} bits per parameter` + (r.bits_per_param > 0 ? `, ${three(32 / r.bits_per_param)}× smaller than f32` : ""),
    },
    {
      id: "duration", title: "Round duration", has: always, x: byRound, y: { tick: ticks.seconds, scale: { range: fromZero } },
      lines: () => [line("Duration", 0, duration)], columns: [(r) => orNull(r.duration_s)],
      caption: (r, all) => "median " + duration(median(all.slice(-100).map((x) => x.duration_s))),
    },
  ];
  const roundData = (chart, records) => [records.map((r) => r.round), ...chart.columns.map((column) => records.map(column))];
  const roundLabel = (chart, records) => `${chart.title} of ${plural(records.length, "round", "rounds")}: `
    + `${chart.caption(records[records.length - 1], records) || "no value yet"}. The numbers are in the table of the rounds.`;

  // ---- tables that are wider than their place ----------------------------------------------------------------------------
  const tables = new ResizeObserver(() => document.querySelectorAll(".scroll").forEach(hint));
  function hint(region) {
    let note = region.previousElementSibling;
    if (!note?.classList.contains("hint")) {
      note = document.createElement("p");
      note.className = "hint";
      note.textContent = "The table is wider than the screen: scroll sideways for more columns.";
      region.before(note);
    }
    note.hidden = region.scrollWidth <= region.clientWidth;
  }
  for (const region of document.querySelectorAll(".scroll")) {
    tables.observe(region);
    tables.observe(region.firstElementChild);
  }

  return {
    NONE, known, count, three, percent, loss, bits, bytes, duration, age, plural, median,
    accuracyOrError, mainMetric, titleOf, ticks, line, share, fromZero, draw, figure, ROUND_CHARTS, roundData, roundLabel,
    colours: COLOURS.length,
  };
})();
