"""A small recipe folder to compose from, complete without any package that carries weights."""

from __future__ import annotations

from pathlib import Path

RECIPE = """
name: example
summary: A recipe for tests.
common:
  backbone: tiny
  codec: {name: none}
  corpus: {name: none}
  mixture: quickstart
  train: {steps: 10, global_batch: 4}
scales:
  tiny: {train: {steps: 20}, optimizer.lr: 1.0e-3}
  small: {backbone: smollm2_135m, train: {precision: bf16}}
stages:
  pretrain: {train.steps: 30}
  align: {stage.weights: pretrain, train: {seed: 7}}
"""


def write_recipe(folder: Path, text: str = RECIPE) -> str:
    """Write a recipe; returns what to give as recipe=."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return str(folder)
