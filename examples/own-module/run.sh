#!/bin/sh
# A federation of a master and two workers that train the module of src/main.rs on the digits. Needs the programs:
#   cargo build --release -p fl-master -p own-module
set -eu
cd "$(dirname "$0")/../.."
bin=${BIN:-target/release}
port=${PORT:-5077}
dir=$(mktemp -d)
master= workers=
trap 'kill $master $workers 2>/dev/null || true; rm -rf "$dir"' EXIT

"$bin/own-module" init "$dir/first.safetensors"
"$bin/fl-master" --model "safetensors:$dir/first.safetensors" --bind "127.0.0.1:$port" --state-dir "$dir/state" \
    --agg-min-clients 2 --rounds "${ROUNDS:-40}" >"$dir/master.log" 2>&1 &
master=$!
for id in 0 1; do
    "$bin/own-module" --master-addr "http://127.0.0.1:$port" --worker-id "own$id" --partition-id $id --num-partitions 2 \
        --give-up-s 60 --mem-mb 0 --lr 0.2 --local-steps 20 >"$dir/worker$id.log" 2>&1 &
    workers="$workers $!"
done
for worker in $workers; do
    wait "$worker" || { cat "$dir"/*.log; exit 1; }
done
curl -sSf "http://127.0.0.1:$port/global" -o "$dir/global.safetensors"
"$bin/own-module" eval "$dir/first.safetensors"
"$bin/own-module" eval "$dir/global.safetensors"
