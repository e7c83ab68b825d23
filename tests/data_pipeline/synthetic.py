"""A small corpus made of nothing: seeded words, word times and codes, in the same shards as a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from configs.schema import Config, LoaderConfig, MixtureConfig, SourceConfig, TrainConfig
from data_pipeline.corpus import write_manifest
from data_pipeline.shards import ShardWriter
from data_pipeline.utterance import Utterance, Word
from data_pipeline.vocabulary import Codebook, Vocabulary

SPECIALS = ("<|audio_start|>", "<|audio_end|>", "<|transcribe|>", "<|speak|>")
LINGUISTIC = Codebook("linguistic", size=32, rate=16.67, per_group=2)
SEMANTIC = Codebook("semantic", size=64, rate=25.0, per_group=3)
SENTENCE = "in the beginning was a word and it went out over many waters to find another, slowly"
WORDS = SENTENCE.split()
FEATURES = {"toy": (50, 16), "toy_mel": (100, 8)}  # of an encoder called toy: frames a second, width


def make_vocabulary() -> Vocabulary:
    """A byte-level BPE over `WORDS`, four special tokens, and codebooks of 32 and 64 entries laid 2 and 3 a group."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([SENTENCE] * 3, trainer)
    return Vocabulary(
        text_size=tokenizer.get_vocab_size(),
        specials=SPECIALS,
        codebooks=(LINGUISTIC, SEMANTIC),
        tokenizer_json=tokenizer.to_str(),
    )


def make_utterance(rng: np.random.Generator, key: str, document: str, *, spoken: bool = True) -> Utterance:
    """Three to a dozen words; if spoken, 0.3 s each, with codes of both codebooks."""
    words = rng.choice(WORDS, int(rng.integers(3, 13))).tolist()
    text = " ".join(words).capitalize() + "."
    if not spoken:
        return Utterance(key=key, text=text, document=document, source="synthetic", licence="CC0-1.0")
    duration = 0.3 * len(words) + 0.1
    codes = {book.name: rng.integers(0, book.size, (1, round(duration * book.rate))) for book in (LINGUISTIC, SEMANTIC)}
    times = [0.05 + 0.3 * i for i in range(len(words))]
    timed = tuple(Word(found, at, at + 0.25) for found, at in zip(text.removesuffix(".").split(), times, strict=True))
    return Utterance(
        key=key,
        text=text,
        document=document,
        speaker="nobody",
        duration=duration,
        words=timed,
        source="synthetic",
        licence="CC0-1.0",
        codes=codes,
    )


def listen(utterance: Utterance) -> Utterance:
    """`utterance` with what the toy encoder hears: a vector of its own for each word, with noise, and zeros between."""
    features = {}
    for name, (rate, width) in FEATURES.items():
        rng = np.random.default_rng([width, *utterance.key.encode()])
        heard = 0.1 * rng.standard_normal((rate * round(utterance.duration * 50) // 50, width))
        for word in utterance.words:
            sound = np.random.default_rng(list(word.text.lower().encode())).standard_normal(width)
            heard[round(word.start * rate) : round(word.end * rate)] += sound
        features[name] = heard.astype(np.float16)
    return replace(utterance, features=features)


def make_corpus(
    folder: Path,
    *,
    train_documents: int = 24,
    valid_documents: int = 6,
    documents_per_shard: int = 8,
    unspoken_every: int = 4,
    seed: int = 0,
    audio: bytes | None = None,
    vocabulary: Vocabulary | None = None,
    heard: bool = False,
) -> Path:
    """Write a finished corpus to `folder`, which is returned. Documents have one to four utterances; each
    `unspoken_every`-th is text only. `audio`: bytes to store as every spoken utterance's flac member.
    `vocabulary`: another one than `make_vocabulary`'s, with codebooks of the same names. `heard`: with `FEATURES`."""
    rng = np.random.default_rng(seed)
    vocabulary = vocabulary or make_vocabulary()
    for split, documents in (("train", train_documents), ("valid", valid_documents)):
        for shard, first in enumerate(range(0, documents, documents_per_shard)):
            with ShardWriter(folder / split / f"shard-{shard:06d}.tar", vocabulary) as writer:
                for number in range(first, min(first + documents_per_shard, documents)):
                    name = f"{split}-{number:04d}"
                    spoken = number % unspoken_every != unspoken_every - 1
                    for part in range(int(rng.integers(1, 5))):
                        utterance = make_utterance(rng, f"{name}-{part}", name, spoken=spoken)
                        utterance = listen(utterance) if heard and spoken else utterance
                        writer.write(utterance, audio=audio if spoken else None)
    kinds = {"toy": "vectors", "toy_mel": "mel"}
    features = {name: {"encoder": "toy", "kind": kinds[name], "width": width} for name, (_, width) in FEATURES.items()}
    write_manifest(
        folder,
        name="synthetic",
        vocabulary=vocabulary,
        codecs={
            "synthetic": {
                "seed": seed,
                "codec": '{"kind": "synthetic"}',
                "codebooks": {book.name: {} for book in vocabulary.codebooks},
            }
        },
        features=features if heard else {},
    )
    return folder


def make_config(weights: dict[str, float] | None = None, **train: int) -> Config:
    """A config whose mixture has one source for each layout in `weights`, four lanes and small windows."""
    weights = weights or {"asr": 1.0, "continuation": 2.0, "interleaved": 1.0, "text": 1.0, "tts": 1.0}
    sources = {layout: SourceConfig(layout=layout, weight=weight) for layout, weight in weights.items()}
    defaults = {"sequence_length": 128, "global_batch": 4, "validation_packs": 4, "seed": 7}
    return Config(
        mixture=MixtureConfig(name="synthetic", sources=sources),
        loader=LoaderConfig(lanes=4, packing_window=3, prefetch=0),
        train=TrainConfig(**(defaults | train)),
    )
