#!/bin/sh
# Three scikit-learn clients, each with a third of the digits. Needs the master, fl_client and scikit-learn:
#   cargo build --release && pip install ./python scikit-learn && examples/sklearn/run.sh
set -eu
cd "$(dirname "$0")/../.."
bin=${BIN:-target/release}
port=${PORT:-5079}
python=${PYTHON:-python3}
dir=$(mktemp -d)
master= clients=
trap 'kill $master $clients 2>/dev/null || true; rm -rf "$dir"' EXIT

"$python" examples/sklearn/client.py init "$dir/first.safetensors"
EVALUATE_EVERY=1 "$bin/fl-master" --model "safetensors:$dir/first.safetensors" --bind "127.0.0.1:$port" \
    --state-dir "$dir/state" --agg-min-clients 3 --rounds "${ROUNDS:-10}" >"$dir/master.log" 2>&1 &
master=$!
for part in 0 1 2; do
    GIVE_UP_S=60 "$python" examples/sklearn/client.py train "http://127.0.0.1:$port" --part $part --parts 3 \
        >"$dir/client$part" 2>&1 &
    clients="$clients $!"
done
for client in $clients; do
    wait "$client" || { cat "$dir"/client* "$dir/master.log"; exit 1; }
done
clients=
cat "$dir"/client*
"$python" - "http://127.0.0.1:$port" <<'PY'
import sys
import fl_client

record = fl_client.history(sys.argv[1])[-1]
accuracy = record["evaluation"]["metrics"]["accuracy"]
print(f"{record['round']} rounds: mean accuracy {accuracy['mean']:.4f}, worst {accuracy['worst']:.4f} of {accuracy['worst_client']}")
assert accuracy["clients"] == 3 and accuracy["mean"] >= 0.9
PY
