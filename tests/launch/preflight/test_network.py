"""Which nodes are measured together, and what it comes to between network namespaces of which one is throttled."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.compose import to_yaml
from launch.preflight.network import rounds
from runtime.exits import SICK
from tests.ranks import run_ranks
from tests.slurm.cluster import PATH, install
from tests.train.runs import tiny_config

_CLONE_NEWNET = 0x40000000
ENVIRONMENT = {**os.environ, "PATH": PATH}


@given(st.integers(2, 40))
def test_with_enough_rounds_every_pair_meets_once(nodes: int) -> None:
    found = list(chain.from_iterable(rounds(nodes, nodes)))
    assert sorted(found) == sorted(combinations(range(nodes), 2))


@given(st.integers(2, 2000), st.integers(1, 9))
def test_a_node_is_in_one_pair_at_a_time_and_meets_others(nodes: int, most: int) -> None:
    made = rounds(nodes, most)
    assert len(made) <= most
    for pairs in made:
        inside = list(chain.from_iterable(pairs))
        assert len(set(inside)) == len(inside) >= nodes - 1
    everybody = list(chain.from_iterable(made))
    assert len(set(everybody)) == len(everybody)


class Nodes:
    """Network namespaces on one bridge; the traffic of one of them may be shaped."""

    def __init__(self, count: int) -> None:
        self._tag = f"p{os.getpid() % 10000}"
        network = f"10.{180 + os.getpid() % 70}.{os.getpid() // 100 % 250}"
        self.names = [f"{self._tag}n{number}" for number in range(count)]
        self.first = f"{network}.11"
        ip("link", "add", self._tag, "type", "bridge")
        ip("link", "set", self._tag, "up")
        for number, name in enumerate(self.names, 11):
            ip("netns", "add", name)
            ip("link", "add", f"{self._tag}v{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{self._tag}v{number}", "master", self._tag, "up")
            for words in (
                ("link", "set", "lo", "up"),
                ("addr", "add", f"{network}.{number}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
            ):
                ip("-n", name, *words)

    def throttle(self, number: int, rate: str) -> None:
        command = f"tc -n {self.names[number]} qdisc add dev eth0 root tbf rate {rate} burst 64kb latency 400ms"
        subprocess.run(command.split(), env=ENVIRONMENT, check=True)

    def remove(self) -> None:
        for name in self.names:
            ip("netns", "delete", name)
        ip("link", "delete", self._tag)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], env=ENVIRONMENT, check=True)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    install()
    made = Nodes(3)
    try:
        yield made
    finally:
        made.remove()


def in_namespace(names: list[str], first: str, file: str) -> int:
    from configs.compose import load_config
    from launch.preflight.rank import preflight

    rank = int(os.environ["RANK"])
    with open(f"/run/netns/{names[rank]}") as space:
        assert not ctypes.CDLL(None, use_errno=True).setns(space.fileno(), _CLONE_NEWNET)
    os.environ |= {
        "LOCAL_RANK": "0",
        "SLURMD_NODENAME": f"node{rank}",
        "MASTER_ADDR": first,
        "GLOO_SOCKET_IFNAME": "eth0",
    }
    return preflight(load_config(Path(file)), os.environ)


def test_a_node_behind_a_slow_link_is_named(nodes: Nodes, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run", tmp_path / "corpus")
    config.corpus.folder, config.corpus.name = None, "synthetic"
    config.cluster.preflight.storage_mb = 1
    config.cluster.preflight.slow_share = 0.1
    config.cluster.preflight.slow_storage_share = 0.01
    nodes.throttle(1, "200mbit")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    codes = run_ranks(in_namespace, 3, nodes.names, nodes.first, str(tmp_path / "config.yaml"))
    found = json.loads((tmp_path / "run" / "preflight.json").read_text())
    named = [finding for finding in found["findings"] if finding["check"] == "network"]
    assert [finding["nodes"] for finding in named] == [["node1"]], found["reason"]
    assert codes == [SICK] * 3
    assert 0.01 < found["nodes"]["node1"]["figures"]["network"] < 0.035, "200 Mbit/s are 25 MB/s"
    assert found["nodes"]["node0"]["peers"]["node2"] > 0.05
    assert found["nodes"]["node0"]["peers"]["node1"] < 0.035
