#!/bin/sh
# A Flower client and a Rust worker in the same rounds, each with half of the digits. Needs the programs and fl_client:
#   cargo build --release && pip install ./python && examples/flower/run.sh
set -eu
cd "$(dirname "$0")/../.."
bin=${BIN:-target/release}
port=${PORT:-5078}
python=${PYTHON:-python3}
dir=$(mktemp -d)
master= worker=
trap 'kill $master $worker 2>/dev/null || true; rm -rf "$dir"' EXIT

"$bin/fl-master" --model softmax --bind "127.0.0.1:$port" --state-dir "$dir/state" --agg-min-clients 2 \
    --rounds "${ROUNDS:-30}" --lr 0.1 --local-steps 20 >"$dir/master.log" 2>&1 &
master=$!
"$bin/fl-worker" --master-addr "http://127.0.0.1:$port" --worker-id rust --partition-id 1 --num-partitions 2 --mem-mb 0 \
    --give-up-s 60 >"$dir/worker.log" 2>&1 &
worker=$!
GIVE_UP_S=60 "$python" examples/flower/client.py "http://127.0.0.1:$port" --part 0 --parts 2 >"$dir/result" || {
    cat "$dir"/*.log
    exit 1
}
cat "$dir/result"
wait "$worker"
worker=
accuracy=$(sed -n 's/.*accuracy //p' "$dir/result")
"$python" -c "import sys; sys.exit(not $accuracy >= ${EXPECT:-0.93})"
