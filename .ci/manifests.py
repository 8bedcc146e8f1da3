"""Checks of the manifests against the binaries that schemas cannot express: settings, ports, labels, images, metrics."""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import yaml

binaries, rules_out, rendered = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3:]


def load(path):
    return [doc for doc in yaml.safe_load_all(pathlib.Path(path).read_text()) if doc]


def pick(docs, kind, name):
    return next(d for d in docs if d["kind"] == kind and d["metadata"]["name"] == name)


def settings(role):
    """Every variable of the binary, from its --help."""
    text = subprocess.run([binaries / f"fl-{role}", "--help"], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"\[env: ([A-Z_0-9]+)[=\]]", text))


def pod_of(docs, role):
    return pick(docs, *WORKLOADS[role])["spec"]["template"]["spec"]


def mounted(pod, path):
    """The volume at a path, without its name."""
    name = next(mount["name"] for mount in pod["containers"][0]["volumeMounts"] if mount["mountPath"] == path)
    return {key: value for key, value in next(v for v in pod["volumes"] if v["name"] == name).items() if key != "name"}


WORKLOADS = {"master": ("Deployment", "master"), "worker": ("DaemonSet", "worker")}
docs = load("manifests/master-deploy.yaml") + load("manifests/worker-daemonset.yaml")
compose = yaml.safe_load(pathlib.Path("docker-compose.yaml").read_text())
PORTS = {"master": 5000, "worker": 9100}
# Variables without a fixed default, of a single pod, and secrets.
UNSET = {"CLIENTS_PER_ROUND", "SERVER_LR", "MAX_CONNECTIONS_PER_IP", "LOCAL_EPOCHS", "LOCAL_STEPS", "BATCH_SIZE", "LR",
         "MU", "BITS", "PARTITION_ID", "NUM_PARTITIONS", "WORKER_ID", "FL_TOKEN", "TLS_CERT", "TLS_KEY", "TLS_CLIENT_CA",
         "QUANTIZER", "DOWN_QUANTIZER", "HOLD_OUT", "LOCAL_TEST"}

