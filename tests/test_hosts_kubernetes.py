"""Clusters whose hosts are pods: what is written for `kubectl apply`, and what becomes of it when it is carried out."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from harness import memcluster_command, run
from hostlab import guardian, lab, load, pids
from kubernetes_validate.utils import all_versions
from podlab import PodLab

FILE = """
name: lab
memory: 3MiB
servers: 3
hosts: [lab-0, lab-1]
engine: {kubernetes: {image: "registry.example/memcluster:1"}}
listen: 0.0.0.0:10809
insecure_network: true
metrics: 0.0.0.0:9100
"""
METRICS = "metrics: 0.0.0.0:9100"


def written(folder: Path, text: str = FILE, *words: str, check: bool = True):
    (folder / "cluster.yaml").write_text(text)
    command = memcluster_command("-f", str(folder / "cluster.yaml"), "config", "--kubernetes", *words)
    return run(*command, check=check)


@pytest.mark.parametrize("version", all_versions())
def test_every_version_of_kubernetes_takes_the_manifests(manifests: list[dict], version: str) -> None:
    """Strictly: a key that it does not know is an error."""
    kinds = ["Secret", "ConfigMap", "Service", "Service", "StatefulSet", "StatefulSet"]
    assert [manifest["kind"] for manifest in manifests] == kinds
    for manifest in manifests:
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return list(yaml.safe_load_all(written(tmp_path_factory.mktemp("written")).stdout))


def test_the_manifests_fit_one_another(manifests: list[dict]) -> None:
    """Selectors select pods, names lead to objects, and the shards fit into the memory of their pod."""
    named = {(each["kind"], each["metadata"]["name"]): each for each in manifests}
    sets = [each for each in manifests if each["kind"] == "StatefulSet"]
    for each in sets:
        labels = each["spec"]["template"]["metadata"]["labels"].items()
        assert each["spec"]["selector"]["matchLabels"].items() <= labels
        service = named["Service", each["spec"]["serviceName"]]
        assert service["spec"]["selector"].items() <= labels
        pod = each["spec"]["template"]["spec"]
        [container] = pod["containers"]
        assert container["image"] == "registry.example/memcluster:1"
        for variable in container["env"]:
            source = variable["valueFrom"]["secretKeyRef"]
            assert source["key"] in named["Secret", source["name"]]["stringData"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
        assert named["ConfigMap", volumes["description"]["configMap"]["name"]]["data"].keys() == {"cluster.yaml"}
        assert volumes["memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "17Mi"}
    door = named["Service", "lab-nbd"]["spec"]
    labels = sets[0]["spec"]["template"]["metadata"]["labels"].items()
    assert door["selector"].items() <= labels
    assert not door["selector"].items() <= sets[1]["spec"]["template"]["metadata"]["labels"].items()
    [container] = sets[0]["spec"]["template"]["spec"]["containers"]
    assert [(port["name"], port["containerPort"]) for port in container["ports"]] == [("nbd", 10809), ("metrics", 9100)]
    assert [port["targetPort"] for port in door["ports"]] == ["nbd", "metrics"]


def test_each_time_there_is_another_secret_and_all_else_is_the_same(tmp_path: Path) -> None:
    first, second = (list(yaml.safe_load_all(written(tmp_path).stdout)) for _ in range(2))
    assert first[0] != second[0]
    assert first[1:] == second[1:]
    assert not written(tmp_path, FILE, "--quiet").stdout


def test_more_memory_than_this_machine_has_is_no_matter(tmp_path: Path) -> None:
    """It is for the pods to have."""
    large = written(tmp_path, FILE.replace("3MiB", "3TiB")).stdout.decode()
    assert f"sizeLimit: {(1 << 20) + 16}Mi" in large


def test_the_files_of_tls_are_to_be_in_a_secret(tmp_path: Path) -> None:
    """Which is mounted where the cluster.yaml of the pods says that they are."""
    run(*memcluster_command("certificates", str(tmp_path / "tls")))
    done = written(tmp_path, FILE.replace(METRICS, "").replace("insecure_network: true", "tls: {certificates: tls}"))
    assert f"kubectl create secret generic lab-tls --from-file={tmp_path / 'tls'}".encode() in done.stderr
    manifests = list(yaml.safe_load_all(done.stdout))
    description = yaml.safe_load(manifests[1]["data"]["cluster.yaml"])
    for each in manifests[4:]:
        pod = each["spec"]["template"]["spec"]
        assert {"name": "tls", "secret": {"secretName": "lab-tls"}} in pod["volumes"]
        paths = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
        assert description["tls"]["certificates"] in paths
        kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("name: lab", "name: Lab_", "2:7: with engine: kubernetes the name is a part of names of pods"),
        ("[lab-0, lab-1]", "[lab-1, lab-0]", "5:8: with engine: kubernetes the hosts are pods, numbered: write hosts"),
        ("0.0.0.0:10809", "127.0.0.1:10809", "7:9: with engine: kubernetes clients come from other pods"),
        ("0.0.0.0:10809", "unix:/tmp/door", "7:9: with engine: kubernetes clients come from other pods"),
        (METRICS, "topology: client-routed", "9:11: client-routed has a door on every host"),
        (METRICS, "storage: data", "9:10: with engine: kubernetes shards are in the memory of pods"),
        ('"registry.example/memcluster:1"', "a b", "must be the name of a container image (got 'a b')"),
        ('{kubernetes: {image: "registry.example/memcluster:1"}}', "ssh", "is for no pods: write hosts: [lab-0, lab"),
    ],
)
def test_what_cannot_be_in_pods_is_told(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    refused = written(tmp_path, FILE.replace(old, new), check=False)
    assert refused.returncode == 2
    assert not refused.stdout
    assert sentence in refused.stderr.decode()


def test_up_outside_of_a_pod_says_what_to_do(tmp_path: Path) -> None:
    port = 10_000 + os.getpid() % 20_000  # none that the system gives to others
    (tmp_path / "cluster.yaml").write_text(FILE.replace(METRICS, "").replace("10809", str(port)))
    refused = run(*memcluster_command("-f", str(tmp_path / "cluster.yaml"), "up", "-d"), check=False)
    assert refused.returncode == 1
    assert b"the supervisor runs in a pod: `memcluster config --kubernetes`" in refused.stderr


# -- carried out -------------------------------------------------------------------------------------------------------


@pytest.fixture
def labs(tmp_path: Path) -> Iterator[PodLab]:
    tmp_path.chmod(0o755)
    with lab(tmp_path, kind=PodLab) as made:
        assert isinstance(made, PodLab)
        yield made


@pytest.mark.timeout(300)
def test_pods_have_one_memory_whichever_of_their_containers_dies(labs: PodLab) -> None:
    """A guardian is killed by somebody, and by `fault`, under load; the supervisor; and a host that has lost its shard
    is refused until the supervisor is asked to end. Nothing is left when the pods are deleted."""
    labs.describe(host_lease="10s")
    labs.apply()
    status = labs.wait_until_running()
    assert [node["host"] for node in status["nodes"]][:3] == ["lab-supervisor-0", "lab-0", "lab-1"]
    assert status["uri"].startswith("nbd://lab-nbd:10809")
    host = labs.hosts["lab-0"]
    with load(labs, status):
        first = guardian(host)
        host.run("kill", "-KILL", str(first))
        labs.wait_for(lambda now: now["state"] == "running" and first not in host.ours())
        second = guardian(host)
        labs.command("fault", "kill", "host:lab-0")
        labs.wait_for(lambda now: now["state"] == "running" and second not in host.ours())
    labs.memclient("write", "0xffffc", "on either side")
    guardians = {each.name: guardian(each) for each in labs.hosts.values()}
    [supervisor] = [pid for pid, words in labs.here.ours().items() if words.endswith(": supervisor")]
    labs.here.run("kill", "-KILL", str(supervisor))
    labs.wait_for(lambda now: now["state"] == "running")
    assert labs.memclient("read", "0xffffc", "14").stdout == b"on either side"
    assert all(guardian(each) != guardians[each.name] for each in labs.hosts.values())  # those served another run
    before = pids(labs.status())
    host.run("rm", "-r", "/dev/shm/memcluster-0-lab@lab-0")
    host.run("kill", "-KILL", str(guardian(host)))
    failed = labs.wait_for(lambda now: now["nodes"][1]["state"] == "failed")
    assert "lab-0 does not hold the shard of server1" in failed["nodes"][1]["reason"]
    assert labs.memclient("read", "0x200000", "4").stdout == bytes(4)
    assert pids(labs.status())["server0"] == before["server0"]
    labs.ask_to_end(labs.here)
    labs.wait_for(lambda now: now["state"] == "running" and now["nodes"][1]["state"] == "ready")
    assert labs.memclient("read", "0xffffc", "14").stdout == bytes(14)
    labs.delete()
    for each in labs.everyone:
        assert not each.ours()
