"""Models of transformers that aligners and recognisers need, whole or not at all."""

from __future__ import annotations

from typing import Any

from runtime.exits import BadInput
from runtime.threads import settle_vector_math

_ONLY_TRAINING = ("masked_spec_embed",)  # tensors that nothing but training reads


def load_model(kind: Any, spec: str, setting: str, what: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder or hub name: safetensors, float32, not training. transformers would fill in at
    random what a file lacks: that is refused. Raises BadInput, naming `setting` and `what` was wanted."""
    from transformers.utils import logging

    settle_vector_math()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, report = kind.from_pretrained(spec, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError) as error:
        raise BadInput(f"{setting}={spec} is not {what}: {one_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    lacks = [str(name) for key in ("missing_keys", "mismatched_keys") for name in report[key]]
    lacks = [name for name in lacks if not name.endswith(_ONLY_TRAINING)]
    if lacks:
        raise BadInput(f"{setting}={spec} is not {what}: it lacks {lacks[0]}, or has it in another shape")
    return model.float().eval()


def load_part(kind: Any, spec: str, setting: str, what: str) -> Any:
    """A tokenizer or feature extractor, as `load_model`."""
    try:
        return kind.from_pretrained(spec)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{setting}={spec} is not {what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160]