for role in WORKLOADS:
    known = settings(role)
    workload = pick(docs, *WORKLOADS[role])
    pod = workload["spec"]["template"]
    container = pod["spec"]["containers"][0]
    config = pick(docs, "ConfigMap", f"{role}-config")["data"]

    assert len(known) > 15, f"fl-{role} --help was not understood"
    used = set(config) | {env["name"] for env in container["env"]}
    assert used <= known, f"{role}: {sorted(used - known)} are no settings of fl-{role}"
    assert known - UNSET <= used, f"{role}: {sorted(known - UNSET - used)} are missing in the ConfigMap"
    assert all(isinstance(value, str) for value in config.values()), "a ConfigMap holds strings"

    # The binary accepts the values in combination.
    with tempfile.TemporaryDirectory() as folder:
        moved = {"STATE_DIR": folder} if "STATE_DIR" in config else {"WORKER_ID": "node-1"}
        ran = subprocess.run([binaries / f"fl-{role}", "--check"], env=config | moved, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr

    labels = {"app": role}
    assert workload["spec"]["selector"]["matchLabels"] == labels == pod["metadata"]["labels"]
    assert container["image"] == f"fl-{role}:local" and container["imagePullPolicy"] == "IfNotPresent"
    assert container["ports"][0]["containerPort"] == PORTS[role]
    address = config["BIND" if role == "master" else "METRICS_ADDR"]
    assert address.endswith(f":{PORTS[role]}"), address
    dockerfile = pathlib.Path(f"Dockerfile.{role}").read_text()
    assert f"EXPOSE {PORTS[role]}\n" in dockerfile and f"-t {container['image']} ." in dockerfile
    grace = pod["spec"]["terminationGracePeriodSeconds"]
    assert grace >= float(config["DRAIN_S"]) + 5, f"{role}: {grace} s do not cover DRAIN_S"
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and security["capabilities"]["drop"] == ["ALL"]
    assert not security["allowPrivilegeEscalation"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"] and pod["spec"]["securityContext"]["runAsUser"] == 65532
    assert "USER 65532:65532\n" in dockerfile

    for name, service in compose["services"].items():
        if name.startswith(role):
            assert service["image"] == container["image"]
            assert set(service["environment"]) <= known, (name, set(service["environment"]) - known)

service = pick(docs, "Service", "master-service")
assert service["spec"]["ports"][0]["port"] == 5000 and service["spec"]["selector"] == {"app": "master"}
worker = pick(docs, "ConfigMap", "worker-config")["data"]
assert worker["MASTER_ADDR"] == "http://master-service:5000"
resources = pick(docs, "DaemonSet", "worker")["spec"]["template"]["spec"]["containers"][0]["resources"]
for what, spare in (("requests", 60), ("limits", 200)):
    size = int(resources[what]["memory"].removesuffix("Mi")) * 1048576 // 1000000
    assert size >= int(worker["MEM_MB"]) + spare, f"{what}: {size} MB do not leave room for MEM_MB"

# A worker is ready once it has reached the master; liveness and start-up do not depend on the master.
probes = pod_of(docs, "worker")["containers"][0]
assert [probes[f"{p}Probe"]["httpGet"]["path"] for p in ("startup", "readiness", "liveness")] == ["/healthz", "/readyz", "/healthz"]
assert mounted(pod_of(docs, "worker"), worker["WORKER_STATE_DIR"]) == {"emptyDir": {}}
assert "--chown=65532:65532 /out/state /state\n" in pathlib.Path("Dockerfile.worker").read_text()

# The overlays: workers that train on a folder of their nodes need a master that mounts it under the same path.
for path in rendered:
    overlay = load(path)
    pods = {role: pod_of(overlay, role) for role in WORKLOADS}
    configs = {role: pick(overlay, "ConfigMap", f"{role}-config")["data"] for role in WORKLOADS}
    assert mounted(pods["master"], "/data") == mounted(pods["worker"], "/data"), f"{path}: data for one role only"
    assert configs["master"]["DATASET"] == configs["worker"]["DATASET"], f"{path}: two data sets"
    if "hostPath" in mounted(pods["master"], "/data"):
        assert configs["master"]["DATA_DIR"] == configs["worker"]["DATA_DIR"] == "/data", f"{path}: DATA_DIR"
    for role in WORKLOADS:
        assert set(configs[role]) == set(pick(docs, "ConfigMap", f"{role}-config")["data"]), f"{path}: other settings"
    for overlaid in pods.values():
        for volume in overlaid["volumes"]:
            assert len(volume) == 2, f"{path}: volume {volume} is of two kinds"

# Every workspace member is in the build context, without which the images cannot be built.
members = re.search(r"^members = \[(.*?)\]", pathlib.Path("Cargo.toml").read_text(), re.M | re.S).group(1)
context = pathlib.Path(".dockerignore").read_text().split()
for member in re.findall(r'"([^"]+)"', members):
    assert f"!{member}" in context, f".dockerignore keeps the workspace member {member} out of the images"

stages = [re.search(r"FROM rust.*?(?=FROM scratch)", pathlib.Path(f"Dockerfile.{r}").read_text(), re.S).group() for r in PORTS]
assert stages[0] == stages[1], "the build stages of the two Dockerfiles differ: the second would be built again"

# The alert rules and the queries of the dashboard as one file for promtool.
rule = load("manifests/monitoring/alerts.yaml")[0]
assert rule["kind"] == "PrometheusRule"
board = json.loads(load("manifests/monitoring/grafana-dashboard.yaml")[0]["data"]["fl.json"])
assert board["panels"]
metrics = "".join(path.read_text() for crate in ("master", "worker") for path in pathlib.Path(crate, "src").rglob("metrics.rs"))
shown = [t["expr"] for p in board["panels"] for t in p.get("targets", [])]
plain = [re.sub(r"\$__rate_interval|\$__interval", "5m", expr) for expr in shown]
spec = {"groups": rule["spec"]["groups"] + [
    {"name": "grafana", "rules": [{"record": f"panel:query{i}", "expr": expr} for i, expr in enumerate(plain)]}]}
rules_out.write_text(yaml.safe_dump(spec))
queries = shown + [r["expr"] for g in rule["spec"]["groups"] for r in g["rules"]]
for name in sorted(set(re.findall(r"\bfl_[a-z_]+", " ".join(queries)))):
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    assert f'"{name}"' in metrics or f'"{base}"' in metrics, f"no program exports the metric {name}"
for monitor in load("manifests/monitoring/monitors.yaml"):
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1" and monitor["spec"]["selector"]["matchLabels"]
print("manifests: settings, ports, labels, images and metrics agree with the binaries")
