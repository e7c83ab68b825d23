"""The speech decoder: sizes that fit together, and what a stage that trains one cannot be."""

from __future__ import annotations

from configs.schema import Config, DecoderConfig, MelConfig, Precision, StageKind
from runtime.exits import BadInput

OBJECTIVES = ("flow", "vocoder")  # of a stage of kind decoder
_SHARES = ("drop", "prompt_share", "longest_prompt")


def check_decoder(config: Config) -> None:
    """Raise BadInput for a stage of kind decoder that cannot work; other stages have no decoder to check."""
    if config.stage.kind is not StageKind.decoder:
        if config.stage.objective in OBJECTIVES:
            raise BadInput(f"stage.objective={config.stage.objective} trains a decoder; it needs stage.kind=decoder")
        return
    if config.stage.objective not in OBJECTIVES:
        raise BadInput(
            f"stage.objective={config.stage.objective}: a stage of kind decoder trains one of {', '.join(OBJECTIVES)}"
        )
    if config.train.precision is not Precision.fp32:
        raise BadInput(f"train.precision={config.train.precision.value}: a decoder is trained in fp32")
    _check_engine(config)
    check_sizes(config.decoder)


def _check_engine(config: Config) -> None:
    if config.engine.name != "deepspeed":
        raise BadInput(
            f"engine.name={config.engine.name} trains the speech LM alone; a decoder needs engine.name=deepspeed"
        )
    if config.engine.zero_stage == 3:
        raise BadInput("engine.zero_stage=3: a decoder is whole on every rank; engine.zero_stage=2 at most")
    for key in ("tensor", "pipeline", "context", "expert"):
        if getattr(config.parallel, key) > 1:
            raise BadInput(f"parallel.{key}={getattr(config.parallel, key)}: a decoder is trained data-parallel alone")
    if config.stage.lora is not None:
        raise BadInput("stage.lora: a decoder takes no low-rank updates")


def check_sizes(decoder: DecoderConfig) -> None:
    """Raise BadInput for the first size of a decoder that cannot be."""
    _check_mel(decoder.mel)
    flow, vocoder = decoder.flow, decoder.vocoder
    for part, sizes in (
        ("", (("seconds", decoder.seconds), ("speaker_width", decoder.speaker_width))),
        (
            "flow.",
            tuple((name, getattr(flow, name)) for name in ("embedding", "heads", "head_dim", "middle", "euler_steps")),
        ),
        ("vocoder.", tuple((name, getattr(vocoder, name)) for name in _VOCODER)),
    ):
        for name, value in sizes:
            if value <= 0:
                raise BadInput(f"decoder.{part}{name}={value}: has to be above 0")
    for key, values in (
        ("flow.channels", flow.channels),
        ("vocoder.periods", vocoder.periods),
        ("vocoder.windows", vocoder.windows),
    ):
        if not values or min(values) <= 0:
            raise BadInput(f"decoder.{key}={values}: has to be a list of numbers above 0")
    for name in _SHARES:
        if not 0 <= getattr(flow, name) <= 1:
            raise BadInput(f"decoder.flow.{name}={getattr(flow, name)}: has to be from 0 to 1")
    for name in ("encoder_layers", "blocks", "guidance", "sigma_min"):
        if getattr(flow, name) < 0:
            raise BadInput(f"decoder.flow.{name}={getattr(flow, name)}: has to be 0 or above")
    if flow.reach is not None and flow.reach < 0:
        raise BadInput(f"decoder.flow.reach={flow.reach}: has to be 0 or above, or null")
    if vocoder.segment * decoder.mel.hop <= max(vocoder.windows) // 2:
        raise BadInput(
            f"decoder.vocoder.segment={vocoder.segment}: shorter than half of the longest of "
            f"decoder.vocoder.windows={vocoder.windows}"
        )


_VOCODER = ("width", "ffn", "layers", "segment", "discriminator_width")


def _check_mel(mel: MelConfig) -> None:
    for name in ("rate", "window", "hop", "bands", "floor", "deviation"):
        if getattr(mel, name) <= 0:
            raise BadInput(f"decoder.mel.{name}={getattr(mel, name)}: has to be above 0")
    if mel.hop % 2 or mel.window % mel.hop:
        raise BadInput(f"decoder.mel.hop={mel.hop} has to be even and divide decoder.mel.window={mel.window}")
    if not 0 <= mel.lowest < mel.highest <= mel.rate / 2:
        raise BadInput(
            f"decoder.mel: lowest={mel.lowest} and highest={mel.highest} have to be a range below half of "
            f"rate={mel.rate}"
        )
