#!/usr/bin/env bash
# The dashboard in a real browser while a real federation trains; the screenshots stay in target/ci/.
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
for _ in $(seq 100); do
    curl -sf -o /dev/null "http://127.0.0.1:$PORT/readyz" && break
    sleep 0.1
done
"$VENV/bin/python" .ci/dashboard.py "http://127.0.0.1:$PORT/" "$OUT"
# The same federation's metrics, as Prometheus' own linter sees them.
for port in "$PORT" $((PORT + 1)); do
    curl -sf "http://127.0.0.1:$port/metrics" | promtool check metrics
    echo "metrics: promtool finds nothing wrong on port $port"
done
