#!/usr/bin/env bash
# Builds both images and runs a federation of containers: a master and three workers, then the same with one worker cut
# off. No registry is used: the base image of the build stage is a stand-in made here from Debian packages and this
# machine's Rust. The Dockerfiles are tested unchanged, and the images that they build.
#   FL_KEEP=1 .ci/images.sh    leaves the daemon's data folder for the next run
set -euo pipefail
cd "$(dirname "$0")/.."

OUT=$PWD/target/ci
WORK=${FL_IMAGES_DIR:-/tmp/fl-images}
# The engine for any network made them 4 MB larger: every kernel is there three times, for three kinds of vectors.
MAX_MB=24
MAX_READY_MS=500
export DOCKER_HOST=unix://$WORK/docker.sock
# The classic builder: it looks for base images on this machine only when they are here.
export DOCKER_BUILDKIT=0
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT" "$WORK"

say() { printf '%s\n' "images: $*"; }
fail() { say "FAILED: $*" >&2; exit 1; }

install_tools() {
    local packages=(docker.io iptables mmdebstrap)
    dpkg -s "${packages[@]}" >/dev/null 2>&1 && return
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null
}

start_daemon() {
    dockerd --data-root "$WORK/data" --exec-root "$WORK/exec" --pidfile "$WORK/docker.pid" --host "$DOCKER_HOST" \
        >"$OUT/dockerd.log" 2>&1 &
    DAEMON=$!
    for _ in $(seq 100); do
        docker info >/dev/null 2>&1 && return
        kill -0 "$DAEMON" 2>/dev/null || break
        sleep 0.2
    done
    tail -n 20 "$OUT/dockerd.log" >&2
    fail "the Docker daemon did not start"
}

cleanup() {
    local code=$?
    set +e
    if [ -n "${DAEMON:-}" ]; then
        local containers
        containers=$(docker ps -aq)
        [ -z "$containers" ] || docker rm -fv $containers >/dev/null 2>&1
        docker network rm fl-net >/dev/null 2>&1
        kill "$DAEMON" && wait "$DAEMON"
    fi
    # dockerd leaves the mount of its network namespace behind; a failure to clean up does not fail the step.
    umount "$WORK/exec/netns/default" 2>/dev/null || true
    [ -n "${FL_KEEP:-}" ] || rm -rf "$WORK" || true
    exit "$code"
}

# Debian's packages, unpacked, plus this machine's toolchain, certificates and downloaded crates, under the name that
# the Dockerfiles ask for.
make_stand_in() {
    if docker image inspect rust:1.95-bookworm >/dev/null 2>&1; then return; fi
    local root=$WORK/root sysroot cargo_home
    sysroot=$(rustc --print sysroot)
    cargo_home=${CARGO_HOME:-$HOME/.cargo}
    rm -rf "$root"
    mmdebstrap --quiet --variant=extract --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
        --include=bash,dash,coreutils,sed,grep,gcc,libc6-dev bookworm "$root" 2>"$OUT/mmdebstrap.log" \
        || { tail -n 5 "$OUT/mmdebstrap.log" >&2; fail "mmdebstrap could not unpack Debian's packages"; }
    ln -sf gcc "$root/usr/bin/cc"
    mkdir -p "$root/usr/local/bin" "$root/usr/local/lib" "$root/usr/local/cargo/registry" "$root/etc/ssl/certs" "$root/tmp"
    cp -a "$sysroot"/bin/{cargo,rustc} "$root/usr/local/bin/"
    cp -a "$sysroot"/lib/. "$root/usr/local/lib/"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
    for file in config.toml config; do
        [ ! -e "$cargo_home/$file" ] || cp "$cargo_home/$file" "$root/usr/local/cargo/"
    done
    for folder in index cache; do
        [ ! -d "$cargo_home/registry/$folder" ] || cp -a "$cargo_home/registry/$folder" "$root/usr/local/cargo/registry/"
    done
    tar -C "$root" -c . | docker import \
        --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin CARGO_HOME=/usr/local/cargo SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt' \
        - rust:1.95-bookworm >/dev/null
    rm -rf "$root"
}

build() {
    local role started
    for role in master worker; do
        started=$SECONDS
        # The host's network, since the stand-in fetches missing crates the way this machine does.
        docker build --network host -f "Dockerfile.$role" -t "fl-$role:local" . >"$OUT/build-$role.log" 2>&1 \
            || { tail -n 30 "$OUT/build-$role.log" >&2; fail "fl-$role:local did not build"; }
        say "fl-$role:local built in $((SECONDS - started)) s"
    done
    grep -q 'Using cache' "$OUT/build-worker.log" || fail "the worker's build stage was not taken from the master's"
}

check_images() {
    local role bytes user
    for role in master worker; do
        bytes=$(docker image inspect -f '{{.Size}}' "fl-$role:local")
        user=$(docker image inspect -f '{{.Config.User}}' "fl-$role:local")
        say "fl-$role:local is $(awk -v b="$bytes" 'BEGIN{printf "%.1f", b/1e6}') MB, user $user"
        [ "$bytes" -le $((MAX_MB * 1000000)) ] || fail "fl-$role:local is above $MAX_MB MB"
        [ "$user" = 65532:65532 ] || fail "fl-$role:local does not run as a numeric user"
        docker run --rm "fl-$role:local" --version
    done
}

