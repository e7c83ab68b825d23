"""Hearing through SenseVoice-small's and Paraformer's encoder inside of the model: its formulas, and a run's life."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from checkpoints.audio_input import ENCODER_FILE
from checkpoints.formats.native import NativeReader
from checkpoints.manifest import read_manifest
from configs.audio_input import audio_input_of
from configs.schema import AdapterKind, CodecConfig, Config, EncoderConfig, EncoderKind
from data_pipeline.building.listening import Listener, describe_features
from data_pipeline.corpus import Corpus, write_manifest
from data_pipeline.hearing import check_features
from data_pipeline.layouts import layouts_of
from data_pipeline.shards import ShardWriter
from launch.commands import export_run
from runtime.exits import BadInput
from runtime.run_files import AUDIO_EXPORT
from tests.data_pipeline import sanm_reference
from tests.data_pipeline.codec_material import funasr
from tests.data_pipeline.recorded_speech import voiced
from tests.data_pipeline.synthetic import make_utterance, make_vocabulary
from tests.ranks import run_ranks
from tests.train.runs import run_config, tiny_config
from tests.train.test_audio_input import STRIDE, reference
from tests.train.test_lora import check as check_export
from tests.train.test_lora import same_curve
from train.models.inputs.encoder import make_encoder
from train.models.inputs.runs import Runs

ENCODER = EncoderConfig(
    name="toy", kind=EncoderKind.sense_voice, mels=4, width=16, layers=3, tp_layers=2, heads=2, ffn=24, positions=None
)
PARAFORMER = replace(ENCODER, kind=EncoderKind.paraformer, tp_layers=0)
LENGTHS = (26, 3, 40)
encoded = partial(sanm_reference.vectors, heads=ENCODER.heads, eps=1e-5)


def listening(encoder: EncoderConfig) -> Config:
    config = Config(codec=CodecConfig(device="cpu"), encoder=encoder)
    config.corpus.features = ["mel", "vectors"]
    return config


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    return funasr(tmp_path_factory.mktemp("sense_voice") / "model", ENCODER)


@pytest.fixture(scope="module")
def corpus(encoder: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seeded words and sounds, with what the encoder reads of each, and its vectors."""
    folder, rng, config = tmp_path_factory.mktemp("corpus") / "corpus", np.random.default_rng(0), listening(encoder)
    listener = Listener(config)
    for split, documents in (("train", 24), ("valid", 6)):
        said = [make_utterance(rng, f"{split}-{number}-0", f"{split}-{number}") for number in range(documents)]
        waves = [voiced(utterance.duration, 16_000, seed) for seed, utterance in enumerate(said)]
        with ShardWriter(folder / split / "shard-000000.tar") as writer:
            for utterance, features in zip(said, listener.features(waves), strict=True):
                writer.write(replace(utterance, features=features))
    write_manifest(
        folder, name="synthetic", vocabulary=make_vocabulary(), codecs={}, features=describe_features(config)
    )
    return folder


@pytest.mark.parametrize("config", [ENCODER, PARAFORMER], ids=lambda config: config.kind.value)
def test_vectors_and_gradients_are_those_of_the_formulas_whatever_runs_are_beside(config: EncoderConfig) -> None:
    torch.manual_seed(7)
    encoder = make_encoder(config).double()
    frames = torch.randn(sum(LENGTHS), 28, dtype=torch.float64, requires_grad=True)
    found = encoder(Runs(frames, torch.tensor([0, *np.cumsum(LENGTHS)]), max(LENGTHS)))
    w = dict(encoder.named_parameters())
    by_formula = partial(sanm_reference.vectors, heads=config.heads, eps=1e-5 if config is ENCODER else 1e-12)
    theirs = torch.cat([by_formula(w, run) for run in frames.split(list(LENGTHS))])
    torch.testing.assert_close(found.frames, theirs)
    assert found.ends.tolist() == [0, *np.cumsum(LENGTHS)]
    wanted, weights = [frames, *w.values()], torch.randn_like(theirs)
    ours, other = (torch.autograd.grad((of * weights).sum(), wanted) for of in (found.frames, theirs))
    for mine, its in zip(ours, other, strict=True):
        torch.testing.assert_close(mine, its)


def test_a_window_hears_nothing_of_the_next() -> None:
    torch.manual_seed(7)
    encoder = make_encoder(replace(ENCODER, positions=10)).double()
    frames = torch.randn(4 + 25, 28, dtype=torch.float64)
    found = encoder(Runs(frames, torch.tensor([0, 4, 29]), 25))
    w = {name: tensor.detach() for name, tensor in encoder.named_parameters()}
    torch.testing.assert_close(found.frames, torch.cat([encoded(w, part) for part in frames.split([4, 10, 10, 5])]))
    assert found.ends.tolist() == [0, 4, 29]


