"""Speech without sound: a language model that continues text with the codes of its speech.

It replaces text-to-speech and codec where interleaved data is made from text alone (arXiv:2411.17607). The model is a
Hugging Face folder as `megaphone checkpoint export` writes it, with the `vocabulary.json` of its training corpus; it
was trained on the layout `tts`. Only tokens that can stand at a place are drawn there: codes of the codebook whose
turn it is, or, between groups, the end of speech.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.schema import SynthesisConfig
from data_pipeline.codecs.weights import weights_identity
from data_pipeline.exported_model import load_exported, padded_prompts
from data_pipeline.layouts.assembly import MARKS, SPEAK
from data_pipeline.layouts.groups import group_length, group_seconds, ungroup
from data_pipeline.vocabulary import TOKENIZER_FILE, VOCABULARY_FILE, Vocabulary
from runtime.exits import BadInput

if TYPE_CHECKING:
    import torch

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

        A text's codes depend on the text and its seed, on what is beside it only where two codes are as likely as each
        other to the last bits.
        """
        import torch
        from transformers import LogitsProcessorList

        vocabulary = self._vocabulary
        opening = [vocabulary.special(SPEAK), vocabulary.special(AUDIO_START)]
        prompts = [[*vocabulary.encode_text(text), *opening] for text in texts]
        batch = padded_prompts(prompts, vocabulary.special(vocabulary.end_of_text), self._model.device)
        width = batch["input_ids"].shape[1]
        most = [self._most_groups(text) for text in texts]
        drawing = CodesOnly(vocabulary, width, most, seeds, self._config)
        with torch.inference_mode():
            out = self._model.generate(
                **batch,
                logits_processor=LogitsProcessorList([drawing]),
                do_sample=False,  # the processor leaves one token to choose
                num_beams=1,
                max_new_tokens=max(most) * group_length(vocabulary) + 1,
                eos_token_id=vocabulary.special(AUDIO_END),
                pad_token_id=vocabulary.special(AUDIO_END),
            )
        said = out[:, width:].cpu().numpy()
        return [self._codes(row, limit) for row, limit in zip(said, most, strict=True)]

    def _most_groups(self, text: str) -> int:
        seconds = self._config.seconds_per_character * max(len(text), 1)
        return max(1, round(seconds / group_seconds(self._vocabulary)))

    def _codes(self, said: np.ndarray, most: int) -> dict[str, np.ndarray] | None:
        ends = np.flatnonzero(said == self._vocabulary.special(AUDIO_END))
        length = int(ends[0]) if len(ends) else len(said)
        if length >= most * group_length(self._vocabulary):
            return None
        return ungroup(said[:length], self._vocabulary)

    def seconds(self, codes: Mapping[str, np.ndarray]) -> float:
        """How long the speech of whole groups of codes is."""
        book = self._vocabulary.codebooks[0]
        return codes[book.name].shape[1] // book.per_group * group_seconds(self._vocabulary)


class CodesOnly:
    """A logits processor that draws the next token of every row itself and leaves no other: a code of the table whose
    turn it is or, after at least one group, the end of speech; only that after `most` groups of a row.

    Row r's draws come from `seeds[r]` alone. `prompt` is the length of what is continued. Rows are all at the same
    place of a group, for prompts are padded on the left.
    """

    def __init__(
        self, vocabulary: Vocabulary, prompt: int, most: Sequence[int], seeds: Sequence[int], config: SynthesisConfig
    ) -> None:
        self._prompt = prompt
        self._most = most
        self._turns = tables_in_turn(vocabulary)
        self._end = vocabulary.special(AUDIO_END)
        self._temperature, self._top_p = config.temperature, config.top_p
        self._rngs = [np.random.default_rng(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [rows, vocabulary] that leave the drawn token."""
        import torch

        group, place = divmod(input_ids.shape[1] - self._prompt, len(self._turns))
        ids = self._turns[place]
        held = scores[:, ids.start : ids.stop]
        over = torch.zeros(len(held), dtype=torch.bool, device=held.device)
        if place == 0 and group:
            held = torch.cat([held, scores[:, self._end : self._end + 1]], dim=1)
            over = torch.tensor([group >= most for most in self._most], device=held.device)
        drawn = self._draw(held.double() / self._temperature)
        tokens = torch.where(over | (drawn == len(ids)), self._end, drawn + ids.start)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens[:, None], 0.0)

    def _draw(self, logits: torch.Tensor) -> torch.Tensor:
        """One column for each row, by inverting the distribution at the row's next uniform number."""
        import torch

        chances = logits.softmax(1)
        if self._top_p < 1:
            falling, order = chances.sort(dim=1, descending=True, stable=True)
            kept = falling.cumsum(1) - falling < self._top_p
            chances = torch.zeros_like(chances).scatter(1, order, torch.where(kept, falling, 0.0))
        uniform = torch.tensor([rng.random() for rng in self._rngs], dtype=torch.float64, device=logits.device)
        reached = chances.cumsum(1)
        place = torch.searchsorted(reached, (uniform * reached[:, -1])[:, None], right=True)
        return place.clamp(max=logits.shape[1] - 1)[:, 0]


def tables_in_turn(vocabulary: Vocabulary) -> list[range]:
    """The ids that can stand at each place of a group: its codebooks in order, of each frame the tables in order."""
    return [
        range(start := vocabulary.ranges[book.name].start + row * book.size, start + book.size)
        for book in vocabulary.codebooks
        for _ in range(book.per_group)
        for row in range(book.rows)
    ]


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
