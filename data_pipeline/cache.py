"""Where this machine keeps what it has made or fetched."""

from __future__ import annotations

import os
from pathlib import Path

from configs.schema import Config


def cache_root(config: Config) -> Path:
    """Where corpora and converted assets are kept: `run.cache`, else $MEGAPHONE_CACHE, else ~/.cache/megaphone."""
    return Path(config.run.cache or os.environ.get("MEGAPHONE_CACHE") or "~/.cache/megaphone").expanduser()
