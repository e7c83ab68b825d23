"""Which nodes are measured together, and what it comes to between network namespaces of which one is throttled."""

from __future__ import annotations

from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from launch.preflight.network import rounds


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
