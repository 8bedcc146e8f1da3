"""Checks that the API server stores manifests as they are written: a second `kubectl apply` then finds nothing to change
and says `unchanged`, and server-side apply takes them. The rules come from the schemas that kubernetes-validate brings
and from what the server does to an object:

- it sets defaults: inside of a list that is replaced as a whole, a default that we leave out is a difference;
- it drops empty values of optional fields (`egress: []`), which are a difference then, and writes quantities anew
  (`1024Mi` becomes `1Gi`, `0.5` becomes `500m`, a number becomes a string);
- kubectl sends a map with the patch strategy `replace` every time, changed or not;
- server-side apply finds an element of a list by its keys (`port` and `protocol`), so each element must have them.

    canonical.py FILE...
"""
import importlib.util
import json
import math
import pathlib
import re
import sys
from fractions import Fraction

import yaml

VERSION = "1.34.0"
CORE = "io.k8s.api.core.v1."
QUANTITY = "io.k8s.apimachinery.pkg.api.resource.Quantity"
# Defaults that the server sets in elements of lists.
DEFAULTED = {
    "io.k8s.api.networking.v1.NetworkPolicyPort": ["protocol"],
    CORE + "ServicePort": ["protocol"],
    CORE + "ContainerPort": ["protocol"],
}
# Empty, false or zero values that the server keeps: in its Go types these fields are pointers, or not `omitempty`.
KEPT = {"emptyDir", "podSelector", "namespaceSelector", "selector", "storageClassName/PersistentVolumeClaimSpec",
        "automountServiceAccountToken", "enableServiceLinks", "allowPrivilegeEscalation", "runAsNonRoot",
        "readOnlyRootFilesystem", "privileged", "optional", "runAsUser", "runAsGroup", "fsGroup", "replicas",
        "maxUnavailable", "maxSurge", "terminationGracePeriodSeconds"}
# Maps of the user's own strings, empty or not.
FREE = {"data", "stringData", "labels", "annotations", "matchLabels", "nodeSelector"}

BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
DECIMAL = {"n": -3, "u": -2, "m": -1, "": 0, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def canonical(quantity):
    """A quantity as the server writes it: the largest suffix that leaves no fraction."""
    parts = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?)([KMGTPE]i|[numkMGTPE]?)", quantity)
    if not parts:
        return None
    number, suffix = Fraction(parts[1]), parts[2]
    if suffix in BINARY:
        value, base, exponent, names = math.ceil(number * 1024 ** BINARY[suffix]), 1024, 0, BINARY
        # Below 1024 there is no binary suffix to use.
        if value < 1024:
            base, names = 1000, DECIMAL
    else:
        value, base, exponent, names = math.ceil(number * 1000 ** (DECIMAL[suffix] + 3)), 1000, -3, DECIMAL
    while value and value % base == 0 and exponent < 6:
        value, exponent = value // base, exponent + 1
    if value == 0:
        return "0"
    return str(value) + next((name for name, e in names.items() if e == exponent), "")


def schemas():
    package = pathlib.Path(importlib.util.find_spec("kubernetes_validate").origin).parent
    return json.loads((package / "kubernetes-json-schema" / f"v{VERSION}-local" / "_definitions.json").read_text())["$defs"]


TYPES = schemas()
KINDS = {(kind["group"], kind["version"], kind["kind"]): name for name, schema in TYPES.items()
         for kind in schema.get("x-kubernetes-group-version-kind", [])}


def type_of(document):
    group, _, version = document["apiVersion"].rpartition("/")
    return KINDS.get((group, version, document["kind"]))


def problems(value, name, path):
    """What the server would change, or refuse, in a value of the type `name` (None: without a schema)."""
    schema = TYPES.get(name, {})
    for field, inner in value.items():
        where = f"{path}.{field}"
        declared = schema.get("properties", {}).get(field, {})
        if field in FREE:
            yield from (f"{where}.{key}: not a string" for key, text in inner.items() if not isinstance(text, str))
            continue
        short = (name or "").rsplit(".", 1)[-1]
        empty = inner is None or inner in ("", [], {}) or inner is False or inner == 0 and inner is not False
        if inner is None or empty and not KEPT & {field, f"{field}/{short}"}:
            yield f"{where}: {inner!r} is dropped by the server; leave the field out"
        if isinstance(inner, dict) and declared.get("x-kubernetes-patch-strategy") == "replace":
            yield f"{where}: patch strategy replace, each `kubectl apply` reports a change"
        yield from field_problems(inner, declared, where)


