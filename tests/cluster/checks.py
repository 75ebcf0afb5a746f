"""What is wrong with a cluster's yaml, before it costs anything: by Ray's own schema, and what Ray takes without a word.

python -m tests.cluster.checks cluster.yaml deploy/cluster.local.yaml    # a line for each problem; status 1 where there is one
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

#: Ray ignores any other key, so a misspelled one changes nothing and nobody hears of it.
PROVIDER_KEYS = {
    "aws": {
        *("type", "region", "availability_zone", "cache_stopped_nodes", "security_group", "key_pair", "cloudwatch"),
        *("use_internal_ips", "use_external_head_ip"),
    },
    "local": {"type", "head_ip", "worker_ips", "external_head_ip"},
}
PROVIDER_NEEDS = {"aws": {"region", "availability_zone"}, "local": {"head_ip", "worker_ips"}}
COMMANDS = (
    "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
)  # fmt: skip
ENVIRONMENT = ". ~/ray.env; "
NEEDED_MOUNTS = ("~/.ray/auth_token", "~/ray.env")
PLACEHOLDER = re.compile(r"<[a-zA-Z][^<>]*>")
SECRETS = re.compile(r"RAY_AUTH_TOKEN=|AWS_SECRET|AWS_SESSION_TOKEN|password|passwd|secret=|[^A-Za-z0-9][0-9a-fA-F]{32,}|[A-Za-z0-9+/]{40,}=*", re.IGNORECASE)
LISTENING = re.compile(r"--(?:dashboard-host|ray-client-server-host)[= ](\S+)")
RAYS_OWN = {"SubnetIds"}  # Ray chooses one of them for each machine


def problems(path: Path, root: Path) -> list[str]:
    """A line each. ``root``: the folder in which `ray up` runs, to which files to copy are relative."""
    cluster = yaml.safe_load(path.read_text("utf-8"))
    found = [*_by_ray(cluster)]
    if found:
        return found  # of a shape that nobody else need understand
    for check in (_provider, _types, _commands, _mounts, _placeholders):
        found += check(cluster, root)
    return found


def _by_ray(cluster: dict[str, Any]) -> Iterator[str]:
    """What `ray up` itself refuses. The functions are private: the lock fixes their version."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(cluster)))
    except Exception as error:  # noqa: BLE001 - jsonschema's, click's and plain ones
        yield f"Ray refuses it: {str(error).splitlines()[0]}"


def _provider(cluster: dict[str, Any], root: Path) -> Iterator[str]:
    provider = cluster["provider"]
    kind = provider["type"]
    if kind not in PROVIDER_KEYS:
        yield f"provider.type: {kind} is none of {', '.join(PROVIDER_KEYS)}"
        return
    for key in sorted(provider.keys() - PROVIDER_KEYS[kind]):
        yield f"provider.{key}: Ray knows no such key, or no secret belongs here"
    for key in sorted(PROVIDER_NEEDS[kind] - provider.keys()):
        yield f"provider.{key}: missing"
    if kind == "local":
        addresses = [provider.get("head_ip"), *provider.get("worker_ips", [])]
        if len(set(addresses)) != len(addresses):
            yield "provider: an address is given twice"


def _types(cluster: dict[str, Any], root: Path) -> Iterator[str]:
    if cluster["provider"]["type"] == "local":
        return
    types = cluster.get("available_node_types", {})
    for name, each in types.items():
        low, high = each.get("min_workers", 0), each.get("max_workers", cluster.get("max_workers", 0))
        if low > high:
            yield f"{name}: min_workers {low} exceeds max_workers {high}"
        if high > cluster.get("max_workers", high):
            yield f"{name}: max_workers {high} exceeds that of the cluster, {cluster['max_workers']}"
        if name not in each.get("resources", {}):
            yield f"{name}: offers no resource of its name, so no actor finds it"
        spot = each["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        if spot and name != "fleet":
            yield f"{name}: spot machines are for the fleet alone"
        yield from (f"{name}.node_config: {line}" for line in _by_aws(each["node_config"]))
    if types.get(cluster.get("head_node_type"), {}).get("resources", {}).get("CPU") != 0:
        yield "the head offers CPU: tasks of others would starve what keeps the cluster together"


def _by_aws(node_config: dict[str, Any]) -> list[str]:
    """By the service's own model of RunInstances, which boto3 has; no network."""
    from botocore.validate import ParamValidator

    asked = {name: value for name, value in node_config.items() if name not in RAYS_OWN}
    report: str = ParamValidator().validate({**asked, "MinCount": 1, "MaxCount": 1}, _run_instances()).generate_report()
    return report.splitlines()


@cache
def _run_instances() -> Any:
    """The model is 2 MB of JSON: half a second."""
    from botocore.session import get_session

    return get_session().get_service_model("ec2").operation_model("RunInstances").input_shape


def _commands(cluster: dict[str, Any], root: Path) -> Iterator[str]:
    for kind in COMMANDS:
        for command in cluster.get(kind, []):
            if SECRETS.search(command):
                yield f"{kind}: a secret? Ray's log shows every command: {command[:40]}..."
            if "start_ray" in kind and not command.startswith(ENVIRONMENT):
                yield f"{kind}: does not begin with '{ENVIRONMENT.strip()}': {command[:60]}"
            for host in LISTENING.findall(command):
                if host != "127.0.0.1":
                    yield f"{kind}: the dashboard on {host} is open to others than this machine"
    if cluster["provider"]["type"] == "aws" and "head_setup_commands" not in cluster:
        yield "head_setup_commands: without it Ray runs the system's pip, which Ubuntu refuses"
    starts = [command for command in cluster.get("head_start_ray_commands", []) if "ray start --head" in command]
    if len(starts) != 1 or "--dashboard-host=127.0.0.1" not in starts[0]:
        yield "head_start_ray_commands: one 'ray start --head' with --dashboard-host=127.0.0.1 is needed"
    if cluster["provider"]["type"] == "local" and not all("RAY_enable_autoscaler_v2=0" in command for command in starts):
        yield "head_start_ray_commands: without RAY_enable_autoscaler_v2=0 no worker of provider 'local' ever starts"


def _mounts(cluster: dict[str, Any], root: Path) -> Iterator[str]:
    mounts = cluster.get("file_mounts", {})
    for there in NEEDED_MOUNTS:
        if there not in mounts:
            yield f"file_mounts: {there} is missing"
    for there, here in mounts.items():
        path = root / Path(here).expanduser()
        if not path.exists():
            yield f"file_mounts: {there}: there is no {here}"
        elif "token" in there and path.stat().st_mode & 0o077:
            yield f"file_mounts: {there}: others may read {here}: chmod 600"


def _placeholders(cluster: dict[str, Any], root: Path) -> Iterator[str]:
    def strings(part: Any, name: str) -> Iterator[tuple[str, str]]:
        if isinstance(part, str):
            yield name, part
        for key, each in part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ():
            yield from strings(each, f"{name}.{key}" if name else str(key))

    for name, text in strings(cluster, ""):
        if PLACEHOLDER.search(text):
            yield f"{name}: still says {text}"


def main() -> int:
    """Print what is wrong; status 1 where anything is."""
    found = [f"{path}: {line}" for path in sys.argv[1:] for line in problems(Path(path), Path.cwd())]
    sys.stdout.writelines(f"{line}\n" for line in found)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
