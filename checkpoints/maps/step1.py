"""Step-1: Step-Audio-Chat (130B) and Step-Audio-TTS-3B of StepFun. Llama with sqrt-ALiBi in place of rotations.

Keys of config.json are those of both models' published files. Names of tensors are those that vLLM's loader of Step-1
takes, and a public copy of StepFun's modelling code; the index files of the weights themselves were not seen. Neither
config.json says whether the head is tied; the size of the 3B's weights says that it is not, which is assumed here. A
folder that is written here needs StepFun's own code, or vLLM, to be run.
"""

from __future__ import annotations

from checkpoints.maps import llama
from checkpoints.maps.architecture import Architecture
from checkpoints.maps.config_form import LLAMA_KEYS, ConfigForm
from configs.schema import Positions

FORM = ConfigForm(
    "step1",
    "Step1ForCausalLM",
    "step1",
    keys={name: key for name, key in LLAMA_KEYS.items() if name != "head_dim"}
    | {"kv_heads": "num_attention_groups", "max_positions": "max_seq_len"},
    defaults={"tie_word_embeddings": False, "rms_norm_eps": 1e-5},
    meant={"positions": Positions.sqrt_alibi},
    rope=False,
)
STEP1 = Architecture("step1", ("step1",), ("Step1ForCausalLM",), llama.rules, FORM.read_config, FORM.write_config)
