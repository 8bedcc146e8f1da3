#!/usr/bin/env bash
# The pages that the programs write in a real browser: the dashboard while a real federation trains, and the reports of
# runs, comparisons and sweeps. The screenshots stay in target/ci/.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=$PWD/target/ci
VENV=$OUT/dashboard-venv
BIN=${FL_BIN:-target/release}
PORT=${FL_DASHBOARD_PORT:-5986}
mkdir -p "$OUT"

packages=(chromium chromium-driver fonts-dejavu-core prometheus)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
fi
[ -x "$VENV/bin/python" ] || python3 -m venv "$VENV"
"$VENV/bin/pip" install -q --disable-pip-version-check selenium

# Reports: of one run, of one round, of runs with one seed and with several, of a sweep with more runs than colours.
PAGES=$OUT/pages
rm -rf "$PAGES"
mkdir -p "$PAGES"
for seed in 1 2; do
    "$BIN/fl" run --json --rounds 8 --seed $seed --out "$PAGES/fine-$seed" >/dev/null
    "$BIN/fl" run --json --rounds 8 --seed $seed --bits 2 --out "$PAGES/coarse-$seed" >/dev/null
done
"$BIN/fl" run --json --rounds 1 --out "$PAGES/short" >/dev/null
"$BIN/fl" compare "$PAGES/fine-1" "$PAGES/coarse-1" --out "$PAGES/one-seed.html" >/dev/null
"$BIN/fl" compare "$PAGES"/{fine,coarse}-{1,2} "$PAGES/short" --out "$PAGES/seeds.html" >/dev/null
cat >"$PAGES/names.toml" <<'TOML'
title = "A sweep of runs with names as long as people make them, and of more runs than there are colours"
[base]
clients = 10
rounds = 45
"local-steps" = 2
[grid]
seed = [1, 2]
bits = [2, 3, 4, 6, 8]
[[run]]
name = "fedavg on the digits of ten clients that hold what Dirichlet's distribution gave to each of them, without momentum"
[[run]]
name = "fedprox_on_the_digits_of_ten_clients_that_hold_what_a_distribution_gave_to_each_of_them_with_mu_of_one_hundredth"
mu = 0.01
TOML
"$BIN/fl" sweep "$PAGES/names.toml" --out "$PAGES/sweep" >/dev/null 2>&1

pids=()
cleanup() { for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done; }
trap cleanup EXIT

BIND=127.0.0.1:$PORT DURABLE=false AGG_MIN_CLIENTS=3 "$BIN/fl-master" 2>"$OUT/dashboard-master.log" &
pids+=($!)
for i in 0 1 2; do
    MASTER_ADDR=http://127.0.0.1:$PORT WORKER_ID="edge$((i + 1))" PARTITION_ID=$i NUM_PARTITIONS=3 MEM_MB=0 LOCAL_STEPS=200 \
        METRICS_ADDR=127.0.0.1:$((PORT + 1 + i)) "$BIN/fl-worker" 2>"$OUT/dashboard-worker$i.log" &
    pids+=($!)
done
# A master without workers.
EMPTY=$((PORT + 4))
cat >"$PAGES/a-network-whose-file-name-says-everything-about-its-layers-and-their-sizes.json" <<'JSON'
{"name": "a-network-whose-name-says-everything-about-its-layers-and-their-sizes", "input_shape": [1, 8, 8], "num_classes": 10,
 "layers": [{"type": "flatten"}, {"type": "linear", "out_features": 10}]}
JSON
BIND=127.0.0.1:$EMPTY DURABLE=false AGG_MIN_CLIENTS=3 MODEL=$PAGES/a-network-whose-file-name-says-everything-about-its-layers-and-their-sizes.json \
    "$BIN/fl-master" 2>"$OUT/dashboard-empty.log" &
pids+=($!)
for port in "$PORT" "$EMPTY"; do
    for _ in $(seq 100); do
        curl -sf -o /dev/null "http://127.0.0.1:$port/readyz" && break
        sleep 0.1
    done
    curl -sf -o /dev/null "http://127.0.0.1:$port/readyz" || { echo "the master on port $port is not ready" >&2; exit 1; }
done
"$VENV/bin/python" .ci/dashboard.py "http://127.0.0.1:$PORT/" "$OUT"
"$VENV/bin/python" .ci/pages.py "$OUT" run="file://$PAGES/fine-1/report.html" short-run="file://$PAGES/short/report.html" \
    one-seed="file://$PAGES/one-seed.html" seeds="file://$PAGES/seeds.html" sweep="file://$PAGES/sweep/names/compare.html" \
    live="http://127.0.0.1:$PORT/" empty="http://127.0.0.1:$EMPTY/" \
    $(for name in many waiting waiting-for-many short-wait finished; do echo "fed-$name=http://127.0.0.1:$EMPTY/"; done)
# The same federation's metrics, checked by Prometheus' linter.
for port in "$PORT" $((PORT + 1)); do
    curl -sf "http://127.0.0.1:$port/metrics" | promtool check metrics
    echo "metrics: promtool finds nothing wrong on port $port"
done