def field_problems(value, declared, path):
    name = declared.get("$ref", "").rsplit("/", 1)[-1] or None
    if name == QUANTITY:
        if not isinstance(value, str) or canonical(value) != value:
            yield f"{path}: the quantity {value!r} is written {canonical(str(value))!r} by the server"
    elif isinstance(value, dict):
        values = declared.get("additionalProperties")
        if values:
            for key, inner in value.items():
                yield from field_problems(inner, values, f"{path}.{key}")
        else:
            yield from problems(value, name, path)
    elif isinstance(value, list):
        item = declared.get("items", {})
        name = item.get("$ref", "").rsplit("/", 1)[-1]
        keys = declared.get("x-kubernetes-list-map-keys", [])
        seen = set()
        for index, inner in enumerate(value):
            where = f"{path}[{index}]"
            if isinstance(inner, dict):
                needed = dict.fromkeys(keys + DEFAULTED.get(name, []))
                yield from (f"{where}: {key} is missing" for key in needed if key not in inner)
                own = tuple(str(inner.get(key)) for key in keys)
                if keys and own in seen:
                    yield f"{where}: a second element with {', '.join(own)}"
                seen.add(own)
            yield from field_problems(inner, item, where)


class Strict(yaml.SafeLoader):
    """Refuses a key that is there twice: the API server does, with --validate=strict, and else takes the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"twice in one map: {', '.join(map(str, twice))}", node.start_mark)
        return super().construct_mapping(node, deep)


def check(text, source):
    found = []
    try:
        documents = [document for document in yaml.load_all(text, Strict) if document]
    except yaml.constructor.ConstructorError as error:
        return [f"{source}: {error.problem}, line {error.problem_mark.line + 1}"]
    for document in documents:
        if document["kind"] in ("Kustomization", "Component"):
            continue
        name = type_of(document)
        known = "." not in document["apiVersion"] or document["apiVersion"].split("/")[0].endswith(".k8s.io")
        if known and not name:
            found.append(f"{source}: no schema for {document['apiVersion']} {document['kind']}")
        found += [f"{source}: {problem}" for problem in problems(document, name, document["kind"])]
    return found


# Each must be found: the checks of this file, checked.
BAD = {
    "protocol": """{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {ports: [{port: 1, targetPort: 1}]}}""",
    "protocol ": """{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a},
                    spec: {podSelector: {}, ingress: [{ports: [{port: 1}]}]}}""",
    "protocol  ": """{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, ports: [{containerPort: 1}]}]}}""",
    "egress": """{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {podSelector: {}, egress: []}}""",
    "storageClassName": """{apiVersion: v1, kind: PersistentVolume, metadata: {name: a}, spec: {storageClassName: ""}}""",
    "'1Gi'": """{apiVersion: v1, kind: PersistentVolume, metadata: {name: a}, spec: {capacity: {storage: 1024Mi}}}""",
    "'500m'": """{apiVersion: v1, kind: Pod, metadata: {name: a},
                 spec: {containers: [{name: a, resources: {requests: {cpu: "0.5"}}}]}}""",
    "'2'": """{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, resources: {limits: {cpu: 2}}}]}}""",
    "hostNetwork": """{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {hostNetwork: false}}""",
    "patch strategy": """{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: a},
                          spec: {maxUnavailable: 1, selector: {matchLabels: {a: b}}}}""",
    "second element": """{apiVersion: v1, kind: Pod, metadata: {name: a},
                         spec: {containers: [{name: a, env: [{name: B, value: c}, {name: B, value: d}]}]}}""",
    "not a string": """{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {A: 1}}""",
    "twice in one map: A": """{apiVersion: v1, kind: ConfigMap, metadata: {name: a}, data: {A: b, A: c}}""",
}
for told, bad in BAD.items():
    assert any(told.strip() in line for line in check(bad, "bad")), f"not found: {told}"
for written, stored in {"1Gi": "1Gi", "1.5Gi": "1536Mi", "0.5Ki": "512", "1000m": "1", "0.1": "100m", "2000M": "2G", "0": "0"}.items():
    assert canonical(written) == stored, (written, canonical(written))

files = sys.argv[1:]
lines = [line for file in files for line in check(pathlib.Path(file).read_text(), file)]
if lines:
    sys.exit("\n".join(lines))
print(f"manifests: the API server stores {len(files)} files as they are written")
