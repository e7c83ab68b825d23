"""Products in fp8, as far as a CPU goes: what is refused, and what our engine makes of the option around a stand-in
for TransformerEngine. Its kernels, and that it takes what the stand-in takes, are for a GPU to show."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.schema import Config, Fp8Config, Fp8Recipe
from launch.local import reserved_port
from runtime.exits import BadInput
from train.models.fp8 import check_device, check_fp8_here, fp8_settings

ROOT = Path(__file__).parents[2]


def test_the_engine_trains_saves_and_goes_on_around_a_stand_in(tmp_path: Path) -> None:
    with reserved_port() as port:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(Path(__file__).parent / "fp8_stand_in")]),
            "RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.train.fp8_wiring", str(tmp_path)]
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize(
    ("recipe", "capability", "cuda", "version", "line"),
    [
        (Fp8Recipe.tensorwise, (8, 0), "12.4", "2.9.0", "needs a GPU of the Ada generation"),
        (Fp8Recipe.blockwise, (8, 9), "12.9", "2.9.0", "needs a GPU of the Hopper generation"),
        (Fp8Recipe.blockwise, (9, 0), "12.8", "2.9.0", "needs CUDA 12.9 or later; torch is built for 12.8"),
        (Fp8Recipe.mxfp8, (9, 0), "13.0", "2.9.0", "needs a GPU of the Blackwell generation"),
        (Fp8Recipe.mxfp8, (12, 0), "13.0", "2.9.0", "has it for capability 10.x; this GPU's is 12.0"),
        (Fp8Recipe.tensorwise, (9, 0), "12.4", "2.5.0", "needs TransformerEngine 2.6 or later; 2.5.0 is installed"),
    ],
)
def test_what_a_machine_lacks_is_one_line(
    recipe: Fp8Recipe, capability: tuple[int, int], cuda: str, version: str, line: str
) -> None:
    with pytest.raises(BadInput, match=line):
        check_device(recipe, capability, cuda, version)


def test_what_has_a_recipe_is_let_pass() -> None:
    check_device(Fp8Recipe.tensorwise, (8, 9), "12.4", "2.6.0.dev0+39c0e70")
    check_device(Fp8Recipe.blockwise, (9, 0), "12.9", "2.10.0")
    check_device(Fp8Recipe.mxfp8, (10, 0), "13.0", "2.9.0")


def test_a_machine_without_a_gpu_is_one_line() -> None:
    config = Config()
    check_fp8_here(config)
    config.train = replace(config.train, fp8=Fp8Config())
    with pytest.raises(BadInput, match="needs a GPU, and there is none"):
        check_fp8_here(config)


def test_megatron_takes_every_recipe_by_the_names_given() -> None:
    """Its own checks of them, which need no TransformerEngine; it knows a recipe by an enumeration's value."""
    from megatron.core.enums import Fp8Recipe as Known
    from megatron.core.fp8_utils import get_fp8_align_size, is_first_last_bf16_layer
    from megatron.core.transformer import TransformerConfig

    from configs.checks.fp8 import SIDES

    sizes: dict[str, Any] = {"num_layers": 6, "hidden_size": 64, "num_attention_heads": 4}
    for recipe in Fp8Recipe:
        config = TransformerConfig(**sizes, **fp8_settings(Fp8Config(recipe, bf16_first=1, bf16_last=2)))
        assert config.fp8_recipe in set(Known) and config.fp8_recipe != Known.delayed
        kept = [is_first_last_bf16_layer(config, layer) for layer in range(6)]
        assert kept == [True, False, False, False, True, True]
        assert get_fp8_align_size(config.fp8_recipe) == SIDES[recipe]
    assert fp8_settings(None) == {}
