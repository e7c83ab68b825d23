"""Answers of an export: drawn as likely as it finds them, told with the log-probabilities of its own logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_pipeline.continuing import Opening, Said
from data_pipeline.drawing import Sampling, grammar_of_text
from data_pipeline.vocabulary import TEXT
from tests.data_pipeline.synthetic import make_vocabulary
from tests.data_pipeline.test_text_to_code import save_model
from train.inference.transformers import TransformersEngine

VOCABULARY = make_vocabulary()
END = VOCABULARY.special("<|audio_end|>")  # whichever: an id that is no text
MOST = 9
ASKED = [Opening((5, 6, 7), MOST, 1), Opening((9,), MOST, 2), Opening((40, 41, 42, 43, 44), MOST, 3)]


def answer(engine: TransformersEngine, openings: Sequence[Opening], end: int = END) -> list[Said]:
    return engine.continued(openings, grammar_of_text(VOCABULARY, end), Sampling(), tell=True)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("policy"), VOCABULARY)


@pytest.fixture
def engine(export: Path) -> TransformersEngine:
    engine = TransformersEngine(VOCABULARY.size, device="cpu", bf16=False)
    engine.take(export)
    return engine


def test_log_probabilities_are_those_of_a_forward_pass(engine: TransformersEngine) -> None:
    for asked, said in zip(ASKED, answer(engine, ASKED), strict=True):
        row = torch.tensor([[*asked.ids, *said.ids]])
        with torch.no_grad():
            logits = engine.model(input_ids=row).logits[0, len(asked.ids) - 1 : -1].double()
        wanted = logits.log_softmax(1)[torch.arange(len(said.ids)), torch.tensor(said.ids)]
        assert said.log_probs == pytest.approx(wanted.tolist(), abs=1e-4)


def test_an_answer_is_text_up_to_its_end_and_follows_from_its_own_seed(engine: TransformersEngine) -> None:
    together = answer(engine, ASKED)
    assert answer(engine, ASKED[1:2])[0].ids == together[1].ids
    assert answer(engine, [ASKED[1]._replace(seed=9)])[0].ids != together[1].ids
    assert answer(engine, []) == []
    for said in together:
        assert 1 <= len(said.ids) <= MOST
        assert all(token in VOCABULARY.ranges[TEXT] for token in said.ids[:-1])
        assert said.ids[-1] == END or len(said.ids) == MOST


def test_an_end_that_is_text_ends_and_is_as_likely_as_it_is(engine: TransformersEngine) -> None:
    """As ChatML's is in the vocabularies of the models that know it. Drawn often enough, the first token of an answer
    is the end as often as the model finds it likely."""
    with torch.no_grad():
        logits = engine.model(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].double()
    chances = logits[VOCABULARY.ranges[TEXT].start : VOCABULARY.ranges[TEXT].stop].softmax(0)
    end = int(chances.argmax())
    said = answer(engine, [Opening((5, 6, 7), 1, seed) for seed in range(1500)], end)
    share = sum(one.ids[0] == end for one in said) / len(said)
    deviation = (chances[end].item() * (1 - chances[end].item()) / len(said)) ** 0.5
    assert abs(share - chances[end].item()) < 4 * deviation


def test_new_weights_are_taken_into_the_same_model(export: Path, engine: TransformersEngine, tmp_path: Path) -> None:
    model, before = engine.model, answer(engine, ASKED)
    tensors = load_file(export / "model.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    engine.take(tmp_path)
    assert engine.model is model
    assert [one.log_probs for one in answer(engine, ASKED)] != [one.log_probs for one in before]
    engine.take(export)
    assert answer(engine, ASKED) == before
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"lacks model\.norm\.weight"):
        engine.take(tmp_path)
