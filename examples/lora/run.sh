#!/bin/sh
# Three clients fine-tune the adapters of a small transformer. Needs the master, fl_client and torch:
#   cargo build --release && pip install ./python torch && examples/lora/run.sh
set -eu
cd "$(dirname "$0")/../.."
bin=${BIN:-target/release}
port=${PORT:-5081}
python=${PYTHON:-python3}
url=http://127.0.0.1:$port
dir=$(mktemp -d)
master= clients=
trap 'kill $master $clients 2>/dev/null || true; rm -rf "$dir"' EXIT

"$python" examples/lora/client.py init "$dir"
EVALUATE_EVERY=1 "$bin/fl-master" --model "safetensors:$dir/adapters.safetensors" --bind "127.0.0.1:$port" \
    --state-dir "$dir/state" --agg-min-clients 3 --rounds "${ROUNDS:-10}" >"$dir/master.log" 2>&1 &
master=$!
for part in 0 1 2; do
    GIVE_UP_S=120 "$python" examples/lora/client.py train "$url" "$dir" --part $part --parts 3 >"$dir/client$part" 2>&1 &
    clients="$clients $!"
done
for client in $clients; do
    wait "$client" || { cat "$dir"/client* "$dir/master.log"; exit 1; }
done
clients=
cat "$dir/client0"
"$python" - "$url" <<'PY'
import sys
import fl_client

history = fl_client.history(sys.argv[1])
first, last = history[0], history[-1]
print(f"{last['round']} rounds: train loss {first['train_loss']:.3f} -> {last['train_loss']:.3f}, {last['bytes_up']} bytes a round")
assert last["train_loss"] < 0.9 * first["train_loss"]
PY
