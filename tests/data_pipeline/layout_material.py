"""Vocabularies and utterances for tests of layouts: small ones of the shapes that published systems have."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tokenizers import Tokenizer, models, normalizers

from data_pipeline.batch import Sample
from data_pipeline.layouts import find_layout
from data_pipeline.utterance import Utterance, Word
from data_pipeline.vocabulary import Codebook, Vocabulary
from tests.data_pipeline.synthetic import SPECIALS, make_vocabulary

ALL_SPECIALS = (
    *SPECIALS, "<|BOT|>", "<|EOT|>", "<|begin_of_text|>", "<|end_of_text|>", "<unit>", "<|listen|>", "<sep>",
    "<|system|>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eot_id|>",
)  # fmt: skip
GROUPED = replace(make_vocabulary(), specials=ALL_SPECIALS)
RESIDUAL = replace(GROUPED, codebooks=(Codebook("mimi", 16, 12.5, rows=4),))
SINGLE = replace(GROUPED, codebooks=(Codebook("units", 24, 50.0),))
MIMI = replace(GROUPED, codebooks=(Codebook("mimi", 2051, 12.5, rows=32),))  # Sesame CSM's
GLM = replace(GROUPED, codebooks=(Codebook("audio", 16384, 12.5),))


def step_audio() -> Vocabulary:
    """Step-Audio's ranges: text 65536, no special tokens of ours, linguistic 1024, semantic 4096. The tokenizer is
    like its SentencePiece model: `<s>` 1, `<|EOT|>` 3, `<|BOT|>` 4, bytes for what it does not know, and a dummy space
    before all it is given, which here joins with a letter h."""
    fixed = ["<unk>", "<s>", "</s>", "<|EOT|>", "<|BOT|>"]
    characters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.!?[]"
    names = [*fixed, *(f"<0x{byte:02X}>" for byte in range(256)), *characters, "▁h"]
    model = models.BPE({name: i for i, name in enumerate(names)}, [("▁", "h")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return Vocabulary(
        text_size=65536,
        specials=(),
        codebooks=(Codebook("linguistic", 1024, 16.67, per_group=2), Codebook("semantic", 4096, 25.0, per_group=3)),
        tokenizer_json=tokenizer.to_str(),
        end_of_text="<|EOT|>",
        multiple=37376,
    )


def lay(name: str, utterances: list[Utterance], vocabulary: Vocabulary, seed: int = 0, **options) -> list[Sample]:
    layout = find_layout(name, options)
    layout.check(vocabulary)
    return layout(utterances, vocabulary, np.random.default_rng(seed))


def speak(vocabulary: Vocabulary, seconds: float, rng: np.random.Generator, text: str = "", **fields) -> Utterance:
    """An utterance with random codes of every codebook; the words of `text` are spread evenly over its time."""
    codes = {
        book.name: rng.integers(0, book.size, (book.rows, round(seconds * book.rate))) for book in vocabulary.codebooks
    }
    found = text.split()
    each = seconds / max(1, len(found))
    words = tuple(Word(word.strip(",.!?"), i * each, (i + 0.9) * each) for i, word in enumerate(found))
    settings = {"key": "u", "document": "d", "duration": seconds, "words": words, "codes": codes} | fields
    return Utterance(text=text, **settings)


def said(sample: Sample, vocabulary: Vocabulary) -> list[str | int]:
    """A one-column sample as text and numbers: special tokens by name, runs of text as text, runs of codes as how many
    ids they have, runs of feature slots as minus so many."""
    parts: list[str | int] = []
    ids = sample.tokens.tolist()
    at = 0
    while at < len(ids):
        end = at + 1
        if ids[at] == -1 or sample.modality[at]:
            while end < len(ids) and (ids[end] == -1, sample.modality[end] > 0) == (ids[at] == -1, ids[at] >= 0):
                end += 1
            parts.append(at - end if ids[at] == -1 else end - at)
        elif _special(ids[at], vocabulary):
            parts.append(vocabulary.token_name(ids[at]))
        else:
            while end < len(ids) and ids[end] >= 0 and not sample.modality[end] and not _special(ids[end], vocabulary):
                end += 1
            parts.append(vocabulary.decode_text(ids[at:end]))
        at = end
    return parts


def _special(token: int, vocabulary: Vocabulary) -> bool:
    return token >= vocabulary.text_size or vocabulary.token_name(token) == vocabulary.end_of_text


def weights(sample: Sample, vocabulary: Vocabulary) -> list[tuple[str | int, float]]:
    """`said`, each with the loss weight that all its tokens have."""
    found = []
    at = 0
    for part in said(sample, vocabulary):
        if isinstance(part, int):
            length = abs(part)
        else:
            length = 1 if _special(int(sample.tokens[at]), vocabulary) else len(vocabulary.encode_text(part))
        (weight,) = set(sample.loss_weight[at : at + length].tolist())
        found.append((part, weight))
        at += length
    assert at == len(sample)
    return found
