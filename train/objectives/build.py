"""From a stage's config to what it minimises."""

from __future__ import annotations

from collections.abc import Mapping

from configs.schema import Config
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import Layout, layouts_of
from runtime.exits import BadInput
from train.objectives.next_token import NextToken, told_apart
from train.objectives.objective import StageObjective


def objective_of(config: Config, corpus: Corpus) -> StageObjective:
    """The objective that `stage.objective` names. Raises BadInput where options and corpus do not go together."""
    sources = told_apart(tuple(layouts_of(config.mixture.sources)))
    return NextToken(corpus.vocabulary.modalities, config.loss, sources)


def check_objective(objective: str, layouts: Mapping[str, Layout]) -> None:
    """Raises BadInput for an sft over a mixture, its layouts by source, that has no layout of chats."""
    if objective == "sft" and not any(layout.whole for layout in layouts.values()):
        names = ", ".join(dict.fromkeys(layout.name for layout in layouts.values()))
        raise BadInput(
            f"stage.objective=sft: no source of the mixture has a layout of chats (chat, tts_dialogue, asr_dialogue), "
            f"only {names}; choose another mixture, or objective pretrain"
        )
