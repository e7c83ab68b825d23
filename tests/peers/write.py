"""Writes a corpus of ours in the format of another library: module, corpus, target folder."""

from __future__ import annotations

import importlib
import sys

if __name__ == "__main__":
    importlib.import_module(f"tests.peers.{sys.argv[1]}").write(*sys.argv[2:])
