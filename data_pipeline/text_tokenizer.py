"""Text tokenizers, as the JSON of the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path

from data_pipeline.packages import PACKAGE, only_file, package_folder, package_version
from runtime.exits import BadInput

# The pre-tokeniser that SmolLM2 was trained with: each digit by itself, then bytes. What is read from a GGUF file
# has the bytes only.
_SMOLLM_PRE_TOKENIZER = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


def tokenizer_identity(spec: str) -> str:
    """What determines the tokenizer, for content hashes. Raises BadInput for a package that is not installed."""
    if not spec.startswith(PACKAGE):
        return spec
    name = spec.removeprefix(PACKAGE)
    return f"{package_folder(name).name} {package_version(name)}"


def load_tokenizer_json(spec: str) -> tuple[str, int]:
    """A tokenizer's JSON and how many ids it has, the highest plus one.

    `spec` is `package:<name>` (a package that carries one GGUF file), a Hugging Face folder, or a hub name. Raises
    BadInput where none of these is there.
    """
    if spec.startswith(PACKAGE):
        text = _from_gguf(only_file(package_folder(spec.removeprefix(PACKAGE)), "*.gguf"))
    elif (Path(spec) / "tokenizer.json").is_file():
        text = (Path(spec) / "tokenizer.json").read_text(encoding="utf-8")
    else:
        text = _from_transformers(spec)
    model = json.loads(text)
    ids = list(model["model"]["vocab"].values()) + [token["id"] for token in model.get("added_tokens", ())]
    return text, max(ids) + 1


def _from_gguf(file: Path) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if file.name.startswith("SmolLM"):
        described["pre_tokenizer"] = _SMOLLM_PRE_TOKENIZER
    return json.dumps(described, ensure_ascii=False)


def _from_transformers(spec: str) -> str:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(spec).backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError) as error:
        why = " ".join(str(error).split())[:160]
        raise BadInput(f"backbone.tokenizer={spec}: no folder with tokenizer.json, no hub name: {why}") from error
