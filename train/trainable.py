"""What of a model is trained, and how: the trained set by name patterns, and parameter groups.

Both engines plan with it: an engine hands in the names and sizes of all parameters of the model, whichever rank holds
them, and gets one plan on all ranks. `configs.parameter_names` says what names and patterns are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from configs.parameter_names import is_added, is_lora, matching
from configs.schema import Config, StageConfig
from configs.schema.training import DEFAULT_GROUPS
from runtime.exits import BadInput

_EXPERT = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Group:
    """How one group of parameters learns. Norms and biases are never decayed, whatever `weight_decay` says."""

    lr_multiplier: float
    weight_decay: float

    def decay(self, dimensions: int) -> float:
        """Weight decay of a parameter of this group with so many dimensions."""
        return self.weight_decay if dimensions > 1 else 0.0


@dataclass(frozen=True)
class Trained:
    """The plan of a stage, equal on all ranks.

    elements: global size of every parameter by name, a tied embedding once; group_of: group of every trained
    parameter by name; groups: those with a trained parameter, by name, `DEFAULT_GROUPS` first.
    """

    elements: Mapping[str, int]
    group_of: Mapping[str, str]
    groups: Mapping[str, Group]

    def trains(self, name: str) -> bool:
        return name in self.group_of

    @property
    def partial_layers(self) -> bool:
        """Whether a parameter is trained in some layers and frozen in others, or is there in some layers alone."""
        seen: dict[str, set[bool]] = {}
        for name in self.elements:
            seen.setdefault(without_layer(name), set()).add(self.trains(name))
        return any(len(answers) > 1 for answers in seen.values())

    def counts(self) -> dict[str, int]:
        """Trained parameters (elements) by group."""
        totals = dict.fromkeys(self.groups, 0)
        for name, group in self.group_of.items():
            totals[group] += self.elements[name]
        return totals

    def describe(self) -> str:
        """One line for the log."""
        total, counts = sum(self.elements.values()), self.counts()
        parts = ", ".join(f"{group} {count:,}" for group, count in counts.items())
        trained = sum(counts.values())
        return f"training {trained:,} of {total:,} parameters ({100 * trained / total:.2f} %): {parts}"


def plan(config: Config, elements: Mapping[str, int]) -> Trained:
    """The trained set and its groups, from `stage` and `optimizer` and the sizes of all parameters by name.

    Raises BadInput for a pattern that matches nothing, a parameter that two groups claim, a group with nothing to
    train, experts of one layer of which only some are trained, and where nothing at all is trained.
    """
    names = trained_names(config.stage, elements)
    _check_experts(names, elements)
    group_of: dict[str, str] = {}
    claimed = config.optimizer.groups
    for group, wanted in claimed.items():
        for name in sorted(_found(wanted.match, elements, f"optimizer.groups.{group}.match") & names):
            if name in group_of:
                raise BadInput(f"optimizer.groups: {group_of[name]} and {group} both match {name}; narrow one of them")
            group_of[name] = group
        if group not in group_of.values():
            raise BadInput(f"optimizer.groups.{group}: all that it matches is frozen")
    group_of = {name: group_of.get(name) or default_group(name) for name in elements if name in names}
    common = config.optimizer.weight_decay
    groups = {group: Group(config.optimizer.lr_multipliers.get(group, 1.0), common) for group in DEFAULT_GROUPS}
    for group, wanted in claimed.items():
        own = wanted.weight_decay
        groups[group] = Group(wanted.lr_multiplier, common if own is None else own)
    populated = set(group_of.values())
    return Trained(dict(elements), group_of, {name: group for name, group in groups.items() if name in populated})


def trained_names(stage: StageConfig, names: Iterable[str]) -> set[str]:
    """Which of `names` the stage trains. Without `trainable`, all; with LoRA and without it, LoRA's factors alone. What
    the stage adds, these factors and a reward head, is trained in any case."""
    known = list(names)
    patterns = stage.trainable if stage.trainable is not None else [] if any(map(is_lora, known)) else ["*"]
    chosen = _found(patterns, known, "stage.trainable") | set(filter(is_added, known))
    chosen -= _found(stage.frozen, known, "stage.frozen")
    if stage.objective == "reward":
        chosen -= {name for name in chosen if name.startswith("output_layer.")}  # nobody asks for logits
    if not chosen:
        raise BadInput("stage.trainable and stage.frozen leave no parameter to train")
    return chosen


def _check_experts(trained: set[str], names: Iterable[str]) -> None:
    """A checkpoint keeps the optimiser state of a layer's experts as one, so all of them have it or none."""
    for name in names:
        first = _EXPERT.sub(".experts.0.", name)
        if (name in trained) != (first in trained):
            learning, other = (name, first) if name in trained else (first, name)
            raise BadInput(
                f"stage.trainable and stage.frozen train {learning} and not {other}; experts of a layer are trained "
                "together"
            )


def default_group(name: str) -> str:
    """Group of a parameter that no configured group claims. A tied head is named after the embedding, and is in it."""
    if name.startswith("output_layer."):
        return "head"
    first = name.partition(".")[0]
    return first if first in ("embedding", "adapter", "encoder") else "trunk"


def without_layer(name: str) -> str:
    """The name that a native checkpoint stacks all layers under."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def _found(patterns: Iterable[str], names: Iterable[str], key: str) -> set[str]:
    found: set[str] = set()
    known = list(names)
    for pattern in patterns:
        matched = matching([pattern], known)
        if not matched:
            near = get_close_matches(pattern, known, n=1, cutoff=0.0)
            hint = f"; parameters are named like {near[0]}" if near else ""
            raise BadInput(f"{key}: {pattern!r} matches no parameter of the model{hint}")
        found |= matched
    return found
