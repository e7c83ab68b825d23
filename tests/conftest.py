"""For all tests: properties are given as many examples, however slow the machine is just now; long files come first."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from runtime.imports import at_once

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

# Files of a minute and more, longest first. Workers take files in this order (`pytest --no-loadscope-reorder`), so that
# none is left alone with a long one at the end.
LONGEST = (
    "train/test_topologies.py",
    "slurm/test_runs.py",
    "test_step_audio.py",
    "test_quickstart.py",
    "train/test_architectures.py",
    "train/inference/test_vllm.py",
    "train/test_deepspeed_folders.py",
    "train/test_resume.py",
)
_ROOT = Path(__file__).parent


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """All modules of tests are imported here, and with them every library there is."""
    with at_once():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {_ROOT / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))
