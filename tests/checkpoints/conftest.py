"""Tests here run conversions with workers, and ranks; both are forked from the server of the ranks."""

import pytest

from tests.ranks import start_server
from train.engines.cuda_on_cpu import emulate_cuda

emulate_cuda()  # before Megatron-Core is imported, which else compiles its fusions


@pytest.fixture(scope="session", autouse=True)
def server() -> None:
    start_server()
