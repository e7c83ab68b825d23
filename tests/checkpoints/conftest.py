"""Tests here run conversions with workers, and ranks; both are forked from the server of the ranks."""

import pytest

from tests.ranks import start_server


@pytest.fixture(scope="session", autouse=True)
def server() -> None:
    start_server()
