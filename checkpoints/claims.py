"""That rules claim every tensor of a checkpoint, and none twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

from checkpoints.card import LeftOut
from checkpoints.safety import quoted
from runtime.exits import BadInput


def check_claims(
    claims: Iterable[tuple[str, Sequence[str]]],
    held: Set[str],
    where: object,
    needless: Callable[[str], str | None] = lambda name: None,
) -> list[LeftOut]:
    """Compare what rules claim with the tensors that are `held`; returns those that may be left out.

    claims: for each application of a rule its name, such as the native tensor's, and the tensors it claims. needless:
    why a tensor that nothing claims needs no place, or None. Raises BadInput, one line that begins with `where`, where
    a tensor is claimed twice, is claimed and not held, or is held and neither claimed nor needless.
    """
    claimed: dict[str, str] = {}
    for rule, names in claims:
        for name in names:
            if name in claimed:
                raise BadInput(f"{where}: {quoted(name)} is claimed twice: by {claimed[name]} and by {rule}")
            claimed[name] = rule
    if missing := sorted(claimed.keys() - held):
        raise BadInput(f"{where}: has no tensor {missing[0]} ({len(missing)} missing)")
    left_out, odd = [], []
    for name in sorted(held - claimed.keys()):
        why = needless(name)
        if why is None:
            odd.append(name)
        else:
            left_out.append(LeftOut(name, why))
    if odd:
        raise BadInput(f"{where}: no place for tensor {odd[0]} ({len(odd)} such)")
    return left_out
