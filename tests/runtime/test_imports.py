"""Importing at once: what is hidden meanwhile, and the garbage collector after it."""

from __future__ import annotations

import gc
import importlib
import sys
from pathlib import Path

import pytest

from runtime.imports import at_once


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "merely_probed.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    return "merely_probed"


def test_a_hidden_library_is_there_again_afterwards(library: str) -> None:
    with pytest.raises(RuntimeError, match="on the way out"), at_once(without=(library,)):
        with pytest.raises(ImportError):
            importlib.import_module(library)
        raise RuntimeError("on the way out")
    assert importlib.import_module(library) is sys.modules.pop(library)


def test_a_library_that_is_imported_already_stays(library: str) -> None:
    module = importlib.import_module(library)
    with at_once(without=(library,)):
        assert sys.modules[library] is module
    assert sys.modules.pop(library) is module


def test_the_collector_rests_and_leaves_alone_what_was_imported() -> None:
    assert gc.isenabled()
    try:
        with at_once():
            assert not gc.isenabled()
            kept = [object() for _ in range(10)]
        assert gc.isenabled() and gc.get_freeze_count() > len(kept)
    finally:
        gc.unfreeze()
