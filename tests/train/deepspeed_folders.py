"""Runs that also write DeepSpeed's own folder, DeepSpeed's own tools on it, and one engine that goes on from it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from checkpoints.formats.source import TensorSource, TrainedSource
from tests.train.runs import stage
from train.engines.deepspeed_folder import tag_of


def stage_and_tools(config_file: str) -> int:
    """The stage, then on its first rank DeepSpeed's own tools, which write beside its config: `fp32-safetensors` and
    `fp32-torch`, where they can, and `universal`."""
    code = stage(config_file)
    if int(os.environ["RANK"]) == 0:
        folder = Path(config_file).parent
        alone = not (folder / "deepspeed" / tag_of(2) / "mp_rank_01_model_states.pt").exists()
        if alone:  # with tensor parallelism or a pipeline DeepSpeed's zero_to_fp32 refuses
            for safetensors, out in ((True, "fp32-safetensors"), (False, "fp32-torch")):
                zero_to_fp32(folder / "deepspeed", folder / out, safetensors)
        ds_to_universal(folder)
    return code


def zero_to_fp32(own: Path, out: Path, safetensors: bool) -> None:
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    convert_zero_checkpoint_to_fp32_state_dict(str(own), str(out), "60KB", safe_serialization=safetensors)


def ds_to_universal(folder: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    tag = (folder / "deepspeed/latest").read_text()
    settings = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    places = {"input_folder": str(folder / "deepspeed" / tag), "output_folder": str(folder / "universal")}
    ds_to_universal.main(argparse.Namespace(**places, **settings, inject_missing_state=False))


def stage_from_universal(config_file: str) -> int:
    """The stage, but its DeepSpeed engine resumes with what the universal folder beside its config holds alone."""
    from train.engines.deepspeed import DeepSpeedEngine

    def load_state(self: DeepSpeedEngine, state: dict[str, Any], *, optimizer: bool) -> None:
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.data.fill_(float("nan"))
        self.engine._config.load_universal_checkpoint = True
        path, _ = self.engine.load_checkpoint(str(Path(config_file).with_name("universal")))
        assert path is not None
        # DeepSpeed 0.19.8's ZeRO-3 gives all parameter groups one tensor that counts steps, and each adds to it.
        for inner in self.state._inner_state():
            inner["step"] = torch.as_tensor(inner["step"]).clone()

    DeepSpeedEngine.load_state = load_state  # type: ignore[method-assign]
    return stage(config_file)


def train_transformers(folder: str) -> None:
    """A step of a small Llama under ZeRO-3, saved by DeepSpeed in `deepspeed` and by transformers in `hf`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from train.engines import deepspeed_library

    deepspeed = deepspeed_library.load()
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "intermediate_size": 27, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=33, tie_word_embeddings=False))
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}}
    config["zero_force_ds_cpu_optimizer"] = False  # that one is compiled first
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    tokens = torch.arange(12)[None] + int(os.environ["RANK"])
    engine.backward(engine(input_ids=tokens, labels=tokens).loss)
    engine.step()
    engine.save_checkpoint(f"{folder}/deepspeed")
    with deepspeed.zero.GatheredParameters(list(model.parameters())):
        if int(os.environ["RANK"]) == 0:
            weights = {name: value.detach().clone() for name, value in model.named_parameters()}
            model.save_pretrained(f"{folder}/hf", state_dict=weights)
    torch.distributed.barrier()


def same(ours: TensorSource, theirs: TensorSource) -> None:
    """Every parameter, and every moment where both have them, bit for bit; equal names, shapes, dtypes and steps."""
    assert ours.names == theirs.names
    for name in sorted(ours.names):
        assert ours.shape_and_dtype(name) == theirs.shape_and_dtype(name), name
        assert torch.equal(ours.read(name), theirs.read(name)), name
    if isinstance(ours, TrainedSource) and isinstance(theirs, TrainedSource):
        assert set(ours.kinds) == set(theirs.kinds)
        assert ours.step == theirs.step
        for kind in ours.kinds:
            assert ours.state_names(kind) == theirs.state_names(kind)
            for name in sorted(ours.state_names(kind)):
                assert torch.equal(ours.state(kind, name), theirs.state(kind, name)), (kind, name)
