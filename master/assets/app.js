// Keeps the page that the master wrote up to date: server-sent events change numbers, tables and charts. Without this
// file the page is complete but still. The formats below are those of http/dashboard/format.rs.
(() => {
  "use strict";

  const MAX_ROWS = 20;
  const REDRAW_MS = 250;
  const byId = (id) => document.getElementById(id);

  // ---- formats ---------------------------------------------------------------------------------------------------
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

  // ---- state -----------------------------------------------------------------------------------------------------
  let view = null; // the last `status` event
  let clockSkew = 0; // the master's clock less ours, in seconds
  const rounds = new Map(); // finished rounds by number
  const now = () => Date.now() / 1000 + clockSkew;
  const records = () => [...rounds.values()].sort((a, b) => a.round - b.round);

  // ---- numbers and tables ------------------------------------------------------------------------------------------
  function set(field, text) {
    for (const node of document.querySelectorAll(`[data-field="${field}"]`)) {
      if (node.textContent !== text) node.textContent = text;
    }
  }

  function row(cells) {
    const tr = document.createElement("tr");
    cells.forEach(([text, className], index) => {
      const cell = document.createElement(index === 0 ? "th" : "td");
      if (index === 0) cell.scope = "row";
      if (className) cell.className = className;
      cell.textContent = text;
      tr.append(cell);
    });
    return tr;
  }

  function emptyRow(columns, text) {
    const tr = document.createElement("tr");
    const cell = document.createElement("td");
    cell.colSpan = columns;
    cell.className = "empty";
    cell.textContent = text;
    tr.append(cell);
    return tr;
  }

  function workerState(worker) {
    const behind = view.global_round - worker.round;
    if (view.finished) return ["done", ""];
    if (behind <= 0) return ["delivered", "state-in"];
    if (behind === 1) return ["training", ""];
    return [plural(behind - 1, "round", "rounds") + " behind", "state-late"];
  }

  function showWorkers() {
    const list = Object.entries(view.workers);
    const body = byId("workers");
    body.replaceChildren(...list.map(([id, w]) => row([
      [id], workerState(w), [age(now() - w.last_update_ts)], [count(w.round), "n"], [loss(w.loss), "n"],
      [count(w.num_samples), "n"], [duration(w.compute_factor ?? NaN), "n"], [bytes(w.bytes), "n"], [w.ip],
    ])));
    if (!list.length) body.append(emptyRow(9, "No worker has delivered an update yet."));
    set("num_workers", count(view.num_workers));
    const fresh = list.filter(([, w]) => now() - w.last_update_ts < 60).length;
    set("workers_note", view.num_workers > list.length ? "heard from so far" : fresh + " in the last minute");
    set("workers_more", view.num_workers > list.length
      ? `The ${count(list.length)} heard from last of ${count(view.num_workers)}; all of them are in the status.` : "");
  }

  function showRounds(all) {
    const latest = all.slice(-MAX_ROWS).reverse();
    const body = byId("rounds");
    body.replaceChildren(...latest.map((r) => row([
      [count(r.round), "n"], [age(now() - r.finished_ts)], [percent(r.test_accuracy), "n"], [loss(r.test_loss), "n"],
      [loss(r.train_loss), "n"], [count(r.participants), "n"], [count(r.num_samples), "n"], [bytes(r.bytes_up), "n"],
      [bytes(r.bytes_down), "n"], [bits(r.bits_per_param), "n"], [duration(r.duration_s), "n"],
    ])));
    if (!latest.length) body.append(emptyRow(11, "No round has finished yet."));
  }

  function showTiles(all) {
    const last = all[all.length - 1];
    const evaluated = all.filter((r) => known(r.test_accuracy));
    const test = view.last_evaluation;
    set("round", count(view.global_round));
    set("round_note", view.finished ? "training is finished" : all.length ? "finished " + age(now() - last.finished_ts) : "the initial model");
    set("accuracy", test ? percent(test.accuracy) : NONE);
    const best = Math.max(...evaluated.map((r) => r.test_accuracy));
    set("accuracy_note", test ? "loss " + loss(test.loss) + (evaluated.length > 1 ? ", best " + percent(best) : "") : "not evaluated yet");
    set("update_size", last && last.participants ? bytes(last.bytes_up / last.participants) : NONE);
    set("update_note", last && last.bits_per_param > 0
      ? three(32 / last.bits_per_param) + "× smaller than f32" : "no update yet");
    const times = all.slice(-100).map((r) => r.duration_s);
    set("round_time", duration(median(times)));
    set("round_time_note", last ? "median, last " + duration(last.duration_s) : "no round yet");
    set("uptime", duration(Math.floor(view.uptime_s)));
    document.title = `Round ${count(view.global_round)} · ${view.model} · federated training`;
    const file = `global-round-${view.global_round}.safetensors`;
    document.querySelector("[data-download]").setAttribute("download", file);
  }

  function waiting(wait) {
    if (!wait) return "";
    const missing = wait.missing.slice(0, 5).map((m) => `${m.worker} heard from ${age(now() - m.last_seen_ts)}`);
    return `${wait.reason}; the round opened ${age(now() - wait.since_ts)}` + (missing.length ? ": " + missing.join(", ") : "");
  }

  function showOpenRound() {
    const bar = byId("open-progress");
    bar.max = Math.max(1, view.min_clients);
    bar.value = view.finished ? bar.max : Math.min(view.pending_updates, bar.max);
    set("open_title", view.finished ? "Training is finished" : `Round ${count(view.global_round + 1)} is open`);
    set("open_text", view.finished ? "no more rounds" : `${count(view.pending_updates)} of ${plural(view.min_clients, "update", "updates")}`);
    set("waiting", waiting(view.waiting));
    const refused = Object.entries(view.rejected_updates);
    const total = refused.reduce((sum, [, n]) => sum + n, 0);
    set("refused", total ? `${plural(total, "update", "updates")} refused since the start: ${refused.map(([code, n]) => `${code} ${count(n)}`).join(", ")}` : "");
  }

  // ---- charts ------------------------------------------------------------------------------------------------------
  const plots = [];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const cursor = { sync: { key: "rounds" }, drag: { x: true, y: false }, points: { size: 7 } };

  function axes(format, logarithmic) {
    const shared = { stroke: colour("--soft"), ticks: { show: false }, font: "12px system-ui, sans-serif" };
    // Of a logarithmic axis only the powers of ten.
    const decades = (_, splits) => splits.map((v) => (Number.isInteger(Math.round(1e6 * Math.log10(v)) / 1e6) ? v : null));
    const grid = { stroke: colour("--line"), width: 1, ...(logarithmic && { filter: decades }) };
    const whole = (_, ticks) => ticks.map((t) => (Number.isInteger(t) ? String(t) : ""));
    const labels = (_, ticks) => ticks.map((t) => (t === null ? "" : format(t)));
    return [{ ...shared, grid: { show: false }, values: whole, size: 30, space: 56 }, { ...shared, grid, values: labels, size: 62, space: 34 }];
  }

  // The value under the cursor; without one, the last that is known.
  const shown = (format) => (plot, value, series, index) => {
    const current = index === null ? plot.data[series]?.findLast(known) : value;
    return known(current) ? format(current) : NONE;
  };

  function line(label, name, format, dash) {
    const single = (plot, _, show) => show && plot.data[0].length < 2;
    return {
      label, stroke: colour(name), width: 2, dash, spanGaps: true, points: { show: single, size: 7, fill: colour(name) },
      value: shown(format),
    };
  }

  // A logarithmic axis for traffic: a model down can be a hundred times an update up.
  const positive = (value) => (known(value) && value > 0 ? value : null);
  const orNull = (value) => (known(value) ? value : null);
  const fromZero = (_, min, max) => [0, max > 0 ? max * 1.08 : 1];
  const wholeDecades = (_, min, max) => (min > 0
    ? [10 ** Math.floor(Math.log10(min * 0.99)), 10 ** Math.ceil(Math.log10(max * 1.01))] : [1, 10]);
  const CHARTS = [
    {
      id: "accuracy", scale: { range: (_, min, max) => [Math.max(0, min - 0.05 * (max - min) - 0.005), Math.min(1, max + 0.02 * (max - min) + 0.005)] },
      tick: (v) => three(100 * v).replace(/\.0+$/, "") + "%",
      series: () => [line("Test accuracy", "--one", percent)], columns: [(r) => orNull(r.test_accuracy)],
      caption: (r) => (known(r.test_accuracy) ? percent(r.test_accuracy) + " after round " + count(r.round) : ""),
    },
    {
      id: "loss", scale: { range: fromZero }, tick: (v) => String(Number(v.toPrecision(3))),
      series: () => [line("Test", "--one", loss), line("Training", "--two", loss, [6, 4])],
      columns: [(r) => orNull(r.test_loss), (r) => orNull(r.train_loss)],
      caption: (r) => (known(r.test_loss) ? "test " + loss(r.test_loss) : "") + (known(r.train_loss) ? ", training " + loss(r.train_loss) : ""),
    },
    {
      id: "bytes", scale: { distr: 3, range: wholeDecades }, tick: bytes,
      series: () => [line("Updates up", "--one", bytes), line("Models down", "--two", bytes, [6, 4])],
      columns: [(r) => positive(r.bytes_up), (r) => positive(r.bytes_down)],
      caption: (r) => `${bits(r.bits_per_param)} bits per parameter` + (r.bits_per_param > 0 ? `, ${three(32 / r.bits_per_param)}× smaller than f32` : ""),
    },
    {
      id: "duration", scale: { range: fromZero }, tick: (v) => (v === 0 ? "0" : v < 1 ? Number((1000 * v).toPrecision(3)) + " ms" : Number(v.toPrecision(3)) + " s"),
      series: () => [line("Duration", "--one", duration)], columns: [(r) => orNull(r.duration_s)],
      caption: (r, all) => "median " + duration(median(all.slice(-100).map((x) => x.duration_s))),
    },
  ];

  function table(chart, all) {
    return [all.map((r) => r.round), ...chart.columns.map((column) => all.map(column))];
  }

  const width = (node) => Math.max(240, node.clientWidth);

  function buildCharts() {
    for (const plot of plots.splice(0)) plot.uplot.destroy();
    const all = records();
    for (const chart of CHARTS) {
      const node = byId("plot-" + chart.id);
      const options = {
        width: width(node), height: 196, cursor, axes: axes(chart.tick, chart.scale.distr === 3), padding: [10, 12, 0, 0],
        scales: { x: { time: false, range: (_, min, max) => (min === max ? [min - 1, max + 1] : [min, max]) }, y: chart.scale },
        series: [{ label: "Round", value: shown(count) }, ...chart.series()],
      };
      plots.push({ chart, node, uplot: new uPlot(options, table(chart, all), node) });
    }
  }

  function showCharts(all) {
    document.querySelector(".charts").hidden = all.length === 0;
    if (!all.length) return;
    if (!plots.length) buildCharts();
    const last = all[all.length - 1];
    for (const { chart, node, uplot } of plots) {
      uplot.setData(table(chart, all));
      const text = chart.caption(last, all).replace(/^, /, "");
      node.previousElementSibling.querySelector("[data-caption]").textContent = text;
      node.setAttribute("aria-label", `${node.previousElementSibling.querySelector("h2").textContent} of ${plural(all.length, "round", "rounds")}: ${text || "no value yet"}. The numbers are in the table of the last rounds.`);
    }
  }

  // ---- one redraw for many events ------------------------------------------------------------------------------------
  let scheduled = false;
  function redraw() {
    if (scheduled) return;
    scheduled = true;
    setTimeout(() => {
      scheduled = false;
      if (!view) return;
      const all = records();
      showTiles(all);
      showOpenRound();
      showWorkers();
      showRounds(all);
      showCharts(all);
      document.documentElement.dataset.round = view.global_round;
    }, document.hidden ? 1000 : REDRAW_MS);
  }

  // ---- the stream ------------------------------------------------------------------------------------------------------
  function live(className, text) {
    const node = byId("live");
    node.className = "live " + className;
    if (node.textContent !== text) node.textContent = text;
  }

  async function loadHistory() {
    try {
      const answer = await fetch("history", { cache: "no-store" });
      if (!answer.ok) return;
      const list = await answer.json();
      rounds.clear();
      for (const record of list) rounds.set(record.round, record);
      redraw();
    } catch { /* the stream reports the loss of the master */ }
  }

  function connect() {
    const source = new EventSource("events");
    source.addEventListener("open", () => { live("on", "Live"); loadHistory(); });
    source.addEventListener("reset", loadHistory);
    source.addEventListener("status", (event) => {
      view = JSON.parse(event.data);
      clockSkew = view.now_ts - Date.now() / 1000;
      redraw();
    });
    source.addEventListener("round", (event) => {
      const record = JSON.parse(event.data);
      rounds.set(record.round, record);
      redraw();
    });
    source.addEventListener("error", () => {
      live("lost", "Reconnecting");
      // A refused stream (503: too many viewers, or draining) is closed by the browser for good; ask again later.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
    });
  }

  // ---- the page ----------------------------------------------------------------------------------------------------------
  function copyCommand() {
    const command = byId("curl");
    const button = byId("copy");
    const address = new URL("global", location.href).href;
    command.textContent = `curl -OJ ${address}`;
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(command.textContent);
        button.textContent = "Copied";
      } catch { // no clipboard without https: select it, so that one key copies
        getSelection().selectAllChildren(command);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }

  copyCommand();
  connect();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (plots.length) buildCharts(); });
  new ResizeObserver(() => {
    for (const { node, uplot } of plots) {
      if (uplot.width !== width(node)) uplot.setSize({ width: width(node), height: 196 });
    }
  }).observe(document.querySelector("main"));
  setInterval(redraw, 5000); // ages grow while nothing happens
})();
