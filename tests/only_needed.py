"""`python -m tests.only_needed MEASUREMENT ...`: loads measurements of the GPU benchmark as on a machine that has what
`libraries.NEEDED` names, and nothing else of what is installed here. Prints the packages that it hides."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from typing import Any

from tests.benchmarks.gpu import libraries


class Hiding:
    """A finder of modules that does not find some packages."""

    def __init__(self, finder: Any, hidden: set[str]) -> None:
        self._finder, self._hidden = finder, hidden

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        return None if name.split(".")[0] in self._hidden else self._finder.find_spec(name, path, target)


def packages_beside(distributions: tuple[str, ...]) -> set[str]:
    """What can be imported here and belongs to other distributions than these, what they require, and the project."""
    enough, more = {"megaphone"}, list(distributions)
    while more:
        name = _plain(more.pop())
        if name in enough:
            continue
        enough.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for other systems
        more += [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]
    owners = importlib.metadata.packages_distributions()
    return {package for package, names in owners.items() if not enough & set(map(_plain, names))}


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    hidden = packages_beside(libraries.NEEDED)
    finders: list[Any] = sys.meta_path
    finders[:] = [Hiding(finder, hidden) for finder in finders]
    from tests.benchmarks.gpu import plan

    for name in sys.argv[1:]:
        plan.by_name(name).load()
    print("\n".join(sorted(hidden)))
