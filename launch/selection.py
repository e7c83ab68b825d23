"""What a command line chose: a recipe, a scale, a stage and overrides, and the configs that follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from configs.compose import compose_stage
from configs.recipe import load_recipe
from configs.schema import Config
from launch.notify import hide, hide_words
from runtime.exits import BadInput


@dataclass(frozen=True)
class Selection:
    """`recipe=`, `scale=` and `stage=` of a command line, and its other words."""

    recipe: str | None
    scale: str | None
    stage: str | None
    overrides: tuple[str, ...]

    def stages(self) -> list[Config]:
        """The resolved config of every stage of the recipe, in order. Raises BadInput where none is given."""
        if self.recipe is None:
            raise BadInput("give recipe=<name>, such as recipe=quickstart")
        if self.stage is not None:
            raise BadInput("run takes all stages of a recipe; for one of them: megaphone train ... stage=" + self.stage)
        return [self._compose(stage) for stage in load_recipe(self.recipe).stages]

    def one(self) -> Config:
        """The resolved config of the one stage that is meant."""
        return self._compose(self.stage)

    def first(self) -> Config:
        """The stage that is meant, or the recipe's first: for what all its stages share, such as the corpus."""
        if self.recipe is None or self.stage is not None:
            return self.one()
        return self._compose(next(iter(load_recipe(self.recipe).stages)))

    def _compose(self, stage: str | None) -> Config:
        return hide(compose_stage(self.recipe, self.scale, stage, list(self.overrides)))


def read_words(words: Sequence[str]) -> Selection:
    """Sort the words of a command line. Raises BadInput where a choice is made twice."""
    chosen: dict[str, str] = {}
    overrides = []
    for word in hide_words(words):
        key, equals, value = word.partition("=")
        if not equals or key not in ("recipe", "scale", "stage"):
            overrides.append(word)
        elif key in chosen:
            raise BadInput(f"{key} is given twice: {chosen[key]} and {value}")
        elif not value:
            raise BadInput(f"{key}= names nothing")
        else:
            chosen[key] = value
    return Selection(chosen.get("recipe"), chosen.get("scale"), chosen.get("stage"), tuple(overrides))
