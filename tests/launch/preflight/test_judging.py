"""Which node is named, by figures made up: no machine has to be sick for it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.schema import PreflightConfig
from launch.preflight.judging import judge, judge_clocks, judge_pairs, judge_room, sick
from launch.preflight.node import Finding, Report, together
from launch.preflight.space import Room

SETTINGS = PreflightConfig()
GB = 10**9


def nodes(**figures: list[float]) -> dict[str, Report]:
    """A node for each value of a figure."""
    count = len(next(iter(figures.values())))
    return {f"n{i}": Report(figures={name: values[i] for name, values in figures.items()}) for i in range(count)}


def test_a_slow_node_is_named_beside_the_others_median() -> None:
    (found,) = judge(SETTINGS, nodes(network=[10.0, 12.0, 1.5, 11.0], compute=[1.0, 1.0, 1.0, 1.0]))
    assert (found.check, found.nodes) == ("network", ("n2",))
    assert found.said == "best pair 1.5 GB/s; the others' median is 11 GB/s"


def test_the_slower_of_two_is_told() -> None:
    assert sick(judge(SETTINGS, nodes(compute=[100.0, 49.0]))) == ["n1"]
    assert judge(SETTINGS, nodes(compute=[100.0, 51.0])) == []


def test_storage_may_vary_more() -> None:
    assert judge(SETTINGS, nodes(write=[900.0, 200.0, 1000.0])) == []
    assert sick(judge(SETTINGS, nodes(write=[900.0, 100.0, 1000.0]))) == ["n1"]


def test_a_node_that_lost_memory_is_named() -> None:
    assert sick(judge(SETTINGS, nodes(memory=[2000.0, 1750.0, 2000.0]))) == ["n1"]


def test_what_is_wanted_at_least_is_told_with_what_is_there() -> None:
    settings = PreflightConfig(least={"network": 20.0})
    (found,) = judge(settings, nodes(network=[40.0, 19.0, 40.0]))
    assert found.nodes == ("n1",)
    assert "best pair 19 GB/s" in found.said
    assert "at least 20 GB/s" in found.said
    (found,) = judge(settings, nodes(network=[15.0, 19.0, 15.0]))
    assert found.nodes == (), "what all nodes have is no node's fault"
    assert found.said.startswith("on all 3 nodes, such as n0: best pair 15 GB/s")
    assert sick(judge(settings, nodes(network=[19.0]))) == ["n0"]


@given(st.lists(st.floats(1.0, 1.9), min_size=1, max_size=9))
def test_nodes_within_the_share_are_well(values: list[float]) -> None:
    assert judge(SETTINGS, nodes(compute=values, network=values, within=values, write=values)) == []


@given(st.lists(st.floats(1.0, 1.9), min_size=1, max_size=9), st.data())
def test_one_slow_node_is_named_wherever_it_is(values: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(values)))
    slow = [*values[:place], 0.4, *values[place:]]
    assert sick(judge(SETTINGS, nodes(network=slow))) == [f"n{place}"]


def test_the_minority_has_the_other_version() -> None:
    facts = {"a": "2.13", "b": "2.13", "c": "2.12"}
    (found,) = judge(SETTINGS, {name: Report(facts={"torch": value}) for name, value in facts.items()})
    assert (found.nodes, found.said) == (("c",), "torch is 2.12; 2.13 on 2 of 3 nodes")
    (found,) = judge(SETTINGS, {name: Report(facts={"torch": facts[name]}) for name in "bc"})
    assert (found.nodes, found.said) == ((), "torch is not equal: b has 2.13, c has 2.12")
    assert judge(SETTINGS, {"a": Report(facts={"driver": "550"}), "b": Report()})[0].nodes == ()


def test_what_is_shared_is_no_fault_of_a_node_where_all_lack_it() -> None:
    lacks = Report(lacks=["corpus: not there"])
    (found,) = judge(SETTINGS, {"a": lacks, "b": Report()})
    assert found.nodes == ("a",)
    assert judge(SETTINGS, {"a": lacks}) == [Finding("shared", (), "corpus: not there")]
    assert judge(SETTINGS, {"a": lacks, "b": lacks})[0].nodes == ()
    troubles = {name: Report(troubles=["GPU 0: 3 uncorrectable memory errors"]) for name in "ab"}
    assert sick(judge(SETTINGS, troubles)) == ["a", "b"]


@pytest.mark.parametrize(
    ("offsets", "named"),
    [
        ({"a": 0.0, "b": 0.4, "c": -0.4}, []),
        ({"a": 0.0, "b": 30.0, "c": 0.1}, ["b"]),
        ({"a": 0.0, "b": 30.0, "c": 30.1}, ["a"]),
        ({"a": 0.0}, []),
        ({}, []),
    ],
)
def test_the_clock_that_is_off(offsets: dict[str, float], named: list[str]) -> None:
    assert sick(judge_clocks(1.0, offsets)) == named


def test_of_two_clocks_neither_is_named() -> None:
    (found,) = judge_clocks(1.0, {"a": 0.0, "b": 30.0})
    assert (found.nodes, found.said) == ((), "b's clock is 30.000 s ahead of a's; more than 1 s")


def test_too_little_space_with_both_numbers() -> None:
    short, enough = Room(each=140 * GB, count=3, free=400 * GB), Room(140 * GB, 3, 420 * GB)
    (found,) = judge_room({"a": enough, "b": short})
    assert found.nodes == ("b",)
    assert found.said == "run folder: 3 checkpoints of 140.0 GB take 420.0 GB, 400.0 GB are free"
    (found,) = judge_room({"a": short, "b": short})
    assert found.nodes == ()
    assert judge_room({"a": enough, "b": enough}) == []


def test_a_slow_pair_of_fast_nodes_is_a_note() -> None:
    speeds = {("a", "b"): 10.0, ("a", "c"): 11.0, ("b", "c"): 2.0, ("a", "d"): 10.0, ("b", "d"): 9.0, ("c", "d"): 10.0}
    reports = {name: Report() for name in "abcd"}
    for (one, other), speed in speeds.items():
        reports[one].peers[other] = reports[other].peers[one] = speed
    assert judge_pairs(0.5, reports, set()) == ["b and c: 2 GB/s between them, median of pairs 10 GB/s"]
    assert judge_pairs(0.5, reports, {"b"}) == []


def test_a_node_is_as_fast_as_its_slowest_rank() -> None:
    whole = together([Report({"compute": 2.0}, peers={"b": 3.0}), Report({"compute": 1.0}, peers={"b": 4.0})])
    assert whole.figures == {"compute": 1.0}
    assert whole.peers == {"b": 3.0}
