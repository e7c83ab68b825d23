"""Codes said by an exported model: in phase, by the seed, and as Step-Audio draws them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.drawing import Drawing, Sampling, grammar_of_codes
from data_pipeline.layouts import find_layout
from data_pipeline.layouts.groups import group_length, ungroup
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_utterance
from tests.data_pipeline.test_text_to_code import END, VOCABULARY, save_model
from train.generation.sampling import exported_speaker, speech_prompt


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("export"))


def prompts_of(count: int, longest: int = 120) -> list:
    rng = np.random.default_rng(0)
    utterances = [make_utterance(rng, str(number), "d") for number in range(count)]
    for utterance in utterances:
        utterance.codes["linguistic"] %= 4
        utterance.codes["semantic"] %= 8
    samples = find_layout("tts", {})(utterances, VOCABULARY, rng)
    return [speech_prompt(sample, 0, VOCABULARY, longest) for sample in samples]


def test_speech_is_whole_groups_in_phase_and_no_longer_than_asked(export: Path) -> None:
    prompts = prompts_of(6)
    said = exported_speaker(export).speak(prompts, range(6))
    assert any(one.ended for one in said)
    for prompt, one in zip(prompts, said, strict=True):
        assert len(prompt.ids) + len(one.ids) < 120 and 0 < len(one.ids) <= prompt.groups * group_length(VOCABULARY)
        assert ungroup(one.ids, VOCABULARY)["semantic"].shape[1] == 3 * len(one.ids) // 5
        assert one.ended or len(one.ids) == prompt.groups * 5


def test_speech_follows_the_seed_and_not_the_batch(export: Path) -> None:
    speaker, prompts = exported_speaker(export), prompts_of(4)
    together = speaker.speak(prompts, [1, 2, 3, 4])
    again = speaker.speak(prompts[::-1], [4, 3, 2, 1])[::-1]
    alone = [speaker.speak([prompt], [seed])[0] for prompt, seed in zip(prompts, [1, 2, 3, 4], strict=True)]
    for one, *others in zip(together, again, alone, strict=True):
        assert all(np.array_equal(one.ids, other.ids) for other in others)
    assert not all(np.array_equal(a.ids, b.ids) for a, b in zip(together, speaker.speak(prompts, [5] * 4), strict=True))


def test_a_prompt_ends_where_the_codes_that_are_asked_for_begin() -> None:
    rng = np.random.default_rng(1)
    utterance = make_utterance(rng, "a", "d")
    utterance.codes.update({name: codes % 4 for name, codes in utterance.codes.items()})
    (sample,) = find_layout("tts", {})([utterance], VOCABULARY, rng)
    whole, two = (speech_prompt(sample, given, VOCABULARY, 100) for given in (0, 2))
    assert whole.ids[-2:] == (VOCABULARY.special("<|speak|>"), VOCABULARY.special("<|audio_start|>"))
    assert whole.end == END and two.ids == tuple(sample.tokens[: len(whole.ids) + 10])
    assert len(two.ids) + 5 * two.groups + 1 <= 100 < len(two.ids) + 5 * (two.groups + 1) + 1


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_token_that_comes_too_often_cannot_come_at_once_again(temperature: float) -> None:
    """The rule of Step-Audio's tts.py, on scores that want nothing but code 0 of each table, against its own words: the
    last token is blocked where its share in the last ten is above 0.1."""
    first = {name: VOCABULARY.ranges[name].start for name in ("linguistic", "semantic")}
    scores = torch.zeros(1, VOCABULARY.padded_size)
    scores[0, list(first.values())] = 50.0
    drawing = Drawing(
        grammar_of_codes(VOCABULARY, END),
        Sampling(temperature=temperature, window=10, share=0.1),
        prompt=1,
        most=[20],
        seeds=[0],
    )
    ids = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(50):
        wanted = first["linguistic" if (ids.shape[1] - 1) % 5 < 2 else "semantic"]
        window = ids[0, -10:].tolist()
        blocked = window[-1] == wanted and window.count(wanted) / 10 > 0.1
        drawn = drawing(ids, scores).argmax(1)
        assert (drawn.item() == wanted) is not blocked
        ids = torch.cat([ids, drawn[:, None]], 1)
    assert len(set(ids[0, 1:].tolist())) > 2


def test_a_folder_without_an_export_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no export; make it with"):
        exported_speaker(tmp_path)
