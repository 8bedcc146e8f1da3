#!/usr/bin/env bash
# Every manifest against the schemas of the oldest and the newest Kubernetes that we support, strictly, and against the
# form in which the API server stores it; then what the schemas cannot see: the settings, ports, labels and images of the
# manifests against the binaries' --help.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=$PWD/target/ci
VENV=$OUT/manifests-venv
BIN=${FL_BIN:-target/release}
mkdir -p "$OUT"

[ -x "$VENV/bin/kubernetes-validate" ] || {
    python3 -m venv "$VENV"
    "$VENV/bin/pip" install -q --disable-pip-version-check kubernetes-validate pyyaml
}
if ! command -v promtool >/dev/null; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus >/dev/null
fi

files=(manifests/*.yaml manifests/overlays/*/state.yaml manifests/monitoring/grafana-dashboard.yaml)
# The overlays as they are applied, where a kubectl with a current kustomize is at hand; then all components together,
# the way docs/operators.md puts a deployment of one's own together.
rendered=()
rm -rf "$OUT/overlays"
mkdir -p "$OUT/overlays/own"
if kubectl version --client 2>/dev/null | grep -q 'Kustomize Version: v[45]'; then
    {
        echo 'resources: [../../../../manifests/overlays/single-node]'
        echo 'components:'
        for component in manifests/components/*/; do echo "  - ../../../../$component"; done
    } >"$OUT/overlays/own/kustomization.yaml"
    for overlay in manifests/overlays/*/ "$OUT/overlays/own/"; do
        file=$OUT/overlays/$(basename "$overlay").yaml
        kubectl kustomize "$overlay" >"$file"
        rendered+=("$file")
    done
    files+=("${rendered[@]}")
else
    echo "manifests: no current kubectl here, the overlays are not rendered"
fi
for version in 1.25 1.34; do
    "$VENV/bin/kubernetes-validate" -k "$version" --strict --quiet "${files[@]}"
    echo "manifests: ${#files[@]} files are valid on Kubernetes $version"
done
"$VENV/bin/python" .ci/canonical.py "${files[@]}" manifests/monitoring/alerts.yaml manifests/monitoring/monitors.yaml

"$VENV/bin/python" .ci/settings.py --check "$BIN"
"$VENV/bin/python" .ci/manifests.py "$BIN" "$OUT/rules.yaml" "${rendered[@]}"
promtool check rules "$OUT/rules.yaml"
