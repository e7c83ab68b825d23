"""Sound of a model's codes: by ids of the decoder's own vocabulary, in a voice where the decoder knows voices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.audio import SAMPLE_RATE
from data_pipeline.layouts.groups import lay_groups
from data_pipeline.quality.speaker import SpeakerEncoder
from data_pipeline.utterance import Utterance
from data_pipeline.vocabulary import Codebook
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import SPECIALS, make_vocabulary
from tests.train.decoder.small import untrained_flow
from tests.train.runs import tiny_config
from train.decoder.codes import CodesDecoder
from train.decoder.synthesis import Decoder
from train.evaluation.subject import subject_of

RESEMBLYZER = "package:resemblyzer"
MODEL = make_vocabulary()
OTHER_IDS = replace(MODEL, specials=(*SPECIALS, "<|one_more|>"))
CODES = {
    "linguistic": np.random.default_rng(0).integers(0, 32, (1, 8)),
    "semantic": np.random.default_rng(1).integers(0, 64, (1, 12)),
}
VOICE = np.sin(2 * np.pi * 150 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)


def sound(decoder: Decoder, speaker: np.ndarray | None = None) -> np.ndarray:
    ids = lay_groups(Utterance("", "", "", codes=CODES), OTHER_IDS).reshape(-1)
    return decoder.decode(ids, speaker=speaker)[0]


def test_codes_of_a_model_have_the_decoders_own_ids_and_the_voice_that_is_given(tmp_path: Path) -> None:
    flow = untrained_flow(tmp_path / "flow", OTHER_IDS, speaker=RESEMBLYZER)
    whole = Decoder.load(flow)
    said = CodesDecoder.of_model(MODEL, str(flow), None, named="it", device="cpu")
    assert np.array_equal(said.decode(CODES)[0], sound(whole))
    spoken = sound(whole, SpeakerEncoder(RESEMBLYZER).embed(VOICE))
    assert np.array_equal(said.decode(CODES, VOICE)[0], spoken) and not np.allclose(spoken, sound(whole))
    assert np.array_equal(said.decode(CODES, np.zeros_like(VOICE))[0], sound(whole))  # silence has no voice

    config = tiny_config(tmp_path / "run", tmp_path)  # and so it is evaluated
    config.evaluation.model, config.evaluation.decoder = str(tmp_path / "model"), str(flow)
    config.evaluation.device = "cpu"
    MODEL.save(tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text("{}")
    decode = subject_of(config).decode
    assert decode is not None and np.array_equal(decode(CODES, VOICE)[0], spoken)


def test_a_decoder_of_one_voice_takes_no_notice_of_another(tmp_path: Path) -> None:
    flow = untrained_flow(tmp_path / "flow", MODEL)
    said = CodesDecoder.of_model(MODEL, str(flow), None, named="it", device="cpu")
    assert np.array_equal(said.decode(CODES, VOICE)[0], said.decode(CODES)[0])
    others = replace(MODEL, codebooks=(Codebook("linguistic", 16, 16.67, 2), *MODEL.codebooks[1:]))
    with pytest.raises(BadInput, match=r"^it makes sound of other codebooks than this model's$"):
        CodesDecoder.of_model(others, str(flow), None, named="it")


def identity_of(flow: Path) -> dict[str, str]:
    return CodesDecoder.of_model(MODEL, str(flow), None, named="it").identity()


def test_a_decoder_is_what_it_says_wherever_it_lies(tmp_path: Path) -> None:
    told = [
        CodesDecoder.of_model(
            MODEL, str(untrained_flow(tmp_path / name, MODEL, **changes)), None, named="it"
        ).identity()
        for name, changes in (("one", {}), ("same", {}), ("other", {"seed": 1}), ("voices", {"speaker": RESEMBLYZER}))
    ]
    assert told[0] == told[1] and len({one["flow"] for one in told}) == 3