SAFE=(--read-only --cap-drop ALL --security-opt no-new-privileges --network fl-net)

address_of() { echo "http://$(docker inspect -f '{{(index .NetworkSettings.Networks "fl-net").IPAddress}}' "$1"):5000"; }

# Milliseconds from the start of the container's process to its first answer on /readyz.
time_to_ready() {
    local address begun born
    address=$(address_of "$1")
    begun=$SECONDS
    until curl -sf -o /dev/null "$address/readyz"; do
        [ $((SECONDS - begun)) -lt 20 ] || { docker logs "$1" >&2; fail "$1 is not ready after 20 s"; }
        sleep 0.01
    done
    born=$(date -d "$(docker inspect -f '{{.State.StartedAt}}' "$1")" +%s%N)
    echo $((($(date +%s%N) - born) / 1000000))
}

# The fastest of three, since the machine may be busy.
check_start() {
    local times=() best
    for _ in 1 2 3; do
        docker run -d --name probe "${SAFE[@]}" fl-master:local >/dev/null
        times+=("$(time_to_ready probe)")
        docker rm -fv probe >/dev/null
    done
    best=$(printf '%s\n' "${times[@]}" | sort -n | head -n 1)
    say "start to /readyz: ${times[*]} ms"
    [ "$best" -le "$MAX_READY_MS" ] || fail "the master took more than $MAX_READY_MS ms from start to ready"
}

# A worker that cannot write to its state volume exits with code 74.
start_federation() {
    local i
    docker run -d --name master --network-alias master-service "${SAFE[@]}" fl-master:local >/dev/null
    ADDRESS=$(address_of master)
    for i in 1 2 3; do
        docker run -d --name "worker$i" "${SAFE[@]}" -e WORKER_ID="edge$i" -e MEM_MB=0 \
            -e PARTITION_ID=$((i - 1)) -e NUM_PARTITIONS=3 -v /state -e WORKER_STATE_DIR=/state fl-worker:local >/dev/null
    done
}

# Reads one value of /status, as in `status '["global_round"]'`.
status() { curl -sf --max-time 10 "$ADDRESS/status" | "$PYTHON" -c "import json,sys; print(json.load(sys.stdin)$1)"; }

wait_for() { # what, seconds, command
    local what=$1 limit=$2 begun=$SECONDS
    shift 2
    until "$@"; do
        [ $((SECONDS - begun)) -lt "$limit" ] || { docker logs --tail 5 worker1 >&2; fail "$what did not happen in $limit s"; }
        sleep 0.3
    done
}

round_reached() { [ "$(status '["global_round"]')" -ge "$1" ]; }
accuracy_reached() { [ "$(status '["last_evaluation"]["accuracy"] >= 0.90')" = True ]; }
healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$1")" = healthy ]; }

check_federation() {
    local before i
    wait_for "round 5" 120 round_reached 5
    wait_for "an accuracy of 0.90" 120 accuracy_reached
    say "round $(status '["global_round"]'), accuracy $(status '["last_evaluation"]["accuracy"]')"
    wait_for "a healthy master" 60 healthy master
    wait_for "a healthy worker" 60 healthy worker1

    curl -sf -o "$OUT/container-global.safetensors" "$ADDRESS/global"
    "$PYTHON" - "$OUT/container-global.safetensors" <<'PY'
import json, struct, sys
raw = open(sys.argv[1], "rb").read()
header = json.loads(raw[8:8 + struct.unpack("<Q", raw[:8])[0]])
meta = header.pop("__metadata__")
print("images: /global is round", meta["round"], "with tensors", ", ".join(sorted(header)))
assert meta["format"] == "pt" and header
PY

    docker network disconnect fl-net worker3
    before=$(status '["global_round"]')
    wait_for "progress with a worker cut off" 60 round_reached $((before + 5))
    say "worker3 cut off at round $before, the others reached $(status '["global_round"]')"
    docker network connect fl-net worker3
    before=$(status '["workers"]["edge3"]["round"]')
    wait_for "the return of worker3" 90 came_back "$before"
    say "worker3 is back"

    LAST_SEEN=$(status '["global_round"]')
    for i in worker1 worker2 worker3 master; do
        docker stop -t 20 "$i" >/dev/null
        [ "$(docker inspect -f '{{.State.ExitCode}}' "$i")" = 0 ] \
            || { docker logs --tail 20 "$i" >&2; fail "$i stopped with exit code $(docker inspect -f '{{.State.ExitCode}}' "$i")"; }
    done
    say "all four stopped with exit code 0"
}

came_back() { [ "$(status '["workers"]["edge3"]["round"]')" -gt "$1" ]; }

# A master that restarts on its volume continues its round.
check_restart() {
    local before after
    before=$1
    docker start master >/dev/null
    ADDRESS=$(address_of master)
    wait_for "a restarted master" 20 curl -sf -o /dev/null "$ADDRESS/readyz"
    after=$(status '["global_round"]')
    [ "$after" -ge "$before" ] || fail "the master stopped after round $before and is back at round $after"
    say "the master is back at round $after after a restart, and the last seen before was $before"
    docker stop -t 20 master >/dev/null
}

trap cleanup EXIT
install_tools
start_daemon
make_stand_in
build
check_images
docker network inspect fl-net >/dev/null 2>&1 || docker network create fl-net >/dev/null
check_start
start_federation
check_federation
check_restart "$LAST_SEEN"
say "ok"
