"""A corpus that a model says: texts continued to codes after prompts of another corpus, shard by shard.

The data engine of Step-Audio's small TTS (2502.11946, section 5.1.1): a large model, asked with [system prompt; prompt
text; target text; prompt code], goes on with the codes of the target. One that was fine-tuned to chats (`tts_dialogue`)
is asked as in its chats. Which text is said after which prompt, and all that is drawn, follows from seeds and numbers:
a shard is the same whoever makes it, and when.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from configs.schema import Config
from data_pipeline.corpus import SPLITS, Corpus, describe_shard
from data_pipeline.damage import DamageTally
from data_pipeline.layouts import Layout, layouts_of
from data_pipeline.layouts.cuts import joined
from data_pipeline.layouts.groups import check_codes, group_length, lay_groups, ungroup
from data_pipeline.permutation import seed_of
from data_pipeline.quality.filters import parse_filter
from data_pipeline.shards import DamagedSample, ShardReader, ShardWriter, read_index, replace_atomically
from data_pipeline.sources.text import find_source
from data_pipeline.speech.continuing import Continuation
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Vocabulary
from runtime.exits import BadInput, StoppedEarly
from runtime.signals import StopFlag
from train.generation.hearing import OF_CODES, Hearing, Voice, recording_in
from train.generation.sampling import Speaker, SpeechPrompt, speech_prompt
from train.generation.telling import damage_file

LAYOUTS = ("tts_dialogue", "tts")  # that a model can be asked with


@dataclass(frozen=True)
class Script:
    """What is said: `texts`, `of_document` at a time after one of `prompts` (shard, sample), in shards of `size`."""

    texts: tuple[str, ...]
    prompts: tuple[tuple[Path, int], ...]
    of_document: int
    size: int
    validation_share: float

    @cached_property
    def shards(self) -> dict[str, range]:
        """Numbers of the texts of each shard, by file. The last ones are for validation."""
        size = max(self.size // self.of_document, 1) * self.of_document
        starts = range(0, len(self.texts), size)
        held_out = round(self.validation_share * len(starts))
        if self.validation_share and not held_out and len(starts) > 1:
            held_out = 1
        found = {}
        for number, start in enumerate(starts):
            split = SPLITS[number >= len(starts) - held_out]
            found[f"{split}/speech-{number:06d}.tar"] = range(start, min(start + size, len(self.texts)))
        return found


def script_of(config: Config, corpus: Corpus) -> Script:
    """Raises BadInput where there is too little text, or no prompt."""
    options = config.generation
    pieces = [piece for document in find_source(options.texts).documents() for piece in document.pieces]
    if len(pieces) < options.utterances:
        raise BadInput(f"generation.utterances={options.utterances}: {options.texts} has {len(pieces)} texts")
    order = np.random.default_rng(options.seed).permutation(len(pieces))[: options.utterances]
    damage = DamageTally(config.loader.damaged_share)
    prompts = tuple(_prompts(config, corpus, damage))
    if not prompts:
        unread = f" ({sum(damage.kinds.values())} damaged shards, such as {damage.names[0]})" if damage.names else ""
        raise BadInput(
            f"generation.prompts: no utterance of {corpus.folder} has speech, text and what is asked for{unread}"
        )
    return Script(
        tuple(pieces[number] for number in order),
        prompts,
        of_document=options.document,
        size=options.shard,
        validation_share=options.validation_share,
    )


def _prompts(config: Config, corpus: Corpus, damage: DamageTally) -> Iterator[tuple[Path, int]]:
    keeps = None if config.generation.prompts is None else parse_filter(config.generation.prompts)
    for shard in corpus.shards("train"):
        try:
            index = read_index(shard)
        except DamagedSample as damaged:
            damage.add(damaged)
            print(f"megaphone: {damaged}: no prompt comes from this shard", flush=True)
            continue
        fit = index.spoken & (index.characters > 0) & (index.duration <= config.generation.prompt_seconds)
        if keeps is not None:
            fit &= keeps.keep(index)
        yield from ((shard, int(sample)) for sample in np.flatnonzero(fit))


# --- asking -----------------------------------------------------------------------------------------------------------


def layout_asked(config: Config) -> Layout:
    """The layout of the stage's mixture that the model is asked with. Raises BadInput where it has none."""
    layouts = {layout.name: layout for layout in layouts_of(config.mixture.sources).values()}
    for name in LAYOUTS:
        if name in layouts:
            if not layouts[name].plain:
                raise BadInput(f"layout {name} with frames: no export says these yet")
            return layouts[name]
    raise BadInput(f"the mixture of a stage that generates speech needs a layout {' or '.join(LAYOUTS)}")


