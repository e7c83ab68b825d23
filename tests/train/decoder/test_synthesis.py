"""Codes to sound: a stream says what the whole says, and codes out of their turn are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_vocabulary
from tests.train.decoder.small import small_decoder
from train.decoder.noise import noise_between
from train.decoder.saying import Parts, Prompt
from train.decoder.synthesis import Decoder, Window
from train.models.decoder.flow import Flow
from train.models.decoder.vocoder import Vocoder

VOCABULARY = make_vocabulary()


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    config = small_decoder()
    torch.manual_seed(0)
    flow = Flow(config, 32 + 64, 5 / 0.12)
    torch.nn.init.normal_(flow.estimator.out.weight, std=0.3)  # as drawn it is zero, and nothing would flow
    return Decoder(Parts(config, VOCABULARY, flow.eval(), Vocoder(config).eval()))


def codes(groups: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    columns = [
        rng.integers(0, book.size, (groups, book.per_group)) + VOCABULARY.ranges[book.name].start
        for book in VOCABULARY.codebooks
    ]
    return np.concatenate(columns, axis=1).reshape(-1)


@pytest.mark.parametrize("pieces", [1, 7, 150])
def test_a_stream_whose_window_has_the_reach_is_the_whole(decoder: Decoder, pieces: int) -> None:
    ids = codes(30)
    whole, _ = decoder.decode(ids)
    window = Window(chunk=0.6, before=decoder.reach + 0.02, after=decoder.reach + 0.02)
    said = list(decoder.stream(np.array_split(ids, pieces), window=window))
    assert len(said) == 6
    np.testing.assert_allclose(np.concatenate(said), whole, atol=2e-3 * whole.std())


def test_a_window_below_the_reach_says_as_much_and_otherwise(decoder: Decoder) -> None:
    ids = codes(30)
    whole, _ = decoder.decode(ids)
    said = np.concatenate(list(decoder.stream([ids], window=Window(before=0.24, after=0.12))))
    assert said.shape == whole.shape and np.abs(said - whole).max() > 0.02 * whole.std()


def test_pieces_come_as_soon_as_their_codes_and_those_after_have(decoder: Decoder) -> None:
    given = 0

    def chunks():
        nonlocal given
        for group in codes(12).reshape(-1, 5):
            given += 1
            yield group

    stream = decoder.stream(chunks(), window=Window(chunk=0.36, before=0.36, after=0.24))
    assert [given for _ in stream] == [5, 8, 11, 12]


def test_codes_out_of_their_turn_are_named_before_they_are_said(decoder: Decoder) -> None:
    ids = codes(6)
    swapped = ids.copy()
    swapped[[11, 12]] = swapped[[12, 11]]
    said = 0
    with pytest.raises(BadInput, match="at position 11 is not of codebook linguistic"):
        for _ in decoder.stream([swapped[:7], swapped[7:]], window=Window(chunk=0.12, before=0.12, after=0.12)):
            said += 1
    assert said == 0
    with pytest.raises(BadInput, match="end inside a group"):
        decoder.decode(ids[:13])
    with pytest.raises(BadInput, match="no codes to say"):
        decoder.decode(ids[:0])


def test_a_prompt_is_not_said_again_and_changes_what_is(decoder: Decoder) -> None:
    prompt = Prompt(codes(4, seed=1), np.random.default_rng(0).standard_normal(11_000).astype(np.float32))
    ids = codes(6)
    with_it, without = decoder.decode(ids, prompt=prompt)[0], decoder.decode(ids)[0]
    assert abs(len(with_it) - len(without)) <= 256
    assert not np.allclose(with_it[:2000], without[:2000], atol=1e-3)
    pieces = list(decoder.stream([ids], prompt=prompt, window=Window(before=9.0, after=9.0)))
    np.testing.assert_allclose(np.concatenate(pieces), with_it, atol=2e-3 * with_it.std())


def test_a_speaker_of_another_width_is_refused(decoder: Decoder) -> None:
    with pytest.raises(BadInput, match="256 numbers"):
        decoder.decode(codes(2), speaker=np.ones(192, np.float32))


def test_noise_of_a_stretch_is_that_of_the_whole() -> None:
    whole = noise_between(3, 0, 200, 5)
    assert whole.shape == (5, 200) and abs(whole.std() - 1) < 0.1
    for first, last in ((0, 1), (63, 65), (128, 200)):
        assert np.array_equal(noise_between(3, first, last, 5), whole[:, first:last])
