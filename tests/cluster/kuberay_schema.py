"""KubeRay's own schema of RayCluster and RayJob, small enough to lie beside the tests, and strict.

``kuberay-v1.6.0.json`` is made from the operator's CRDs (Apache-2.0, github.com/ray-project/kuberay): 2.3 MB of YAML, of which descriptions
and repeated pod templates are left out. ``python -m tests.cluster.kuberay_schema FOLDER`` makes it anew from ``config/crd/bases`` of the Go module
``github.com/ray-project/kuberay/ray-operator``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import yaml

VERSION = "v1.6.0"  # the first minor version whose operator speaks with a Ray that asks for a token is 1.5
PATH = Path(__file__).with_name(f"kuberay-{VERSION}.json")
KINDS = ("RayCluster", "RayJob")
REPEATED_BYTES_MIN = 120  # a smaller schema is shorter than two references to it
#: Of Kubernetes, and no words of JSON Schema; descriptions are most of a CRD's bytes.
LEFT_OUT = {"description", "x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-validations", "format", "default"}


def problems(manifest: dict[str, Any]) -> list[str]:
    """What a server would refuse, a line each; unknown fields too, which it would drop in silence."""
    schema = json.loads(PATH.read_text("utf-8"))
    kind = manifest.get("kind")
    if manifest.get("apiVersion") != "ray.io/v1" or kind not in KINDS:
        return [f"{manifest.get('apiVersion')}/{kind}: no such kind"]
    checker = jsonschema.Draft202012Validator({"$ref": f"#/$defs/{kind}", "$defs": schema["$defs"]})
    return [f"{'/'.join(map(str, e.absolute_path))}: {e.message[:200]}" for e in checker.iter_errors(manifest)]


def strict(schema: Any) -> Any:
    """A CRD's schema as JSON Schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    made = {name: _strict_names(value) if name == "properties" else strict(value) for name, value in schema.items() if name not in LEFT_OUT}
    made.pop("x-kubernetes-preserve-unknown-fields", None)
    if "properties" in made and not open_ended and "additionalProperties" not in made:
        made["additionalProperties"] = False
    return made


def _strict_names(properties: dict[str, Any]) -> dict[str, Any]:
    """Fields may be named as what we leave out."""
    return {name: strict(value) for name, value in properties.items()}


def shared(kinds: dict[str, Any]) -> dict[str, Any]:
    """The same schemas, where each part that occurs repeatedly is said once and referred to."""
    counts: Counter[str] = Counter()

    def count(part: Any) -> None:
        if isinstance(part, dict):
            counts[_text(part)] += 1
        for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            count(each)

    def refer(part: Any, *, is_schema: bool) -> Any:
        if isinstance(part, list):
            return [refer(each, is_schema=is_schema) for each in part]
        if not isinstance(part, dict):
            return part
        text = _text(part)
        made = {name: refer(each, is_schema=not is_schema or name != "properties") for name, each in part.items()}
        if not is_schema or counts[text] < 2 or len(text) < REPEATED_BYTES_MIN:
            return made
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        definitions[name] = made
        return {"$ref": f"#/$defs/{name}"}

    definitions: dict[str, Any] = {}
    count(list(kinds.values()))
    whole = {kind: refer(schema, is_schema=True) for kind, schema in kinds.items()}
    return {"$defs": {**whole, **dict(sorted(definitions.items()))}}


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True)


def made_from(folder: Path) -> dict[str, Any]:
    """From the CRDs there; the version ``v1`` of each of ``KINDS``."""
    kinds = {}
    for path in sorted(folder.glob("ray.io_*.yaml")):
        crd = yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        kind = crd["spec"]["names"]["kind"]
        if kind in KINDS:
            (version,) = (each for each in crd["spec"]["versions"] if each["name"] == "v1")
            kinds[kind] = strict(version["schema"]["openAPIV3Schema"])
            kinds[kind]["properties"]["metadata"] = {"type": "object"}
    return shared(kinds)


def main() -> None:
    """Write the file beside this one."""
    made = made_from(Path(sys.argv[1]))
    about = f"RayCluster and RayJob of KubeRay {VERSION} (Apache-2.0, github.com/ray-project/kuberay), shortened by tests/cluster/kuberay_schema.py"
    PATH.write_text(json.dumps({"$comment": about, **made}, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
