"""Making a round: the policy's weights go to the generator, it answers, and four models say what they think of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch.distributed as dist

from checkpoints.agreement import gather, highest, on_first_rank
from checkpoints.maps import describe
from checkpoints.saving import Contents, Saver
from configs.schema import Config, Precision
from data_pipeline.batch import Pack, Sample, Target, collate
from data_pipeline.continuing import Opening, Said
from data_pipeline.drawing import Sampling, grammar_of_text
from data_pipeline.packing import fill_packs, filler
from data_pipeline.permutation import seed_of
from data_pipeline.vocabulary import Vocabulary
from train.engines.actor_critic import ActorCritic
from train.engines.protocol import Engine
from train.exporting import export_language_model
from train.inference.engine import has_engine, open_engine
from train.models.heads.language import LANGUAGE
from train.models.heads.reward import REWARD
from train.objectives.ppo import Reading
from train.reinforcement.prompts import Prompt
from train.reinforcement.rollout import Rollout, reading

FOLDER = "policy"  # of a run: the weights on their way to the generator
_DOING = "cannot hand the policy to its generator"


class Maker:
    """Every rank holds one and calls it in the same places, `between` two parts of the work with it. Each that has an
    engine asks it a share of the questions."""

    def __init__(
        self, config: Config, engine: ActorCritic, vocabulary: Vocabulary, between: Callable[[], None]
    ) -> None:
        self._config = config
        self._engine = engine
        self._vocabulary = vocabulary
        self._between = between
        self._folder = Path(config.run.folder) / FOLDER
        self._inference = (
            open_engine(
                config.inference,
                rows=vocabulary.size,
                device=str(engine.device),
                bf16=config.train.precision is Precision.bf16,
                longest=config.train.sequence_length,
                batch=config.ppo.batch,
            )
            if has_engine(config.inference, dist.get_rank())
            else None
        )

    def make(self, name: str, step: int, prompts: Sequence[Prompt]) -> list[Rollout]:
        """An answer to each prompt by the policy after `step` steps, judged; the same on all ranks. What is drawn
        follows from the prompts' order and `name`."""
        export = self._export(step)
        if self._inference is not None:
            self._inference.take(export)
        rollouts = self._answered(name, prompts)
        size = self._config.train.global_batch
        judged: list[Rollout] = []
        for start in range(0, len(rollouts), size):
            self._between()
            judged += self._judged(rollouts[start : start + size])
        return judged

    def clear(self) -> None:
        """Remove what went to the generator. For one rank."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _export(self, step: int) -> Path:
        """The policy's weights as they are now, as a folder of transformers."""
        out = self._folder / "hf"
        on_first_rank(self.clear, _DOING)
        contents = Contents(
            state={},
            topology=asdict(self._config.parallel),
            vocabulary=self._vocabulary.describe(),
            texts=self._vocabulary.files(),
            backbone=describe(self._config.backbone),
        )
        native = Saver(self._folder).save(step, self._engine.sharded_state(optimizer=False, loading=False), contents)
        precision = self._config.train.precision
        on_first_rank(lambda: export_language_model(native, out, self._config.backbone, dtype=precision), _DOING)
        on_first_rank(lambda: shutil.rmtree(native), _DOING)
        return out

    def _answered(self, name: str, prompts: Sequence[Prompt]) -> list[Rollout]:
        shared, size = self._config.inference.tensor_parallel, self._config.ppo.batch
        engines = -(-dist.get_world_size() // shared)
        mine = list(range(dist.get_rank() // shared, len(prompts), engines)) if self._inference is not None else []
        found: dict[int, Rollout] = {}
        for start in range(0, -(-len(prompts) // engines), size):
            self._between()
            part = mine[start : start + size]
            for turn, said in zip(part, self._said(name, prompts, part), strict=True):
                prompt = prompts[turn]
                ended = said.ids[-1] == prompt.end
                words = said.ids[:-1] if ended else said.ids
                found[turn] = Rollout(
                    key=prompt.key,
                    prompt=prompt.ids,
                    answer=said.ids,
                    rest=prompt.closing if ended else (prompt.end, *prompt.closing),
                    ended=ended,
                    text=self._vocabulary.decode_text(list(words)),
                    generator=said.log_probs,
                )
        everyone = {turn: rollout for part in gather(found) for turn, rollout in part.items()}
        return [everyone[turn] for turn in range(len(prompts))]

    def _said(self, name: str, prompts: Sequence[Prompt], turns: Sequence[int]) -> list[Said]:
        """Tokens are drawn as likely as the model finds them, among text and the end: what is learnt is then the policy
        that spoke."""
        if self._inference is None or not turns:
            return []
        (end,) = {prompts[turn].end for turn in turns}
        openings = [
            Opening(prompts[turn].ids, self._config.ppo.longest, seed_of(self._config.train.seed, "answer", name, turn))
            for turn in turns
        ]
        return self._inference.continued(openings, grammar_of_text(self._vocabulary, end), Sampling(), tell=True)

    def _judged(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The same answers with what the trainer's models say of them."""
        engine, tokens, firsts = self._engine, 0, []
        for rollout in rollouts:
            firsts.append(tokens)
            tokens += len(rollout.answer)
        each = [rollout.read_at(first) for rollout, first in zip(rollouts, firsts, strict=True)]
        last = [rollout.read_last(number) for number, rollout in enumerate(rollouts)]
        policy = self._read(engine.policy, LANGUAGE, rollouts, each, tokens)
        reference = self._read(engine.reference, LANGUAGE, rollouts, each, tokens)
        values = self._read(engine.critic, REWARD, rollouts, each, tokens)
        rewards = self._read(engine.reward, REWARD, rollouts, last, len(rollouts))

        def part(numbers: list[float], turn: int) -> tuple[float, ...]:
            return tuple(numbers[firsts[turn] : firsts[turn] + len(rollouts[turn].answer)])

        return [
            replace(
                rollout,
                policy=part(policy, turn),
                reference=part(reference, turn),
                values=part(values, turn),
                reward=rewards[turn],
            )
            for turn, rollout in enumerate(rollouts)
        ]

    def _read(
        self, engine: Engine, head: str, rollouts: Sequence[Rollout], targets: Sequence[Target], terms: int
    ) -> list[float]:
        """Numbers of `engine`'s `head` at the places that the answers' `targets` give them."""
        samples = [
            reading(rollout, self._vocabulary, target) for rollout, target in zip(rollouts, targets, strict=True)
        ]
        packs = shared_packs(self._config, self._vocabulary, engine, samples)
        size = self._config.train.micro_batch
        batches = [collate(packs[start : start + size]) for start in range(0, len(packs), size)]
        return engine.evaluate(batches, [], Reading(head, terms, self._config.loss.chunk)).sums


def shared_packs(config: Config, vocabulary: Vocabulary, engine: Engine, samples: Sequence[Sample]) -> list[Pack]:
    """This data-parallel rank's share of `samples` in packs: as many on every rank, whole micro-batches of them, and
    enough of those to fill the pipeline."""
    length = config.train.sequence_length
    end_of_text = vocabulary.special(vocabulary.end_of_text)
    mine = samples[engine.data_rank :: engine.data_size]
    packs = fill_packs(mine, length, end_of_text) if mine else []
    unit = config.train.micro_batch * config.parallel.pipeline
    (most,) = highest(-(-len(packs) // unit) * unit)
    return packs + [filler(length, end_of_text)] * (most - len(packs))
