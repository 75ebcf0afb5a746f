"""cluster.yaml through Ray's own code for AWS, on moto: which machines it would start there, and who could reach them."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
IMAGE = "ami-0123456789abcdef0"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def account(tmp_path_factory):
    """An account in which a machine of each type was started, as boto3's clients see it: EC2 and IAM."""
    import boto3
    from moto import mock_aws
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config

    home = tmp_path_factory.mktemp("home")
    (home / ".ssh").mkdir()
    with pytest.MonkeyPatch.context() as patch, mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        patch.setenv("HOME", str(home))  # the key pair's private half goes there
        patch.setattr("ray.autoscaler._private.aws.config.time", type("Hurried", (), {"sleep": lambda _: None, "time": time.time}))
        cluster = bootstrap_aws(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8").replace("<ami>", IMAGE))))
        provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
        for name, each in cluster["available_node_types"].items():
            provider.create_node({**each["node_config"], **(cluster["head_node"] if name == "head" else {})}, {"ray-user-node-type": name}, 1)
        yield boto3.client("ec2", cluster["provider"]["region"]), boto3.client("iam"), home


@pytest.fixture(scope="module")
def machines(account):
    """By the name of their type."""
    found = [each for reservation in account[0].describe_instances()["Reservations"] for each in reservation["Instances"]]
    return {tag["Value"]: each for each in found for tag in each["Tags"] if tag["Key"] == "ray-user-node-type"}


def test_spot_is_for_the_fleet_alone(machines):
    assert {name: each.get("InstanceLifecycle") for name, each in machines.items()} == {"head": None, "session": None, "fleet": "spot"}


def test_a_machine_asks_for_as_many_actors_as_it_has_cores(account, machines):
    types = yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))["available_node_types"]
    for name in ("session", "fleet"):
        (kind,) = account[0].describe_instance_types(InstanceTypes=[machines[name]["InstanceType"]])["InstanceTypes"]
        cores = kind["VCpuInfo"]["DefaultVCpus"]
        assert types[name]["resources"] == {"CPU": cores, name: cores}


def test_all_are_of_one_zone_and_image_and_hide_their_credentials(machines):
    assert {each["Placement"]["AvailabilityZone"] for each in machines.values()} == {"us-east-1a"}
    assert {each["ImageId"] for each in machines.values()} == {IMAGE}
    assert {each["MetadataOptions"]["HttpTokens"] for each in machines.values()} == {"required"}


def test_only_their_group_and_ssh_reach_them(account, machines):
    (group,) = {group["GroupId"] for each in machines.values() for group in each["SecurityGroups"]}
    (found,) = account[0].describe_security_groups(GroupIds=[group])["SecurityGroups"]
    own, ssh = found["IpPermissions"]
    assert ([pair["GroupId"] for pair in own["UserIdGroupPairs"]], own["IpRanges"]) == ([group], [])
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"], ssh["UserIdGroupPairs"]) == ("tcp", 22, 22, [])
    assert found["GroupName"] == "keystone-ray"


def test_only_the_head_may_start_and_end_machines(account, machines):
    assert {name: "IamInstanceProfile" in each for name, each in machines.items()} == {"head": True, "session": False, "fleet": False}
    (role,) = account[1].list_roles()["Roles"]
    assert role["RoleName"] == "ray-autoscaler-v1"


def test_the_private_key_is_for_its_owner_alone(account):
    (key,) = (account[2] / ".ssh").glob("*.pem")
    assert key.stat().st_mode & 0o077 == 0


def test_the_guide_finds_what_the_cluster_leaves(account, machines):
    """The tags by which it looks for machines are those that Ray gives them."""
    guide = (ROOT / "deploy" / "README.md").read_text("utf-8")
    assert "Name=tag:ray-cluster-name,Values=keystone " in guide
    found = account[0].describe_instances(Filters=[{"Name": "tag:ray-cluster-name", "Values": ["keystone"]}])["Reservations"]
    assert sum(len(each["Instances"]) for each in found) == len(machines) == 3


@pytest.mark.parametrize("script", ["deploy/install.sh", "deploy/ray.env"])
def test_shells_read_what_nodes_are_given(script):
    for shell in ("sh", "bash"):
        subprocess.run([shell, "-n", str(ROOT / script)], check=True)