def test_the_model_gives_the_vectors_that_a_corpus_keeps(encoder: EncoderConfig) -> None:
    """To the rounding of float16, of what is read and of what is kept."""
    model = make_encoder(encoder)
    state = torch.load(Path(str(encoder.weights)) / "model.pt", weights_only=True)
    model.load_state_dict({name.removeprefix("encoder."): of for name, of in state.items() if "encoder." in name})
    for kept in Listener(listening(encoder)).features([voiced(seconds, 16_000, 3) for seconds in (0.3, 2.0, 1.1)]):
        frames = torch.from_numpy(kept["toy_mel"]).float()
        with torch.no_grad():
            found = model(Runs(frames, torch.tensor([0, len(frames)]), len(frames))).frames
        torch.testing.assert_close(found, torch.from_numpy(kept["toy"]).float(), rtol=0, atol=0.02)


def test_a_run_is_that_of_the_formulas_and_goes_on_elsewhere(
    encoder: EncoderConfig, corpus: Path, tmp_path: Path
) -> None:
    """Begun on two ranks, gone on with on one; a step between has the reference's loss and gradient."""
    changes = {
        "encoder": {**asdict(encoder), "in_model": True},
        "adapter": {"kind": "mlp", "stride": STRIDE, "hidden": 24},
        "mixture__sources__heard": {
            "layout": "asr",
            "options": {"encoder": "toy_mel", "stride": STRIDE},
            "weight": 3.0,
        },
        "stage__trainable": ["adapter.*", "encoder.*"],
        "stage__frozen": ["encoder.encoders0.*", "encoder.encoders.1.*"],
        "train__steps": 4,
        "checkpoint__every": 2,
        "optimizer__warmup_steps": 0,
    }
    topology = {"parallel__tensor": 2, "parallel__sequence": True}
    whole = run_config(tiny_config(tmp_path / "run", corpus, **topology, **changes), 2)
    checkpoints = tmp_path / "run/checkpoints"
    names = read_manifest(checkpoints / "step-00000004").tensors
    assert {"model.encoder.encoders.norm1.weight", "model.encoder.tp_encoders.norm1.weight"} <= set(names)
    assert {"lr/adapter", "lr/encoder"} <= set(whole[0]) and "lr/trunk" not in whole[0]
    published = torch.load(Path(str(encoder.weights)) / "model.pt", weights_only=True)
    kept = NativeReader(checkpoints / "step-00000004/tensors").read("model.encoder.encoders.norm1.weight")
    torch.testing.assert_close(kept[1], published["encoder.encoders.1.norm1.weight"], rtol=0, atol=0)
    assert not torch.equal(kept[0], published["encoder.encoders.0.norm1.weight"])
    shutil.rmtree(checkpoints / "step-00000004")

    config = tiny_config(tmp_path / "run", corpus, **changes)
    export_run(config)
    frozen = ("encoders0.", "encoders.1.")
    loss, norm = next(reference(config, AdapterKind.mlp, done=2, encoded=encoded, frozen=frozen))
    assert whole[2]["loss"] == pytest.approx(loss, rel=1e-5)
    assert whole[2]["grad_norm"] == pytest.approx(norm, rel=1e-4)

    same_curve(run_config(config), whole)
    export_run(config)
    assert run_ranks(check_export, 1, str(tmp_path / "run")) == [0], "what was exported computes the same"
    assert json.loads((tmp_path / "run/export/check.json").read_text())["same_argmax"] == 1.0
    exported = load_file(tmp_path / "run" / AUDIO_EXPORT / ENCODER_FILE)
    assert exported.keys() == {name for name in published if name.startswith("encoder.")}
    for name, tensor in exported.items():
        assert torch.equal(tensor, published[name]) == name.removeprefix("encoder.").startswith(frozen), name


def test_features_normalised_by_other_numbers_are_refused(encoder: EncoderConfig, corpus: Path, tmp_path: Path) -> None:
    shutil.copytree(str(encoder.weights), tmp_path / "other")
    text = (tmp_path / "other/am.mvn").read_text()
    (tmp_path / "other/am.mvn").write_text(text.replace("[ -", "[ -1", 1))
    options = {"encoder": "toy_mel", "stride": STRIDE}
    config = tiny_config(
        tmp_path,
        corpus,
        encoder={**asdict(encoder), "in_model": True},
        adapter={"kind": "mlp", "stride": STRIDE},
        mixture__sources__heard={"layout": "asr", "options": options, "weight": 1.0},
    )
    assert config.encoder is not None and audio_input_of(config) is not None
    layout, opened = layouts_of(config.mixture.sources)["heard"], Corpus.open(corpus)
    check_features(config, layout, opened)
    config.encoder.weights = str(tmp_path / "other")
    with pytest.raises(BadInput, match=r"features toy_mel are of \[\"sense_voice\", \"am\.mvn .*, not "):
        check_features(config, layout, opened)
