"""Speech without sound: a language model that continues text with the codes of its speech.

It replaces text-to-speech and codec where interleaved data is made from text alone (arXiv:2411.17607). The model is a
Hugging Face folder as `megaphone checkpoint export` writes it, with the `vocabulary.json` of its training corpus; it
was trained on the layout `tts`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import SynthesisConfig
from data_pipeline.codecs.weights import weights_identity
from data_pipeline.continuing import Opening, continued
from data_pipeline.drawing import Sampling, grammar_of_codes
from data_pipeline.exported_model import load_exported
from data_pipeline.layouts.assembly import MARKS, SPEAK
from data_pipeline.layouts.groups import ungroup
from data_pipeline.speech.continuing import codes_said
from data_pipeline.vocabulary import TOKENIZER_FILE, VOCABULARY_FILE, Vocabulary
from runtime.exits import BadInput

AUDIO_START, AUDIO_END = MARKS


def identity(name: str) -> str:
    """What decides the codes beside text, seed and settings, for content hashes."""
    return weights_identity(name, "lm")


def prepare(name: str, cache: Path) -> None:
    """Fetch the model if it is on the hub. Raises BadInput where it is not there, or has no vocabulary beside it."""
    _read(_folder(name) / VOCABULARY_FILE)


class TextToCode:
    """The model, ready to speak. `vocabulary` is the one that the corpus will have.

    Raises BadInput where the folder is no causal language model, or has another vocabulary.
    """

    def __init__(self, name: str, config: SynthesisConfig, vocabulary: Vocabulary) -> None:
        self._config = config
        self._vocabulary = vocabulary
        folder = _folder(name)
        _check_vocabulary(folder, vocabulary)
        what = f"corpus.voice=lm:{name}"
        self._model = load_exported(folder, what, vocabulary.size, device=config.device, bf16=config.bf16)
        self.speaker = f"lm-{Path(name).name}"

    def speak(self, texts: Sequence[str], seeds: Sequence[int]) -> list[dict[str, np.ndarray] | None]:
        """Codes of each text by codebook, int64 [rows, frames]; None for one that had not ended at its longest. The
        texts are continued together.

        A text's codes depend on the text and its seed, on what is beside it only where a draw falls between two
        codes to the last bits of their chances.
        """
        vocabulary = self._vocabulary
        opening = [vocabulary.special(SPEAK), vocabulary.special(AUDIO_START)]
        openings = [
            Opening([*vocabulary.encode_text(text), *opening], self._most_groups(text), seed)
            for text, seed in zip(texts, seeds, strict=True)
        ]
        grammar = grammar_of_codes(vocabulary, vocabulary.special(AUDIO_END))
        sampling = Sampling(self._config.temperature, self._config.top_p)
        said = [codes_said(one, grammar) for one in continued(self._model, openings, grammar, sampling)]
        return [ungroup(one.ids, vocabulary) if one.ended else None for one in said]

    def _most_groups(self, text: str) -> int:
        seconds = self._config.seconds_per_character * max(len(text), 1)
        return max(1, round(seconds / self._vocabulary.group_seconds))

    def seconds(self, codes: Mapping[str, np.ndarray]) -> float:
        """How long the speech of whole groups of codes is."""
        book = self._vocabulary.codebooks[0]
        return codes[book.name].shape[1] // book.per_group * self._vocabulary.group_seconds


# --- the folder -------------------------------------------------------------------------------------------------


def _folder(name: str) -> Path:
    """A folder here, or a snapshot of a hub repository. Raises BadInput where there is neither."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    from data_pipeline.codecs.weights import hub_name

    repository, revision = hub_name(name, "lm")
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError) as error:
        raise BadInput(f"corpus.voice=lm:{name} cannot be fetched: {_line(error)}") from error


def _check_vocabulary(folder: Path, vocabulary: Vocabulary) -> None:
    """Raises BadInput unless the model at `folder` was trained with the ids of `vocabulary`."""
    described, grown = (_read(folder / name) for name in (VOCABULARY_FILE, TOKENIZER_FILE))
    wanted = vocabulary.describe()
    for key, value in wanted.items():
        if described.get(key) != value:
            raise BadInput(
                f"corpus.voice: the model at {folder} has another vocabulary than this corpus: its {key} is "
                f"{described.get(key)}, here it is {value}"
            )
    if grown.get("model") != json.loads(vocabulary.tokenizer_json)["model"]:
        raise BadInput(f"corpus.voice: the model at {folder} has another text tokenizer than backbone.tokenizer")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(
            f"corpus.voice: {path} cannot be read ({error}); the model's vocabulary has to lie there"
        ) from error
    if not isinstance(content, dict):
        raise BadInput(f"corpus.voice: {path} holds no JSON object")
    return content


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
