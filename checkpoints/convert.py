"""Checkpoints of any format into native ones and Hugging Face folders; `checkpoints.conversion` does the work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from checkpoints.atomic import partial_of
from checkpoints.conversion import engine
from checkpoints.conversion.engine import How
from checkpoints.conversion.finishing import Beside
from checkpoints.conversion.job import Job, Rows, Target
from checkpoints.conversion.reading import open_slabs
from checkpoints.conversion.shards import Topology, topology_of
from checkpoints.dtypes import DTYPES
from checkpoints.formats.huggingface import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    VOCABULARY_FILE,
    grown_tokenizer,
    json_text,
    model_files,
    tokenizer_config,
)
from checkpoints.formats.huggingface_config import read_config
from checkpoints.manifest import problems, read_manifest
from checkpoints.maps import differences, of_backbone
from checkpoints.rules import embedding_rule
from checkpoints.vocabulary_surgery import describe_growth
from configs.schema import BackboneConfig, NewRows, ParallelConfig, Precision
from runtime.exits import BadInput


def import_huggingface(
    source: Path,
    native: Path,
    backbone: BackboneConfig,
    *,
    text_size: int,
    padded_size: int,
    vocabulary: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    seed: int = 0,
    new_rows: NewRows = NewRows.covariance,
    stop: object = None,
) -> Path:
    """Convert a Hugging Face folder into the native checkpoint `native` (step 0, no optimiser state).

    Tensors keep their dtype and bits. The vocabulary grows from the first `text_size` rows to `padded_size`
    (`vocabulary_surgery.grow_rows`, by `new_rows`, drawn with `seed`); both equal to the source's rows change nothing.
    `texts` are files to put beside. Needs no process group; it loads on any topology. Returns `native`.

    Raises BadInput where the folder is not this backbone, has tensors without a place, or the disk fails;
    StoppedEarly when `stop` turns true. `native` then is as it was.
    """
    if found := differences(backbone, read_config(source / CONFIG_FILE)):
        raise BadInput(f"{source} is another model: {'; '.join(found)}")
    job = Job(
        source,
        partial_of(native),
        Target.native,
        backbone,
        whole(backbone),
        rows=Rows(text_size, padded_size, seed, new_rows),
    )
    origin = {"huggingface": source.name, **describe_growth(text_size, padded_size, seed, new_rows)}
    _finished(engine.run(job, native, Beside(texts or {}, vocabulary, origin), How(stop=stop, keep=False)))
    return native


def export_huggingface(
    native: Path,
    out: Path,
    backbone: BackboneConfig,
    *,
    vocabulary: Mapping[str, Any],
    tokenizer_json: str,
    token_names: Sequence[str],
    dtype: Precision = Precision.fp32,
    stop: object = None,
) -> Path:
    """Convert a native checkpoint into a Hugging Face folder that `AutoModelForCausalLM` and `AutoTokenizer` load.

    `vocabulary` describes the checkpoint's ids (`text_size`, `specials`, `end_of_text`, `ranges`), `tokenizer_json`
    is the text tokenizer, and `token_names` name the ids from `text_size` on, special tokens first. The model keeps
    every native row, padding included, so its logits are the native model's; low-rank updates are merged into the
    weights. Optimiser state stays behind, and so do tensors that the architecture has no place for.

    Raises BadInput where the checkpoint is damaged, is not this backbone, or has another vocabulary, or the disk
    fails; StoppedEarly when `stop` turns true. `out` then is as it was.
    """
    if found := problems(native, contents=False):
        raise BadInput(f"refused checkpoint {native}: {found[0]}")
    recorded = read_manifest(native).vocabulary
    if recorded is not None and recorded != json.loads(json.dumps(vocabulary)):
        raise BadInput(f"{native} was made with another vocabulary")
    architecture = of_backbone(backbone)
    rows = rows_of(native, backbone)
    size = vocabulary["text_size"] + len(token_names)
    if size != max(end for _, end in vocabulary["ranges"].values()) or size > rows:
        raise BadInput(f"{native}: {rows} vocabulary rows, {size} token names; they do not fit the vocabulary")
    end_of_text = Tokenizer.from_str(tokenizer_json).token_to_id(vocabulary["end_of_text"])
    if end_of_text is None:
        raise BadInput(f"the tokenizer has no token {vocabulary['end_of_text']}")
    tokenizer = grown_tokenizer(tokenizer_json, vocabulary["text_size"], token_names, len(vocabulary["specials"]))
    settings = {**architecture.write_config(backbone), architecture.vocabulary_key: rows}
    files = {
        **model_files(settings, rows, end_of_text, DTYPES[dtype]),
        TOKENIZER_FILE: tokenizer,
        **tokenizer_config(vocabulary["end_of_text"], backbone.max_positions),
        VOCABULARY_FILE: json_text(vocabulary),  # so that the model can give a corpus its codes
    }
    job = Job(
        native,
        partial_of(out),
        Target.huggingface,
        backbone,
        whole(backbone),
        dtype=DTYPES[dtype],
        partly=True,
    )
    _finished(engine.run(job, out, Beside(files), How(stop=stop, keep=False)))
    return out


def rows_of(source: Path, backbone: BackboneConfig) -> int:
    """Rows of a source's vocabulary, padding included. Raises BadInput where it is not of this backbone."""
    slabs = open_slabs(source, backbone, partly=True)
    slabs.left_out()
    return slabs.shape_and_dtype(embedding_rule(slabs.rules), None)[0][0]


def whole(backbone: BackboneConfig) -> Topology:
    """One rank with everything."""
    return topology_of(backbone, ParallelConfig(), 0)


def _finished(result: Path | None) -> None:
    assert result is not None, "the only share of a conversion finishes it"
