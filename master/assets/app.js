// Keeps the page that the master wrote up to date: server-sent events change numbers, tables and charts. Without this
// file the page is complete but still.
(() => {
  "use strict";

  const MAX_ROWS = 20;
  const REDRAW_MS = 250;
  const WAIT_SHOWN_S = 5; // shorter waits are the normal course of a round
  const MAX_NAMES = 5;
  const byId = (id) => document.getElementById(id);

  const {
    NONE, known, count, three, percent, loss, bits, bytes, duration, age, plural, median, ROUND_CHARTS,
  } = page;

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
      [count(r.round), "n"], [age(now() - r.finished_ts)], [page.accuracyOrError(r), "n"], [loss(r.test_loss), "n"],
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
    const errors = all.filter((r) => known(r.test_absolute_error)).map((r) => r.test_absolute_error);
    const isRegression = test && known(test.absolute_error);
    set("accuracy_title", isRegression ? "Mean absolute error" : "Test accuracy");
    set("accuracy_column", isRegression ? "Absolute error" : "Accuracy");
    set("accuracy", !test ? NONE : isRegression ? loss(test.absolute_error) : percent(test.accuracy));
    const best = isRegression ? errors.length > 1 && loss(Math.min(...errors))
      : evaluated.length > 1 && percent(Math.max(...evaluated.map((r) => r.test_accuracy)));
    set("accuracy_note", test ? (isRegression ? "squared error " : "loss ") + loss(test.loss) + (best ? ", best " + best : "") : "not evaluated yet");
    const clients = view.client_evaluation && page.mainMetric(view.client_evaluation);
    byId("clients-tile").hidden = !clients;
    if (clients) {
      const { name, spread } = clients;
      const number = name === "accuracy" ? percent : loss;
      set("clients_title", page.titleOf(name) + " on the workers' data");
      set("clients", number(spread.mean));
      set("clients_note", `round ${count(view.client_evaluation.round)}, ${plural(spread.clients, "worker", "workers")}, `
        + `worst ${number(spread.worst)} (${spread.worst_client})`);
    }
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

  function showOpenRound() {
    const bar = byId("open-progress");
    bar.max = Math.max(1, view.min_clients);
    bar.value = view.finished ? bar.max : Math.min(view.pending_updates, bar.max);
    set("open_title", view.finished ? "Training is finished" : `Round ${count(view.global_round + 1)} is open`);
    set("open_text", view.finished ? "no more rounds" : `${count(view.pending_updates)} of ${plural(view.min_clients, "update", "updates")}`);
    const refused = Object.entries(view.rejected_updates);
    const total = refused.reduce((sum, [, n]) => sum + n, 0);
    set("refused", total ? `${plural(total, "update", "updates")} refused since the start: ${refused.map(([code, n]) => `${code} ${count(n)}`).join(", ")}` : "");
  }

  // The first names of a list, and how many more there are.
  function names(list) {
    const more = list.length - MAX_NAMES;
    return list.slice(0, MAX_NAMES).join(", ") + (more > 0 ? ` and ${count(more)} more` : "");
  }

  // What an open round waits for: how many updates, since when, why, and whose.
  function showWaiting() {
    const wait = view.finished ? undefined : view.waiting;
    const waited = wait ? now() - wait.since_ts : 0;
    const box = byId("waiting");
    box.hidden = !(waited >= WAIT_SHOWN_S);
    if (box.hidden) return;
    const open = Math.max(0, wait.needed - wait.accepted);
    const what = wait.needed === 1 ? "1 update" : `${count(open)} more of ${plural(wait.needed, "update", "updates")}`;
    set("waiting_for", `Waiting ${duration(Math.floor(waited)).replace(/\.0 s$/, " s")} for ${what}.`);
    set("waiting_reason", wait.reason || "");
    const missing = [...(wait.missing || [])].sort((a, b) => a.last_seen_ts - b.last_seen_ts);
    set("waiting_missing", missing.length
      ? `Missing: ${names(missing.map((w) => `${w.worker} (${w.last_seen_ts > 0 ? `last heard of ${age(now() - w.last_seen_ts)}` : "never heard of"})`))}.` : "");
    const absent = new Set(missing.map((w) => w.worker));
    const present = Object.keys(view.workers).filter((id) => !absent.has(id) && view.workers[id].round >= view.global_round);
    set("waiting_present", wait.accepted > 0 && present.length ? `Handed in: ${names(present)}.` : "");
  }

  // ---- charts ------------------------------------------------------------------------------------------------------
  function showCharts(all) {
    document.querySelector(".charts").hidden = all.length === 0;
    if (!all.length) return;
    const last = all[all.length - 1];
    for (const chart of ROUND_CHARTS) {
      const node = byId("plot-" + chart.id);
      node.setAttribute("aria-label", page.roundLabel(chart, all));
      node.parentElement.hidden = !chart.has(all);
      if (node.parentElement.hidden) continue;
      page.draw(node, chart, page.roundData(chart, all));
      node.previousElementSibling.querySelector("[data-caption]").textContent = chart.caption(last, all);
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
      showWaiting();
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
  setInterval(redraw, 5000); // ages grow while nothing happens
})();
