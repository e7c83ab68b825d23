"""Vocabularies of native checkpoints changed, tied and untied, with the optimiser's state and without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from checkpoints.inspect import verify
from checkpoints.manifest import read_manifest
from checkpoints.tools.vocabulary import Wanted, change_vocabulary
from configs.schema import NewRows, Precision
from launch.cli import main
from runtime.exits import BadInput
from tests.checkpoints.native import ROWS, VOCABULARY, make_native, read_native, trained, weights

EMBEDDING = "model.embedding.word_embeddings.weight"
HEAD = "model.output_layer.weight"
USED, TEXT = 17, 10


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("rows", [32, 17], ids=["grown", "cut"])
def test_rows_in_use_stay_and_the_rest_of_the_model_too(rows: int, tied: bool, tmp_path: Path) -> None:
    held = weights(tied=tied)
    native = make_native(tmp_path / "native", trained(held))
    out = change_vocabulary(native, tmp_path / "out", Wanted(rows=rows), new_rows=NewRows.mean)
    made = read_native(out)
    assert verify(out) == [] and made.keys() == held.keys()
    for name, tensor in held.items():
        if name in (EMBEDDING, HEAD):
            assert made[name].shape == (rows, 6) and torch.equal(made[name][:USED], tensor[:USED])
            mean = tensor[:TEXT].double().mean(0).float()  # of text rows: code rows and padding are not like them
            assert all(torch.equal(row, mean) for row in made[name][USED:])
        else:
            assert torch.equal(made[name], tensor)
    manifest = read_manifest(out)
    assert manifest.vocabulary is not None and manifest.vocabulary["ranges"] == VOCABULARY["ranges"]
    assert -(-USED // manifest.vocabulary["multiple"]) * manifest.vocabulary["multiple"] == rows


@pytest.mark.parametrize("masters", [False, True], ids=["fp32", "bf16 with fp32 parameters"])
def test_the_optimiser_comes_along(masters: bool, tmp_path: Path) -> None:
    held = trained(weights(dtype=torch.bfloat16 if masters else torch.float32), masters)
    native = make_native(tmp_path / "native", held)
    out = change_vocabulary(native, tmp_path / "out", Wanted(tensor=3), optimizer=True)
    made = read_native(out)
    assert made.keys() == held.keys() and made[EMBEDDING].shape[0] == 24, "17 ids, multiples of 4 and 3"
    for kind in ("exp_avg", "exp_avg_sq"):
        name = f"optimizer.state.{kind}.{EMBEDDING}"
        assert torch.equal(made[name][:USED], held[name][:USED]) and not made[name][USED:].any()
    if masters:
        name = f"optimizer.state.fp32_param.{EMBEDDING}"
        assert torch.equal(made[name][:USED], held[name][:USED]) and made[name].dtype == torch.float32
        assert torch.equal(made[name][USED:], made[EMBEDDING][USED:].float())
    assert torch.load(out / "tensors/common.pt") == {"optimizer": {"step": 3}}
    assert (out / "state.json").read_text() == (native / "state.json").read_text()


def test_another_corpus(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    ranges = {"text": [0, 10], "special": [10, 11], "new": [11, 14], "code": [14, 19]}
    like = {**VOCABULARY, "specials": ["<|b|>"], "ranges": ranges}
    (corpus / "vocabulary.json").write_text(json.dumps(like))
    (corpus / "tokenizer.json").write_text("{}")
    native = make_native(tmp_path / "native", weights())
    assert main(["checkpoint", "vocab", str(native), "--like", str(corpus), "--out", str(tmp_path / "out")]) == 0
    before, after = weights()[EMBEDDING], read_native(tmp_path / "out")[EMBEDDING]
    assert len(after) == 20
    assert torch.equal(after[:10], before[:10]) and torch.equal(after[10], before[11])
    assert torch.equal(after[14:19], before[12:17]) and not torch.equal(after[11:14], before[12:15])
    assert read_manifest(tmp_path / "out").vocabulary == like
    assert json.loads((tmp_path / "out/vocabulary.json").read_text()) == like


def test_a_dtype_is_changed_only_where_asked(tmp_path: Path) -> None:
    native = make_native(tmp_path / "native", weights(dtype=torch.bfloat16))
    same = read_native(change_vocabulary(native, tmp_path / "same", Wanted(rows=ROWS)))
    wide = read_native(change_vocabulary(native, tmp_path / "wide", Wanted(rows=ROWS), dtype=Precision.fp32))
    for name, tensor in weights(dtype=torch.bfloat16).items():
        assert same[name].dtype == torch.bfloat16 and wide[name].dtype == torch.float32
        assert torch.equal(wide[name][:USED], tensor[:USED].float())
    with pytest.raises(BadInput, match="one dtype"):
        change_vocabulary(native, tmp_path / "no", Wanted(rows=ROWS), dtype=Precision.fp32, optimizer=True)


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    native = make_native(tmp_path / "native", weights())
    silent = make_native(tmp_path / "silent", weights(), vocabulary=None)
    for folder, wanted, said in [
        (native, Wanted(rows=16), "17 are in use"),
        (native, Wanted(used=12), "17 ids in use, more than 12"),
        (silent, Wanted(rows=32), "say so with --used"),
        (silent, Wanted(like=VOCABULARY), "does not say which ids"),
        (silent, Wanted(used=21), "21 are in use"),
    ]:
        with pytest.raises(BadInput, match=said):
            change_vocabulary(folder, tmp_path / "out", wanted)
    assert not (tmp_path / "out").exists()
    made = change_vocabulary(silent, tmp_path / "out", Wanted(used=20, rows=24), copied=(2,))
    assert torch.equal(read_native(made)[EMBEDDING][20:], weights()[EMBEDDING][[2, 2, 2, 2]])
    for text in ("{}", "[]", '{"ranges": {"text": 3}}', "\x00"):
        (native / "vocabulary.json").write_text(text)
        (native / "tokenizer.json").write_text("{}")
        assert main(["checkpoint", "vocab", str(silent), "--like", str(native), "--out", str(tmp_path / "o")]) == 2
