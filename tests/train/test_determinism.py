"""What a deterministic run asks of the libraries below, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from runtime.exits import BadInput
from train.engines.determinism import be_deterministic


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def test_settings_are_made_where_there_are_none() -> None:
    environment = {"NCCL_ALGO": "Ring"}
    be_deterministic(environment)
    assert environment["NCCL_ALGO"] == "Ring"
    assert environment["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert environment["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] == "0"
    assert torch.are_deterministic_algorithms_enabled()
    be_deterministic(environment)  # a second stage in the same environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("NCCL_ALGO", "Ring,NVLS"),
        ("NCCL_ALGO", "CollNetChain"),
        ("NCCL_ALGO", "^Tree"),
        ("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "1"),
        ("CUBLAS_WORKSPACE_CONFIG", ":0:0"),
    ],
)
def test_an_environment_that_asks_for_the_opposite_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadInput, match=rf"train\.deterministic=true, but {name}"):
        be_deterministic({name: value})
    assert not torch.are_deterministic_algorithms_enabled()
