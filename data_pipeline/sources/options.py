"""Options of a kind of source, checked against the signature of the function that reads it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from runtime.exits import BadInput


def check_options(what: str, function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` as keyword arguments of `function`. Its keyword-only parameters are its options; one without a default
    has to be given, and a value has to be of the default's type (or of any for a default of None). Raises BadInput
    naming `what`, the option and the choices."""
    parameters = inspect.signature(function).parameters.values()
    known = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    for name, value in options.items():
        if name not in known:
            raise BadInput(f"{what} has no option {name!r}; it has {', '.join(known) or 'none'}")
        default = known[name]
        if default is None or default is inspect.Parameter.empty:
            continue
        wanted = {float: (int, float), tuple: (list, tuple)}.get(type(default), type(default))
        if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise BadInput(f"{what}: option {name} must be {_kind(default)} like {default!r}, got {value!r}")
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in options:
            raise BadInput(f"{what} needs the option {name}")
    return dict(options)


def _kind(value: object) -> str:
    return {bool: "true or false", str: "text", int: "a whole number", float: "a number"}.get(type(value), "a list")
