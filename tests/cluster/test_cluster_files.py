"""cluster.yaml and what lies in deploy/: taken by those who will read them, and free of what they would take without a word."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import kuberay_schema
from tests.cluster.checks import problems

ROOT = Path(__file__).parents[2]
AWS, LOCAL, KUBERAY = ROOT / "cluster.yaml", ROOT / "deploy" / "cluster.local.yaml", ROOT / "deploy" / "kuberay.yaml"
HEALTH = {"initial_delay_ms": "1000", "period_ms": "500", "timeout_ms": "1000", "failure_threshold": "2"}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A person's, with the token that the documents tell to make."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").touch(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def with_change(path: Path, change: Change, folder: Path) -> Path:
    cluster = yaml.safe_load(path.read_text("utf-8").replace("<ami>", "ami-0123456789abcdef0"))
    change(cluster)
    changed = folder / path.name
    changed.write_text(yaml.safe_dump(cluster))
    return changed


@pytest.mark.slow
def test_only_the_image_is_left_to_enter(tmp_path):
    found = problems(AWS, ROOT)
    assert len(found) == 3  # of each of three types
    assert all(line.endswith("node_config.ImageId: still says <ami>") for line in found)
    assert problems(with_change(AWS, dict.copy, tmp_path), ROOT) == []


def test_own_hosts_need_no_more_than_their_addresses():
    assert problems(LOCAL, ROOT) == []


def start(kind: str, change: Callable[[str], str]) -> Change:
    def changed(cluster: dict[str, Any]) -> None:
        cluster[kind] = [change(command) for command in cluster[kind]]

    return changed


def types(**settings: Any) -> Change:
    return lambda cluster: cluster["available_node_types"]["session"].update(settings)


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        (AWS, lambda c: c.update(idle_timeout=5), "Ray refuses it: Additional properties"),
        (AWS, types(min_worker=2), "Ray refuses it: Additional properties"),
        (AWS, types(min_workers=11), "Ray refuses it"),
        (AWS, lambda c: c.update(head_node_type="heads"), "Ray refuses it"),
        (LOCAL, lambda c: c.update(available_node_types={"head": {}}), "Ray refuses it"),
        (AWS, types(min_workers=7), "session: min_workers 7 exceeds max_workers 6"),
        (AWS, types(max_workers=11), "session: max_workers 11 exceeds that of the cluster"),
        (AWS, types(resources={"CPU": 4}), "session: offers no resource of its name"),
        (AWS, lambda c: c["available_node_types"]["head"]["resources"].update(CPU=2), "the head offers CPU"),
        (AWS, lambda c: c["available_node_types"]["session"]["node_config"].update(InstanceMarketOptions={"MarketType": "spot"}), "spot machines are for"),
        (AWS, lambda c: c["available_node_types"]["fleet"]["node_config"].update(InstanceTypes="c7i.large"), 'Unknown parameter in input: "InstanceTypes"'),
        (AWS, lambda c: c["available_node_types"]["fleet"]["node_config"].update(InstanceType=4), "Invalid type for parameter InstanceType"),
        (AWS, lambda c: c["provider"].update(cache_stopped_node=False), "provider.cache_stopped_node: Ray knows no such key"),
        (AWS, lambda c: c["provider"].update(aws_credentials={}), "provider.aws_credentials: "),
        (AWS, lambda c: c["provider"].pop("region"), "provider.region: missing"),
        (LOCAL, lambda c: c["provider"].update(worker_ips=["192.168.1.10"]), "an address is given twice"),
        (LOCAL, lambda c: c["provider"].update(workers=3), "provider.workers: Ray knows no such key"),
        (AWS, lambda c: c["file_mounts"].pop("~/ray.env"), "file_mounts: ~/ray.env is missing"),
        (AWS, lambda c: c["file_mounts"].update({"~/more": "no/such/folder"}), "there is no no/such/folder"),
        (AWS, start("head_start_ray_commands", lambda s: s.removeprefix(". ~/ray.env; ")), "does not begin with '. ~/ray.env;'"),
        (AWS, start("worker_start_ray_commands", lambda s: s.removeprefix(". ~/ray.env; ")), "does not begin with '. ~/ray.env;'"),
        (AWS, start("head_start_ray_commands", lambda s: s.replace("127.0.0.1", "0.0.0.0")), "the dashboard on 0.0.0.0 is open"),
        (AWS, start("head_start_ray_commands", lambda s: s.replace("--dashboard-host=127.0.0.1", "")), "with --dashboard-host=127.0.0.1 is needed"),
        (AWS, start("setup_commands", lambda s: "export RAY_AUTH_TOKEN=x; " + s), "setup_commands: a secret?"),
        (AWS, start("setup_commands", lambda s: f"echo {'0123456789abcdef' * 4} > ~/.ray/auth_token"), "setup_commands: a secret?"),
        (AWS, lambda c: c.pop("head_setup_commands"), "Ray runs the system's pip"),
        (LOCAL, start("head_start_ray_commands", lambda s: s.replace("export RAY_enable_autoscaler_v2=0; ", "")), "no worker of provider 'local' ever starts"),
    ],
)  # fmt: skip
def test_mistakes_are_found(path, change, said, tmp_path):
    found = problems(with_change(path, change, tmp_path), ROOT)
    assert any(said in line for line in found), found


def test_a_token_that_others_may_read_is_told(home):
    (home / ".ray" / "auth_token").chmod(0o644)
    assert any("chmod 600" in line for line in problems(LOCAL, ROOT))


def environment() -> dict[str, str]:
    command = f". {ROOT / 'deploy' / 'ray.env'}; env"
    lines = subprocess.run(["sh", "-ec", command], env={"HOME": "/home/x", "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in lines.splitlines())


def test_the_environment_asks_for_a_token_and_holds_none():
    found = environment()
    assert found["RAY_AUTH_MODE"] == "token"
    assert found["RAY_AUTH_TOKEN_PATH"] == "/home/x/.ray/auth_token"
    assert "RAY_AUTH_TOKEN" not in found
    assert found["PATH"].startswith("/home/x/venv/bin:")


def test_a_lost_node_is_missed_within_seconds_everywhere():
    assert {name: environment()[f"RAY_health_check_{name}"] for name in HEALTH} == HEALTH
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        assert {name: value_of(container["env"], f"RAY_health_check_{name}") for name in HEALTH} == HEALTH


def value_of(env: list[dict[str, str]], name: str) -> str:
    (found,) = (each["value"] for each in env if each["name"] == name)
    return found


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(KUBERAY.read_text("utf-8")))


def groups() -> list[dict[str, Any]]:
    spec = manifests()[0]["spec"]
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_kubernetes_takes_the_manifests():
    assert [each["kind"] for each in manifests()] == ["RayCluster", "RayJob"]
    for manifest in manifests():
        assert kuberay_schema.problems(manifest) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda spec: spec.update(authOption={"mode": "token"}), "'authOption' was unexpected"),
        (lambda spec: spec["authOptions"].update(mode="tokens"), "'tokens' is not one of"),
        (lambda spec: spec["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}), "0 is not of type 'string'"),
        (lambda spec: spec["workerGroupSpecs"][0].pop("groupName"), "'groupName' is a required property"),
        (lambda spec: spec["workerGroupSpecs"][1]["template"]["spec"]["containers"][0].update(imagee="x"), "'imagee' was unexpected"),
        (lambda spec: spec["workerGroupSpecs"][1].update(replicas="2"), "'2' is not of type 'integer'"),
    ],
)
def test_kubernetes_refuses_mistakes(change, said):
    cluster = manifests()[0]
    change(cluster["spec"])
    assert any(said in line for line in kuberay_schema.problems(cluster))


def test_the_groups_offer_what_actors_ask_for():
    head, session, fleet = groups()
    assert head["rayStartParams"]["num-cpus"] == "0"
    for group, name in ((head, "head"), (session, "session"), (fleet, "fleet")):
        assert re.fullmatch(rf"""'?"\{{\\"{name}\\": \d+\}}"'?""", group["rayStartParams"]["resources"])  # a shell reads it once
    assert (session["minReplicas"], fleet["minReplicas"]) == (2, 0)


def test_all_speak_of_one_ray_and_one_image():
    locked = re.search(r"^ray(?:\[default\])?==(\S+)", (ROOT / "deploy" / "requirements.lock").read_text(), re.MULTILINE)
    assert locked
    assert manifests()[0]["spec"]["rayVersion"] == locked[1]
    images = {container["image"] for group in groups() for container in group["template"]["spec"]["containers"]}
    assert len(images) == 1
    assert images.pop().endswith(":0.1.0")


def test_the_job_finds_its_cluster():
    cluster, job = manifests()
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": cluster["metadata"]["name"]}
    assert "backoffLimit" not in job["spec"]  # the operator refuses it beside clusterSelector
    assert job["spec"]["entrypoint"].startswith("python -m keystone.bench ")
