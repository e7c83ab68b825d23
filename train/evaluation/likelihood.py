"""How likely a model finds what is there: perplexity of text and of each codebook's codes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from configs.schema import MeasurementConfig
from data_pipeline.batch import Sample
from data_pipeline.build import cache_root
from data_pipeline.exported_model import load_exported
from data_pipeline.sample_bytes import DamagedSample
from data_pipeline.sources.evaluation import Item
from data_pipeline.vocabulary import TEXT
from runtime.exits import BadInput
from train.evaluation.figures import Figure, perplexity, ratio
from train.evaluation.measurement import Found, Record
from train.evaluation.subject import Subject
from train.generation.prompts import layout_of

if TYPE_CHECKING:
    import torch

OWN = "backbone_"
_TOKENS_AT_ONCE = 1024  # whose scores over the vocabulary are held in float32


class _Text(NamedTuple):
    ids: list[int]
    size: int  # bytes


class TextPerplexity:
    """`perplexity` of text a token, among ids of text alone, so that what the vocabulary grew by costs nothing; and
    `bits_per_byte`, which does not depend on the tokenizer. Where the backbone has weights, `backbone_perplexity` is
    its own, over the same ids, and `ratio` what became of it: 1 where nothing was forgotten.

    Documents are read in windows that do not overlap; the first token of each is given."""

    def __init__(self, subject: Subject, config: MeasurementConfig) -> None:
        self._subject = subject
        self._window = config.window

    @cached_property
    def _backbone(self) -> Any:
        """The backbone as it was before training; None where it began at random."""
        config = self._subject.config
        if not config.backbone.weights:
            return None
        from checkpoints.formats.gguf import materialise_huggingface

        folder = materialise_huggingface(str(config.backbone.weights), cache_root(config))
        evaluation, rows = config.evaluation, self._subject.vocabulary.text_size
        return load_exported(folder, str(folder), rows, device=evaluation.device, bf16=evaluation.bf16)

    def prepare(self, item: Item) -> _Text:
        """See `Measurement.prepare`."""
        text = item.text or (item.stored.utterance().text if item.stored else "")
        return _Text(self._subject.vocabulary.encode_text(text), len(text.encode()))

    def measure(self, prepared: Sequence[_Text]) -> list[Found]:
        """See `Measurement.measure`."""
        text = self._subject.vocabulary.ranges[TEXT].stop
        found = []
        for ids, size in prepared:
            windows = [ids[first : first + self._window] for first in range(0, len(ids), self._window)]
            windows = [window for window in windows if len(window) > 1]
            record: Record = {
                "tokens": sum(len(window) - 1 for window in windows),
                "bytes": size if windows else 0,
                "nats": sum(float(nats_of(self._subject.model, window, text).sum()) for window in windows),
            }
            if self._backbone is not None:
                record[OWN + "nats"] = sum(float(nats_of(self._backbone, window, text).sum()) for window in windows)
            found.append(Found(record))
        return found

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """See `Measurement.total`."""
        nats, tokens, sizes = ([float(record[name]) for record in records] for name in ("nats", "tokens", "bytes"))
        if not sum(tokens):
            raise BadInput("no text of the set is longer than a token")
        figures = {
            "perplexity": perplexity(nats, tokens),
            "bits_per_byte": ratio(nats, sizes, "bits", lambda value: value / math.log(2)),
        }
        if all(OWN + "nats" in record for record in records):
            own = [float(record[OWN + "nats"]) for record in records]
            lost = [one - other for one, other in zip(nats, own, strict=True)]
            figures |= {OWN + "perplexity": perplexity(own, tokens), "ratio": ratio(lost, tokens, "", math.exp)}
        return figures


class CodebookPerplexity:
    """Perplexity of a token of each codebook (by its name), of `audio` (all of them) and of `text`, where the loss of a
    layout covers them, over the whole vocabulary, as in training. A code drawn from its codebook at random would have
    the size of the codebook."""

    def __init__(self, subject: Subject, config: MeasurementConfig) -> None:
        self._subject = subject
        self._layout = layout_of(subject.config.mixture, config.layout or "continuation")
        if not self._layout.plain:
            raise BadInput(f"layout {self._layout.name} makes samples that no export reads: slots or several columns")

    def prepare(self, item: Item) -> Sample:
        """See `Measurement.prepare`."""
        utterance = self._subject.utterance(item)
        samples = self._layout([utterance], self._subject.vocabulary, np.random.default_rng(0))
        if len(samples) != 1 or len(samples[0].tokens) < 2:
            raise DamagedSample("members", f"{item.key}: no single sample of layout {self._layout.name}")
        return samples[0]

    def measure(self, prepared: Sequence[Sample]) -> list[Found]:
        """See `Measurement.measure`."""
        vocabulary = self._subject.vocabulary
        found = []
        for sample in prepared:
            nats = nats_of(self._subject.model, sample.tokens.tolist(), None)
            covered = sample.loss_weight[1:] > 0
            modality = vocabulary.modality_of(sample.tokens[1:])
            record: Record = {}
            for number, name in enumerate(vocabulary.modalities):
                which = covered & (modality == number)
                if which.any():
                    record[name] = [float(nats[which].sum()), int(which.sum())]
            found.append(Found(record))
        return found

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """See `Measurement.total`."""
        names = self._subject.vocabulary.modalities
        sums = {name: [record[name] for record in records if name in record] for name in names}
        figures = {name: _of(held) for name, held in sums.items() if held}
        audio = [
            [sum(part) for part in zip(*(record[name] for name in names[1:] if name in record), strict=True)]
            for record in records
            if any(name in record for name in names[1:])
        ]
        return figures | ({"audio": _of(audio)} if len(names) > 2 and audio else {})


def _of(held: Sequence[Sequence[float]]) -> Figure:
    return perplexity([nats for nats, _ in held], [count for _, count in held])


def nats_of(model: Any, ids: Sequence[int], among: int | None) -> np.ndarray:
    """-log p of each id after the first, float64 [ids - 1]; `among`: of ids below it alone (None: of all)."""
    import torch

    given = torch.tensor([list(ids)], device=model.device)
    with torch.inference_mode():
        logits = model(input_ids=given).logits[0, :-1]
        parts = [
            _nats(logits[first : first + _TOKENS_AT_ONCE, :among], given[0, 1 + first : 1 + first + _TOKENS_AT_ONCE])
            for first in range(0, len(logits), _TOKENS_AT_ONCE)
        ]
    return torch.cat(parts).double().cpu().numpy()


def _nats(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row of [tokens, rows]."""
    import torch

    return torch.nn.functional.cross_entropy(logits.float(), ids, reduction="none")
