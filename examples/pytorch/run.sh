#!/bin/sh
# Three PyTorch clients for ten rounds; the master is killed with SIGKILL in between and started again. Needs the master,
# fl_client and torch:
#   cargo build --release && pip install ./python torch && examples/pytorch/run.sh
set -eu
cd "$(dirname "$0")/../.."
bin=${BIN:-target/release}
port=${PORT:-5080}
python=${PYTHON:-python3}
url=http://127.0.0.1:$port
dir=$(mktemp -d)
master= clients=
trap 'kill $master $clients 2>/dev/null || true; rm -rf "$dir"' EXIT

start_master() {
    QUANTIZER=MSQ_v2 BITS=4 EVALUATE_EVERY=1 "$bin/fl-master" --model "safetensors:$dir/first.safetensors" \
        --bind "127.0.0.1:$port" --state-dir "$dir/state" --agg-min-clients 3 --rounds "${ROUNDS:-10}" \
        >>"$dir/master.log" 2>&1 &
    master=$!
}

"$python" examples/pytorch/client.py init "$dir/first.safetensors"
start_master
for part in 0 1 2; do
    GIVE_UP_S=120 "$python" examples/pytorch/client.py train "$url" --part $part --parts 3 >"$dir/client$part" 2>&1 &
    clients="$clients $!"
done
until grep -q "round 4" "$dir/client0"; do
    kill -0 $master || { cat "$dir/master.log"; exit 1; }
    sleep 0.2
done
kill -9 $master
wait $master || true
echo "the master was killed"
start_master
for client in $clients; do
    wait "$client" || { cat "$dir"/client* "$dir/master.log"; exit 1; }
done
clients=
"$python" - "$url" <<'PY'
import json, sys
import fl_client

history = fl_client.history(sys.argv[1])
for record in history:
    keep = ("round", "participants", "train_loss", "bits_per_param")
    seen = {name: round(record[name], 4) for name in keep}
    accuracy = record["evaluation"]["metrics"]["accuracy"]
    seen["clients"] = {name: round(accuracy[name], 4) for name in ("mean", "p10", "median", "worst")}
    print(json.dumps(seen))
rounds = [record["round"] for record in history]
assert rounds == list(range(1, len(rounds) + 1)), rounds
assert history[-1]["train_loss"] < history[0]["train_loss"] / 2
PY
