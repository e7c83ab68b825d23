"""Zero-shot sets of text through EleutherAI's lm-evaluation-harness, on ids of text alone.

A set is a folder with one YAML file a task, as the harness reads them, beside the data that they name
(`dataset_path: json`, `data_files` relative to the folder): nothing comes from a hub.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import chdir
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from configs.schema import MeasurementConfig
from data_pipeline.packages import package_version
from data_pipeline.sources.evaluation import Item
from data_pipeline.vocabulary import TEXT
from runtime.exits import BadInput
from train.evaluation.figures import PERCENT, Figure
from train.evaluation.measurement import Found, Record
from train.evaluation.subject import Subject

LIBRARY = "lm_eval"
_LOCAL = ("arrow", "csv", "json", "pandas", "parquet", "text")  # builders of datasets that read files
_SHARES = ("acc", "acc_norm", "exact_match", "f1", "mcc")  # metrics that the harness gives from 0 to 1
_TWO_SIDED = 1.96  # standard errors to either side that hold 95 % of a normal distribution


class _Task(NamedTuple):
    name: str
    file: Path


class Tasks:
    """Every metric of every task, `<task>_<metric>`, with the harness's standard error."""

    def __init__(self, subject: Subject, config: MeasurementConfig) -> None:
        if package_version(LIBRARY) == "absent":
            raise BadInput(
                "tasks need lm-evaluation-harness, which is not installed: pip install megaphone[evaluation]"
            )
        self._subject = subject
        self._config = config

    @cached_property
    def _model(self) -> Any:
        from transformers import AutoTokenizer

        return _text_only(
            self._subject.vocabulary.ranges[TEXT].stop,
            pretrained=self._subject.model,
            tokenizer=AutoTokenizer.from_pretrained(self._subject.export),
            batch_size=self._config.batch,
            max_length=self._subject.config.backbone.max_positions,
            prefix_token_id=self._subject.vocabulary.special(self._subject.vocabulary.end_of_text),
        )

    def prepare(self, item: Item) -> _Task:
        """See `Measurement.prepare`."""
        task, file = _read(Path(item.text)), Path(item.text)
        source = str(task.get("dataset_path", ""))
        if source and source not in _LOCAL and not (file.parent / source).exists():
            raise BadInput(f"{file}: dataset_path {source} is no local data; there are {', '.join(_LOCAL)} and folders")
        return _Task(str(task.get("task", file.stem)), file)

    def measure(self, prepared: Sequence[_Task]) -> list[Found]:
        """See `Measurement.measure`."""
        return [Found(self._run(task)) for task in prepared]

    def _run(self, task: _Task) -> Record:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        manager = TaskManager(include_path=str(task.file.parent), include_defaults=False)
        with chdir(task.file.parent):
            told = simple_evaluate(
                self._model,
                tasks=[task.name],
                task_manager=manager,
                limit=self._config.limit,
                log_samples=False,
                bootstrap_iters=100,
            )
        metrics = {name.removesuffix(",none"): value for name, value in told["results"][task.name].items()}
        return {
            "task": task.name,
            "questions": told["n-samples"][task.name]["effective"],
            "metrics": {name: value for name, value in metrics.items() if isinstance(value, float)},
        }

    def total(self, records: Sequence[Record]) -> dict[str, Figure]:
        """See `Measurement.total`."""
        figures = {}
        for record in records:
            metrics = record["metrics"]
            for name, value in metrics.items():
                if "_stderr" not in name:
                    error = metrics.get(f"{name}_stderr")
                    figures[f"{record['task']}_{name}"] = _figure(name, value, error)
        return figures


def _figure(name: str, value: float, error: float | None) -> Figure:
    scale, unit = (100.0, PERCENT) if name in _SHARES else (1.0, "")
    if error is None:
        return Figure(scale * value, unit)
    return Figure(scale * value, unit, scale * (value - _TWO_SIDED * error), scale * (value + _TWO_SIDED * error))


def _text_only(rows: int, **options: Any) -> Any:
    """The harness's model, for which no id from `rows` on is ever likely."""
    import torch
    from lm_eval.models.huggingface import HFLM

    class TextOnly(HFLM):
        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            scores = super()._model_call(inps, attn_mask, labels)
            scores[..., rows:] = -torch.inf
            return scores

        def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
            others = list(range(rows, self.model.get_output_embeddings().weight.shape[0]))
            return super()._model_generate(context, max_length, stop, suppress_tokens=others, **settings)

    return TextOnly(**options)


def _read(file: Path) -> dict[str, Any]:
    """A task's YAML, the functions that it names left out."""
    import yaml

    class Plain(yaml.SafeLoader):
        pass

    Plain.add_multi_constructor("!", lambda loader, suffix, node: None)
    try:
        task = yaml.load(file.read_text(encoding="utf-8"), Plain)  # a SafeLoader
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} is no task: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(task, dict):
        raise BadInput(f"{file} is no task: it holds no mapping")
    return task
