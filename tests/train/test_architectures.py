"""Every architecture, there and back: published form, native checkpoint, ranks of several topologies that load and
save it, published form again, bit for bit; and what the ranks compute against references from outside."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from checkpoints.convert import export_huggingface, import_huggingface
from checkpoints.formats.gguf import materialise_huggingface
from checkpoints.formats.huggingface import CONFIG_FILE, HuggingFaceReader
from checkpoints.formats.huggingface_config import read_config
from checkpoints.formats.native import NativeReader
from checkpoints.layout import TENSORS
from checkpoints.manifest import MODEL_PREFIX, read_manifest
from checkpoints.maps import ARCHITECTURES, described, differences, of_backbone
from configs.compose import compose_stage
from configs.schema import BackboneConfig, Config, ParallelConfig
from data_pipeline.batch import Pack, collate
from data_pipeline.build import cache_root
from tests.checkpoints.architectures import CASES, read
from tests.checkpoints.models import ROWS, tensors, tokenizer_json, vocabulary
from tests.ranks import run_ranks

TOPOLOGIES = {
    "TP1": ParallelConfig(),
    "TP2": ParallelConfig(tensor=2),
    "TP4": ParallelConfig(tensor=4),
    "PP2": ParallelConfig(pipeline=2),
    "TP2xPP2": ParallelConfig(tensor=2, pipeline=2),
    "VPP2": ParallelConfig(pipeline=2, virtual_pipeline=2),
}
THIRTY_LAYERS = ParallelConfig(pipeline=2, virtual_pipeline=2, pipeline_layout="E,t*8|t*8|t*7|t*7,L")
COMPUTED = "TP2xPP2"
LENGTHS = (17, 30)  # of the samples of one pack
ALIKE = 1e-4  # of logits, absolute


def ids() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(ROWS, (length,), generator=generator) for length in LENGTHS]


def through_ranks(
    natives: dict[str, str], backbones: dict[str, BackboneConfig], topologies: dict[str, ParallelConfig], rows: int
) -> dict[str, Any]:
    """Load each native checkpoint and save it again beside it, on each topology in turn; logits of `COMPUTED`."""
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.dist_checkpointing.utils import add_prefix_for_sharding

    from checkpoints import store
    from checkpoints.saving import Contents, Saver
    from train.engines import process_groups
    from train.engines.megatron import MegatronEngine
    from train.models.gradients import accumulate_in_linear_layers
    from train.models.speech_lm import SpeechLM
    from train.models.trunk import trunk_of
    from train.objectives.next_token import NextToken

    accumulate_in_linear_layers()  # as the engine does before it builds what `trunk_of` describes
    answers: dict[str, Any] = {}
    for topology, parallel in topologies.items():
        device = process_groups.join(parallel)
        for name, native in natives.items():
            config = Config(backbone=backbones[name], parallel=parallel)
            if topology == COMPUTED:
                engine = MegatronEngine(config, rows, NextToken(("text",)), device)
                models = engine.models
            else:
                tensor_parallel.model_parallel_cuda_manual_seed(1)
                chunks = range(parallel.virtual_pipeline or 1)
                models = [SpeechLM(config.backbone, trunk_of(config, rows), rows, chunk) for chunk in chunks]
            states = []
            for _ in ("load", "save"):
                states.append({str(number): model.sharded_state_dict() for number, model in enumerate(models)})
                add_prefix_for_sharding(states[-1], MODEL_PREFIX)
            loaded = store.load(Path(native), states[0])
            for number, model in enumerate(models):
                model.load_state_dict(loaded[str(number)])
            if topology == COMPUTED:
                logits = engine.logits(collate([pack()]))
                if logits is not None and parallel_state.get_tensor_model_parallel_rank() == 0:
                    answers[name] = logits[0].numpy()
            Saver(Path(native).parent / topology).save(0, states[1], Contents({}, {}))
        parallel_state.destroy_model_parallel()
    process_groups.leave()
    return answers


def pack() -> Pack:
    flat = torch.cat(ids()).numpy()
    weight, modality = np.ones(len(flat), np.float32), np.zeros(len(flat), np.uint8)
    return Pack(flat, flat, weight, modality, LENGTHS, ("",) * len(LENGTHS), 0, 0.0)


def exported(native: Path, out: Path, of: BackboneConfig, rows: int) -> dict[str, torch.Tensor]:
    text = tokenizer_json(rows)
    described = vocabulary(rows, (), ())
    return tensors(export_huggingface(native, out, of, vocabulary=described, tokenizer_json=text, token_names=()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("architectures")


def test_every_architecture_goes_through_every_topology_unchanged(folder: Path) -> None:
    references, backbones, natives = {}, {}, {}
    for name, case in CASES.items():
        source = folder / name / "source"
        references[name] = case.write(source, case.backbone)
        assert differences(case.backbone, read_config(source / CONFIG_FILE)) == []
        backbones[name] = replace(read(source), tokenizer="none")
        native = folder / name / "native"
        import_huggingface(source, native, case.backbone, text_size=ROWS, padded_size=ROWS)
        natives[name] = str(native)
    ranks = run_ranks(through_ranks, 4, natives, backbones, TOPOLOGIES, ROWS, timeout=240)

    answers: dict[str, Any] = {name: logits for rank in ranks for name, logits in rank.items()}
    for name, case in CASES.items():
        before = {key: value for key, value in tensors(folder / name / "source").items() if "inv_freq" not in key}
        for topology in TOPOLOGIES:
            after = exported(
                folder / name / topology / "step-00000000", folder / name / f"{topology}-out", case.backbone, ROWS
            )
            assert after.keys() == before.keys(), name
            for key, tensor in before.items():
                assert torch.equal(after[key], tensor), f"{name} {topology} {key}"
        ours = torch.from_numpy(answers[name]).split(LENGTHS)
        for sample, computed in zip(ids(), ours, strict=True):
            theirs = references[name](sample)
            assert theirs.std() > 0.1, name  # logits that say something
            assert (computed - theirs).abs().max() < ALIKE, name


def test_no_architecture_is_left_out() -> None:
    with_experts = {"mixtral", "qwen3_moe"}  # have tests of their own
    assert {case.architecture for case in CASES.values()} | with_experts == {known.name for known in ARCHITECTURES}
    for case in CASES.values():
        of_backbone(case.backbone)


def test_padding_rows_are_carried_and_the_others_stay(tmp_path: Path) -> None:
    case, padded = CASES["llama3"], 128
    case.write(tmp_path / "source", case.backbone)
    native = tmp_path / "native"
    import_huggingface(tmp_path / "source", native, case.backbone, text_size=ROWS, padded_size=padded)
    run_ranks(through_ranks, 4, {"llama3": str(native)}, {"llama3": case.backbone}, {"TP4": TOPOLOGIES["TP4"]}, padded)
    before = tensors(tmp_path / "source")
    after = exported(tmp_path / "TP4" / "step-00000000", tmp_path / "out", case.backbone, padded)
    for key, tensor in before.items():
        rows = padded if key in ("model.embed_tokens.weight", "lm_head.weight") else len(tensor)
        assert len(after[key]) == rows and torch.equal(after[key][: len(tensor)], tensor), key
    drawn = NativeReader(native / TENSORS).read(MODEL_PREFIX + "output_layer.weight")
    assert torch.equal(after["lm_head.weight"], drawn)


@pytest.mark.parametrize(
    ("world", "topologies"),
    [
        (2, {"TP1": TOPOLOGIES["TP1"], "PP2": TOPOLOGIES["PP2"], "VPP2": THIRTY_LAYERS}),
        (3, {"TP3": ParallelConfig(tensor=3)}),  # nine heads in three groups
    ],
    ids=["pipelines", "TP3"],
)
def test_the_real_smollm2_goes_through_unchanged(
    world: int, topologies: dict[str, ParallelConfig], tmp_path: Path
) -> None:
    of = compose_stage("quickstart", "tiny", None, ["backbone=smollm2_135m", "parallel=single"]).backbone
    source = materialise_huggingface(str(of.weights), cache_root(Config()))
    rows = read_config(source / CONFIG_FILE)["vocab_size"]
    native = import_huggingface(source, tmp_path / "native", of, text_size=rows, padded_size=rows)
    assert described(read_manifest(native).backbone or {}) == of
    run_ranks(through_ranks, world, {"smollm2": str(native)}, {"smollm2": of}, topologies, rows, timeout=240)

    theirs = HuggingFaceReader(source)
    for topology in topologies:
        ours = NativeReader(tmp_path / topology / "step-00000000" / TENSORS)
        for rule in of_backbone(of).rules(of):
            for layer in range(of.layers) if rule.layered else (None,):
                parts = rule.layout.split(ours.read(MODEL_PREFIX + rule.native, layer), of)
                for name, part in zip(rule.names(layer), parts, strict=True):
                    assert torch.equal(part, theirs.read(name)), f"{topology} {name}"
