"""What the doctor says of Ray clusters: as they might be, and of one node on loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from convoy.cluster import Machine
from convoy.doctor import DoctorOptions
from convoy.doctor.agreement import judge_answers, judge_clocks, judge_reach, judge_versions
from convoy.doctor.cluster import (
    Target,
    check_cluster,
    find_target,
    judge_machines,
    starting,
    try_endpoint,
)
from convoy.doctor.local_ray import LocalRay, RayProcess
from convoy.doctor.probe import Answer, cause, clock_offset, survey
from convoy.runtime.nodes import Node, list_nodes, match_machines

TOWER = Machine(name="tower", address="10.0.0.5")
OLD = Machine(name="old one", address="10.0.0.6")
LAPTOP = Machine(name="laptop", address="laptop.local")


def node(name: str, address: str = "10.0.0.9", host: str = "vm", gpus: float = 0) -> Node:
    return Node(id=f"id of {name}", name=name, host=host, address=address, cpus=4, gpus=gpus)


@pytest.fixture(scope="module")
def lone_ray() -> Iterator[None]:
    """A Ray of one node, called tower, on loopback."""
    before = os.environ.get("RAY_AUTH_MODE")
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _node_name="tower",
        log_to_driver=False,
    )
    yield
    ray.shutdown()
    if before is None:  # Ray sets it when it starts a cluster, and leaves it set
        os.environ.pop("RAY_AUTH_MODE", None)


@pytest.mark.usefixtures("lone_ray")
def test_a_real_cluster_with_one_machine_missing(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text('[[machine]]\nname = "tower"\n[[machine]]\nname = "old"\n')
    missing, reach, versions, clock = check_cluster(
        DoctorOptions(cluster=str(file), timeout_s=60)  # tests beside it take the cores
    )
    assert (missing.name, missing.status) == ("machine old", "problem")
    assert "has 1 node: tower (" in missing.detail
    assert "--node-name=old" in missing.advice
    assert [check.status for check in (reach, versions, clock)] == ["ok", "ok", "ok"]
    assert "torch" in versions.detail
    assert ray.is_initialized(), "a connection that was there stays"


@pytest.mark.usefixtures("lone_ray")
def test_a_real_node_answers_and_one_that_is_not_there_does_not() -> None:
    (real,) = list_nodes()
    gone = Node(id="e" * 56, name="gone", host="vm", address="127.0.0.1", cpus=1, gpus=0)
    answers = survey([real, gone], timeout_s=60)
    answer = answers[real.id]
    assert isinstance(answer, Answer)
    assert abs(answer.offset_s) <= answer.bound_s + 1e-3
    assert isinstance(answers[gone.id], str)
    silent, *_ = judge_answers([real, gone], answers)
    assert (silent.name, silent.status) == ("node gone", "problem")


def test_a_missing_machine_is_told_how_to_join() -> None:
    nodes = [node("tower")]
    (check,) = judge_machines([TOWER, OLD], nodes, "10.0.0.5:6379", with_token=False)
    command = "`ray start --address=10.0.0.5:6379 --node-name='old one' --node-ip-address=10.0.0.6`"
    assert check.advice == f"Run there: {command}."
    (check,) = judge_machines([TOWER, LAPTOP], nodes, "10.0.0.5:6379", with_token=True)
    assert "`RAY_AUTH_MODE=token ray start --address=10.0.0.5:6379 --node-name=laptop`" in (
        check.advice
    )
    (check,) = judge_machines([TOWER, OLD], nodes, "127.0.0.1:6379", with_token=False)
    assert "loopback only" in check.advice


def test_machines_are_known_by_name_then_address_then_host_name() -> None:
    third, second, first = (
        node("c", host="laptop"),
        node("b", "10.0.0.6"),
        node("tower", "10.0.0.6"),
    )
    matched = match_machines([LAPTOP, OLD, TOWER], [third, second, first])
    assert matched == {"tower": first, "old one": second, "laptop": third}
    assert match_machines([OLD, TOWER], [node("x", host="vm")]) == {}


def test_a_whole_cluster_and_one_that_lacks_what_the_file_says() -> None:
    (check,) = judge_machines([TOWER], [node("tower"), node("b")], "h:1", with_token=False)
    assert check.status == "ok"
    assert "1 of them are not in the file" in check.detail
    greedy = Machine(name="tower", gpus=1, cpus=4.5)
    gpus, cpus = judge_machines([greedy], [node("tower")], "h:1", with_token=False)
    assert (gpus.status, "--num-gpus=1" in gpus.advice) == ("problem", True)
    assert (cpus.status, "--num-cpus=5" in cpus.advice) == ("warning", True)


def test_where_the_cluster_is_looked_for(tmp_path: Path) -> None:
    def find(
        cluster: str = "ray",
        address: str | None = None,
        *,
        running: bool = False,
        recorded: str | None = None,
        environment: str | None = None,
    ) -> Target | None:
        process = RayProcess(pid=1, name="raylet", user="ada", age_s=0)
        local = LocalRay(
            processes=(process,) if running else (),
            recorded=recorded,
            recorded_in=tmp_path,
            environment=environment,
        )
        return find_target(DoctorOptions(cluster=cluster, address=address), local)

    assert find() is None
    assert find(running=True, recorded="a:1") == Target(address="auto", endpoint=None)
    assert find(recorded="a:1") == Target(address="auto", endpoint="a:1")
    assert find(environment="b:2", running=True) == Target(address="b:2", endpoint="b:2")
    assert find(address="c", environment="b:2") == Target(address="c:6379", endpoint="c:6379")
    assert find("ray://d", "c") == Target(address="ray://d:10001", endpoint="d:10001")
    assert find("ray://[::1]:7") == Target(address="ray://[::1]:7", endpoint="[::1]:7")


def test_where_nothing_answers() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        assert try_endpoint(Target(address="auto", endpoint=endpoint), []) is None
    check = try_endpoint(Target(address="auto", endpoint=endpoint), [TOWER, OLD, LAPTOP])
    assert check is not None
    assert f"no answer from Ray at {endpoint}" in check.detail
    assert "on tower `ray start --head --port=6379 --node-name=tower" in check.advice
    assert "on laptop `ray start --address=10.0.0.5:6379 --node-name=laptop`" in check.advice
    assert "THE_ADDRESS_OF_laptop" not in starting([LAPTOP, OLD])
    check = try_endpoint(Target(address="a:b", endpoint="a:b"), [])
    assert check is not None
    assert "no address" in check.detail


def test_a_wrong_file_is_one_problem(tmp_path: Path) -> None:
    (check,) = check_cluster(DoctorOptions(cluster=str(tmp_path / "absent.toml")))
    assert (check.name, check.status) == ("cluster", "problem")
    assert "absent.toml: no such file" in check.detail


def test_reach() -> None:
    names = {"1": "a", "2": "b", "3": "c"}
    assert judge_reach(names, {"1": {}}).detail == "one machine, nothing to reach"
    well = judge_reach(names, {"1": {"2": 0.001}, "2": {"1": 0.004}})
    assert well.detail == "2 of 2 connections stood; the slowest, b to a, after 4.0 ms"
    ill = judge_reach(names, {"1": {"2": 0.001, "3": "timed out"}, "2": {"1": 0.004}})
    assert ill.status == "problem"
    assert "1 of 3 connections failed: a to c: timed out" in ill.detail


def test_versions_must_agree_but_for_builds_and_patches() -> None:
    here = {"python": "3.11.7", "torch": "2.13.0+cpu", "ray": "2.60.0"}
    assert judge_versions({"here": here, "a": here}).status == "ok"
    near = here | {"python": "3.11.9", "torch": "2.13.0"}
    check = judge_versions({"here": here, "a": near})
    assert check.status == "ok"
    assert "python: here 3.11.7, a 3.11.9" in check.detail
    for other in ({"python": "3.12.7"}, {"torch": "2.12.0"}, {"ray": "missing"}):
        check = judge_versions({"here": here, "a": here | other})
        assert check.status == "problem"
        assert f"a {next(iter(other.values()))}" in check.detail


def test_clocks() -> None:
    assert judge_clocks({"a": (9.0, 0.1)}).detail == "one machine, nothing to compare"
    near = judge_clocks({"a": (5.0, 0.001), "b": (5.05, 0.002), "c": (5.01, 0.001)})
    assert near.status == "ok"
    assert near.detail == "a and b are furthest apart: 50.0 ms, ±3.0 ms"
    assert judge_clocks({"a": (0.0, 0.2), "b": (0.3, 0.1)}).status == "ok", "within the error"
    far = judge_clocks({"a": (0.0, 0.001), "b": (-2.0, 0.001)})
    assert (far.status, "NTP" in far.advice) == ("warning", True)


def test_the_quickest_exchange_tells_the_offset() -> None:
    samples = [(0.0, 12.0, 4.0), (10.0, 20.25, 10.5), (20.0, 31.0, 22.0)]
    assert clock_offset(samples) == (10.0, 0.25)


def test_the_cause_is_found_beneath_rays_wrapping() -> None:
    text = "The actor died\n  File x\nModuleNotFoundError: No module named 'convoy'\n"
    assert cause(RuntimeError(text)) == "ModuleNotFoundError: No module named 'convoy'"
    assert cause(RuntimeError("plain")) == "plain"
