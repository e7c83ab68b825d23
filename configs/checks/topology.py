"""How ranks share a model: sizes that cannot be, refused in one line."""

from __future__ import annotations

from configs.schema import Config
from runtime.exits import BadInput

# Rows of the embedding are padded to this; every tensor-parallel size has to divide it (Vocabulary.multiple).
VOCABULARY_MULTIPLE = 128


def model_parallel_size(config: Config) -> int:
    """Processes that share one copy of the model: tensor x pipeline x context."""
    return config.parallel.tensor * config.parallel.pipeline * config.parallel.context


def data_parallel_size(config: Config, processes: int | None = None) -> int:
    """Copies of the model over `processes`; without it, what `parallel.data` says, or one.

    Raises BadInput where the topology does not fill `processes` exactly.
    """
    given = config.parallel.data
    if processes is None:
        return given or 1
    model = model_parallel_size(config)
    shape = f"parallel.tensor x pipeline x context = {model}"
    if processes % model:
        raise BadInput(f"{shape} does not divide the {processes} processes")
    if given is not None and given != processes // model:
        made = processes // model
        raise BadInput(f"parallel.data={given}, but {processes} processes with {shape} make {made} copies")
    return processes // model


def check_topology(config: Config) -> None:
    tensor = config.parallel.tensor
    for key, count in (
        ("backbone.heads", config.backbone.heads),
        ("backbone.kv_heads", config.backbone.kv_heads),
        ("backbone.ffn", config.backbone.ffn),
        ("backbone.hidden", config.backbone.hidden),
    ):
        if count % tensor:
            raise BadInput(f"parallel.tensor={tensor} does not divide {key}={count}")
    if VOCABULARY_MULTIPLE % tensor:
        raise BadInput(f"parallel.tensor={tensor} does not divide the vocabulary's padding of {VOCABULARY_MULTIPLE}")
    context, tokens = config.parallel.context, config.train.sequence_length * config.train.micro_batch
    if context > 1 and tokens % (2 * context):
        raise BadInput(
            f"parallel.context={context} cuts rows into {2 * context} runs, which do not divide "
            f"train.sequence_length x train.micro_batch = {tokens}"
        )
    if config.parallel.sequence:
        if tensor == 1:
            raise BadInput("parallel.sequence=true needs parallel.tensor above 1")
        if tokens // context % tensor:
            raise BadInput(
                f"parallel.sequence=true: parallel.tensor={tensor} does not divide "
                f"train.sequence_length x train.micro_batch / parallel.context = {tokens // context}"
            )


def check_data_parallel(config: Config, data: int) -> None:
    copies = f"the {data} data-parallel copies"
    if config.loader.lanes % data:
        raise BadInput(f"loader.lanes={config.loader.lanes} does not divide over {copies}")
    step = data * config.train.micro_batch
    if config.train.global_batch % step:
        raise BadInput(
            f"train.global_batch={config.train.global_batch} is no multiple of "
            f"{data} data-parallel copies x train.micro_batch={config.train.micro_batch}"
        )
    if config.train.validation_packs % data:
        raise BadInput(f"train.validation_packs={config.train.validation_packs} does not divide over {copies}")