def asked(
    layout: Layout, prompt: Utterance, text: str, vocabulary: Vocabulary, *, system: str, prompted: bool, longest: int
) -> SpeechPrompt:
    """What the model is given to say `text` after `prompt`: the beginning of a sample of `layout`, in which one group
    of codes stands for those that are asked for. Raises BadInput for codes outside the vocabulary."""
    one = {book.name: np.zeros((book.rows, book.per_group), np.int64) for book in vocabulary.codebooks}
    rng = np.random.default_rng(0)
    target = replace(prompt, key="target", text=text, words=(), codes=one)
    if layout.name == "tts_dialogue":
        samples = layout([prompt, target], vocabulary, rng)
        (sample,) = [sample for sample in samples if sample.key.endswith("/target")]
        return speech_prompt(sample, 0, vocabulary, longest)
    texts = [system, prompt.text, text] if prompted else [system, text]
    written = joined((part, prompt.language) for part in texts if part)
    given = len(lay_groups(prompt, vocabulary)) if prompted else 0
    codes = _whole(prompt, given, one, vocabulary) if given else one
    (sample,) = layout([replace(target, text=written, codes=codes)], vocabulary, rng)
    return speech_prompt(sample, given, vocabulary, longest)


def _whole(prompt: Utterance, groups: int, one: dict[str, np.ndarray], vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The prompt's whole groups of codes, and one more."""
    return {
        book.name: np.concatenate([prompt.codes[book.name][:, : groups * book.per_group], one[book.name]], axis=1)
        for book in vocabulary.codebooks
    }


# --- saying -----------------------------------------------------------------------------------------------------------


class Recital:
    """One process's part in saying a script, at `folder`. hearing: measures how it sounds; None: nobody does."""

    def __init__(
        self,
        config: Config,
        script: Script,
        speaker: Speaker,
        folder: Path,
        stop: StopFlag,
        hearing: Hearing | None = None,
    ) -> None:
        self._config = config
        self._options = config.generation
        self._script = script
        self._speaker = speaker
        self._folder = folder
        self._stop = stop
        self._hearing = hearing
        self._damage = DamageTally(config.loader.damaged_share)  # of prompts, all that were read
        self._met = DamageTally(config.loader.damaged_share)  # of those of the shard that is being made
        self._prompt = lru_cache(self._options.batch)(self._find_prompt)
        self._layout = layout_asked(config)
        self._layout.check(speaker.vocabulary)
        source = find_source(config.generation.texts)
        self._language, self._licence = source.language, source.licence

    def is_done(self, file: str) -> bool:
        return done_file(self._folder, file).is_file()

    def write(self, file: str) -> None:
        """Make the shard `file`. Raises StoppedEarly, with nothing of it left, and BadInput where too many prompts are
        damaged."""
        numbers = self._script.shards[file]
        self._met.take()  # what a shard met that was then stopped
        with ShardWriter(self._folder / file, self._speaker.vocabulary) as shard:
            for start in range(numbers.start, numbers.stop, self._options.batch):
                if self._stop:
                    raise StoppedEarly(f"stopped by {self._stop.name}; the same command goes on with this shard")
                for utterance in self._say(range(start, min(start + self._options.batch, numbers.stop))):
                    shard.write(utterance)
        met = self._met.take()
        self._damage.merge(met)
        if met.kinds:
            told = json.dumps({"kinds": met.kinds, "names": met.names})
            replace_atomically(damage_file(self._folder / file), told.encode())
            print(f"megaphone: {file}: damaged prompts passed over: {', '.join(met.names)}", flush=True)
        entry = describe_shard(self._folder / file, self._folder)
        replace_atomically(done_file(self._folder, file), json.dumps(entry).encode())
        seconds = entry["duration"]
        print(f"megaphone: {file}: {entry['samples']} utterances, {seconds:.0f} s of speech", flush=True)

    def _say(self, numbers: range) -> Iterator[Utterance]:
        options, vocabulary = self._options, self._speaker.vocabulary
        found = [self._prompt(number // self._script.of_document) for number in numbers]
        prompts = [prompt for prompt, _ in found]
        questions = [
            self._limited(
                asked(
                    self._layout,
                    prompt,
                    self._script.texts[number],
                    vocabulary,
                    system=options.system,
                    prompted=options.prompted,
                    longest=options.longest,
                ),
                self._script.texts[number],
            )
            for number, prompt in zip(numbers, prompts, strict=True)
        ]
        seeds = [seed_of(options.seed, "codes", number) for number in numbers]
        said = self._speaker.speak(questions, seeds)
        voices: dict[str, Voice | None] = {}  # of a document's one prompt
        for number, (prompt, place), one in zip(numbers, found, said, strict=True):
            utterance = self._utterance(number, prompt, one)
            if self._hearing is not None:
                if self._options.prompted and utterance.document not in voices:
                    recording = recording_in(*place)
                    voices[utterance.document] = self._hearing.voice(prompt, recording)
                heard = self._hearing.quality(utterance, voices.get(utterance.document))
                utterance = replace(utterance, quality=utterance.quality | _rounded(heard))
            yield utterance

    def _limited(self, question: SpeechPrompt, text: str) -> SpeechPrompt:
        if self._options.seconds_per_character is None:
            return question
        seconds = self._options.seconds_per_character * len(text)
        most = max(round(seconds / self._speaker.vocabulary.group_seconds), 1)
        return replace(question, groups=min(question.groups, most))

    def _find_prompt(self, document: int) -> tuple[Utterance, tuple[Path, int]]:
        """The prompt of a document and its place: the first that is drawn and not damaged."""
        rng, prompts = np.random.default_rng(seed_of(self._options.seed, "prompt", document)), self._script.prompts
        damaged: set[int] = set()
        while len(damaged) < len(prompts):
            drawn = int(rng.integers(len(prompts)))
            if drawn in damaged:
                continue
            shard, sample = prompts[drawn]
            self._met.read += 1
            try:
                with ShardReader(shard) as reader:
                    prompt = reader.read(sample)
                check_codes(prompt, self._speaker.vocabulary)
                return prompt, prompts[drawn]
            except DamagedSample as error:
                self._met.add(error)
            except BadInput:
                self._met.add(DamagedSample("codes", f"{shard} sample {sample}"))
            damaged.add(drawn)
            self._met.judge()
        raise BadInput(f"generation.prompts: all {len(prompts)} are damaged, such as {self._met.names[0]}")

    def _utterance(self, number: int, prompt: Utterance, said: Continuation) -> Utterance:
        vocabulary, text = self._speaker.vocabulary, self._script.texts[number]
        groups = said.ids.reshape(-1, group_length(vocabulary))
        seconds = len(groups) * vocabulary.group_seconds
        values = (float(said.ended), repeated_share(groups), len(text) / seconds)
        return Utterance(
            key=f"said-{number:08d}",
            text=text,
            document=f"said-{number // self._script.of_document:08d}",
            language=self._language,
            speaker=prompt.speaker,
            duration=seconds,
            source=f"said by {self._config.stage.weights}",
            licence=self._licence,
            recording=f"{prompt.document}/{prompt.key}" if self._options.prompted else "",
            style=prompt.style,
            quality=_rounded(dict(zip(OF_CODES, values, strict=True))),
            codes=ungroup(said.ids, vocabulary),
        )


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def repeated_share(groups: np.ndarray) -> float:
    """Of groups of codes [n, group length], those that are the one before again."""
    return float((groups[1:] == groups[:-1]).all(axis=1).mean()) if len(groups) > 1 else 0.0


def done_file(folder: Path, file: str) -> Path:
    return (folder / file).with_suffix(".done.json")
