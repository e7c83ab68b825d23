"""From a stage's config to what it minimises."""

from __future__ import annotations

from collections.abc import Mapping

from configs.checks.distillation import DISTILL
from configs.checks.ppo import PPO
from configs.checks.preference import PAIRS
from configs.schema import Config, StageKind
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import Layout, layouts_of
from runtime.exits import BadInput
from train.objectives.decoding import decoding
from train.objectives.distillation import Distillation
from train.objectives.next_token import NextToken, told_apart
from train.objectives.objective import StageObjective
from train.objectives.ppo import ProximalPolicy
from train.objectives.preference import DirectPreference
from train.objectives.reward import BradleyTerry


def objective_of(config: Config, corpus: Corpus) -> StageObjective:
    """The objective that `stage.objective` names. Raises BadInput where options and corpus do not go together."""
    if config.stage.kind is StageKind.decoder:
        return decoding(config, corpus.vocabulary)
    modalities, sources = corpus.vocabulary.modalities, told_apart(tuple(layouts_of(config.mixture.sources)))
    if config.stage.objective == DISTILL:
        return Distillation(NextToken(modalities, config.loss, sources), config.distillation, corpus.vocabulary)
    return objective_over(config, modalities, sources)


def objective_over(config: Config, modalities: tuple[str, ...], sources: tuple[str, ...] = ()) -> StageObjective:
    """The same over a vocabulary's modalities, text first, and the sources to be told apart."""
    if config.stage.objective == "dpo":
        return DirectPreference(modalities, config.preference, config.loss)
    if config.stage.objective == PPO:
        return ProximalPolicy(config.ppo, config.loss.chunk)
    if config.stage.objective == "reward":
        return BradleyTerry()
    return NextToken(modalities, config.loss, sources)


def check_objective(objective: str, layouts: Mapping[str, Layout]) -> None:
    """Raises BadInput for a mixture, its layouts by source, that an objective cannot learn from: an sft without a
    layout of chats, pairs for an objective that compares none, and the other way round."""
    for source, layout in layouts.items():
        if layout.of_pairs != (objective in PAIRS):
            wanted = (
                "takes layout preferences alone" if objective in PAIRS else f"learns no pairs; {' and '.join(PAIRS)} do"
            )
            raise BadInput(f"source {source}: stage.objective={objective} {wanted}, and this layout is {layout.name}")
    if objective == "sft" and not any(layout.whole for layout in layouts.values()):
        names = ", ".join(dict.fromkeys(layout.name for layout in layouts.values()))
        raise BadInput(
            f"stage.objective=sft: no source of the mixture has a layout of chats (chat, tts_dialogue, asr_dialogue), "
            f"only {names}; choose another mixture, or objective pretrain"
        )
