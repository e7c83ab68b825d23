"""Where a corpus lives: in the cache, under the hash of all that determines it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import xxhash

from configs.schema import Config, SpeechSourceConfig
from data_pipeline.alignment.registry import open_aligner
from data_pipeline.building.listening import describe_features
from data_pipeline.cache import cache_root
from data_pipeline.codecs import codebooks_of, codec_identity, learns, open_codec
from data_pipeline.codecs.codec import Codec
from data_pipeline.codecs.whisper_kmeans import pooling
from data_pipeline.corpus import MANIFEST_FILE
from data_pipeline.cutting import cut_identity
from data_pipeline.packages import package_version
from data_pipeline.quality.registry import open_measures
from data_pipeline.remote.opening import corpus_at
from data_pipeline.sources import find_source
from data_pipeline.sources.speech import open_speech_source
from data_pipeline.speech import gives_codes, voice_identity
from data_pipeline.text_tokenizer import tokenizer_identity

BUILD_FORMAT = 4  # raised when the same settings come to give other bytes

# Settings of a corpus that do not change what is in it.
_NOT_CONTENT = {"folder", "workers", "task", "tasks", "damaged_share"}
_OF_TEXT = {"text", "voice", "speech_minutes", "text_characters"}  # of corpora made from text
_OF_SPEECH = {"speech", "spoken_roles", "require_text", "cut", "alignment"}  # of corpora of recorded speech
_NUMERIC_PACKAGES = ("numpy", "scikit-learn", "soxr", "torch", "transformers")


def corpus_folder(config: Config) -> Path:
    """The folder of the run's corpus, whether it is built or not: `corpus.folder` or what stands here for its URL, else
    one in the cache."""
    if config.corpus.folder is not None:
        return corpus_at(config.corpus.folder, config)
    content = json.dumps(corpus_identity(config), sort_keys=True)
    return cache_root(config) / "corpora" / f"{config.corpus.name}-{xxhash.xxh3_64_hexdigest(content.encode())}"


def codec_of(config: Config) -> Codec:
    """The run's codec, with the codebooks that its corpus learnt where it learns them."""
    return open_codec(config.codec, corpus_folder(config) if learns(config.codec) else None)


def synthesises(config: Config) -> bool:
    """Whether the corpus is text to which a text-to-code model gives codes: no sound is made, and no codec runs."""
    return config.corpus.speech is None and gives_codes(config.corpus.voice)


def says_turns(config: Config) -> bool:
    """Whether the corpus's voice says turns of conversations that came written."""
    return config.corpus.speech is not None and bool(config.corpus.spoken_roles)


def learns_codebooks(config: Config) -> bool:
    """Whether the codebooks are learnt from the corpus."""
    return learns(config.codec) and not synthesises(config)


def corpus_identity(config: Config) -> dict[str, Any]:
    """All that determines a corpus, JSON-ready. Raises BadInput for a source, voice, codec or package not there."""
    corpus = config.corpus
    books = codebooks_of(config.codec)
    if learns_codebooks(config):
        pooling(config.codec)
    unused = _NOT_CONTENT | (_OF_SPEECH if corpus.speech is None else _OF_TEXT)
    unused = unused - {"voice"} if says_turns(config) else unused
    unused = unused | {"quality" if synthesises(config) else "synthesis"}
    unused = unused | ({"vocabulary_rows"} if corpus.vocabulary_rows is None else set())
    unused = unused | ({"features"} if not corpus.features else set())
    if corpus.speech is None:
        material: dict[str, Any] = {"text": find_source(corpus.text).identity(), "voice": voice_identity(corpus.voice)}
    else:
        aligner = open_aligner(corpus.alignment)
        material = {
            "speech": _speech_identity(corpus.speech),
            "cut": cut_identity(corpus.cut),
            "aligner": aligner and aligner.identity(),
        }
        if says_turns(config):
            material["voice"] = voice_identity(corpus.voice)
    if not synthesises(config):
        material["measures"] = [measure.identity() for measure in open_measures(corpus.quality)]
    if corpus.features:
        material["features"] = describe_features(config)
    return {
        "format": BUILD_FORMAT,
        "corpus": {key: value for key, value in asdict(corpus).items() if key not in unused},
        "codec": [asdict(book) for book in books] if synthesises(config) else codec_identity(config.codec),
        "tokenizer": tokenizer_identity(config.backbone.tokenizer),
        "packages": {name: package_version(name) for name in _NUMERIC_PACKAGES},
        **material,
    }


_speech_identities: dict[str, str] = {}


def _speech_identity(speech: SpeechSourceConfig) -> str:
    """The source's identity, asked for once in a process: it lists all that there is."""
    key = repr(speech)
    if key not in _speech_identities:
        _speech_identities[key] = open_speech_source(speech).identity()
    return _speech_identities[key]


def is_finished(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).is_file()
