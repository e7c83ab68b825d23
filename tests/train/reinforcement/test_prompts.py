"""Questions of pairs: with an answer behind them they are what the layout lays for that answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from configs.schema import Config, SourceConfig
from data_pipeline.corpus import Corpus
from data_pipeline.order import Cursor
from runtime.exits import BadInput
from tests.data_pipeline.pairs import make_pairs
from tests.train.runs import tiny_config
from train.reinforcement.prompts import Prompts, prompt_of

FOLDED = {"heads": ["<|speak|>", "<|speak|>ask\n", "<|speak|>say\n"], "tail": "<|transcribe|>\n"}  # as ChatML is made


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs") / "corpus", train=10)


def config_of(corpus: Path, options: dict[str, Any], **changes: Any) -> Config:
    settings = {"stage__objective": "ppo", "train__sequence_length": 400, "ppo__longest": 100, "ppo__prompts": 4}
    config = tiny_config(corpus.parent / "run", corpus, **settings | changes)
    config.mixture.sources = {"s": SourceConfig(layout="preferences", weight=1.0, options=options)}
    return config


@pytest.mark.parametrize("form", ["TQTA", "AQTA"])
@pytest.mark.parametrize("template", [{}, FOLDED, {"end": "<|endoftext|>", "system": "Be kind."}])
def test_an_answer_in_its_place_makes_the_layouts_own_sequence(
    form: str, template: dict[str, Any], corpus: Path
) -> None:
    config = config_of(corpus, {"form": form, **template})
    source = Prompts(config, Corpus.open(corpus), "train", 4).source
    for number in range(10):
        (laid,) = source.samples(number, 0, 4000)
        prompt = prompt_of(source, number, 0)
        assert prompt is not None and prompt.key == laid.key
        ends = laid.segments[0], sum(laid.segments)
        for role, tokens in zip(
            ("chosen", "rejected"), (laid.tokens[: ends[0]], laid.tokens[ends[0] : ends[1]]), strict=True
        ):
            (text,) = [one.text for one in source.documents.read(number) if one.role == role]
            answer = source.vocabulary.encode_inside(text)
            assert [*prompt.ids, *answer, prompt.end, *prompt.closing] == tokens.tolist()


def test_every_question_comes_once_a_pass_in_an_order_of_its_own(corpus: Path) -> None:
    prompts = Prompts(config_of(corpus, {"form": "TQTA"}), Corpus.open(corpus), "train", 5)
    cursor, keys = prompts.first(), []
    for _ in range(4):
        taken, cursor = prompts.take(cursor)
        keys += [prompt.key for prompt in taken]
    names = [key.split("/", 2)[2] for key in keys]
    assert len(set(names[:10])) == len(set(names[10:])) == 10 and names[:10] != names[10:]
    assert [key.split("/")[1] for key in keys] == ["0"] * 10 + ["1"] * 10
    again, _ = prompts.take(Cursor(0, 5))
    assert [prompt.key for prompt in again] == keys[5:10]


def test_a_source_of_one_pass_ends_with_the_last_whole_round(corpus: Path) -> None:
    config = config_of(corpus, {"form": "TQTA"})
    config.mixture.sources["s"].epochs = 1
    prompts = Prompts(config, Corpus.open(corpus), "train", 4)
    assert prompts.bounded
    assert [prompts.suffice(Cursor(0, place)) for place in (0, 4, 6, 7)] == [True, True, True, False]
    assert not prompts.suffice(Cursor(1, 0))


def test_questions_that_leave_no_room_are_one_line(corpus: Path) -> None:
    config = config_of(corpus, {"form": "AQTA"}, train__sequence_length=110)
    with pytest.raises(BadInput, match="no question that leaves room for an answer"):
        Prompts(config, Corpus.open(corpus), "train", 4).take(Cursor(0, 0))
