"""Every option of Megaphone, typed and documented. Hydra composes YAML groups into these and refuses other keys.

Units are in the comments; a `None` default says "derived" or "not used", and the comment says which.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema.cluster import (
    ClusterConfig,
    ContainerConfig,
    ContainerKind,
    CorpusJobConfig,
    Launcher,
    PreflightConfig,
    Tasks,
)
from configs.schema.data import (
    AlignmentConfig,
    CodebookConfig,
    CodecConfig,
    CorpusConfig,
    CutConfig,
    LoaderConfig,
    MixtureConfig,
    QualityConfig,
    SourceConfig,
    SpeechSourceConfig,
    SynthesisConfig,
)
from configs.schema.loss import LossConfig
from configs.schema.model import (
    AudioRows,
    BackboneConfig,
    ExpertsConfig,
    ExportConfig,
    LoraConfig,
    NewRows,
    Positions,
    RopeScaling,
    RopeScalingKind,
    StageConfig,
    StageKind,
)
from configs.schema.notify import Event, NotifyConfig
from configs.schema.observe import ObserveConfig, ProfileConfig
from configs.schema.resilience import OnIncident, ResilienceConfig
from configs.schema.training import (
    AttentionKernel,
    CheckpointConfig,
    EngineConfig,
    ExpertKernel,
    OptimizerConfig,
    ParallelConfig,
    ParameterGroupConfig,
    Precision,
    Recompute,
    RecomputeMethod,
    RunConfig,
    Schedule,
    TrackerConfig,
    TrainConfig,
    Verification,
)

__all__ = [
    "AlignmentConfig",
    "AttentionKernel",
    "AudioRows",
    "BackboneConfig",
    "CheckpointConfig",
    "ClusterConfig",
    "CodebookConfig",
    "CodecConfig",
    "Config",
    "ContainerConfig",
    "ContainerKind",
    "CorpusConfig",
    "CorpusJobConfig",
    "CutConfig",
    "EngineConfig",
    "Event",
    "ExpertKernel",
    "ExpertsConfig",
    "ExportConfig",
    "Launcher",
    "LoaderConfig",
    "LoraConfig",
    "LossConfig",
    "MixtureConfig",
    "NewRows",
    "NotifyConfig",
    "ObserveConfig",
    "OnIncident",
    "OptimizerConfig",
    "ParallelConfig",
    "ParameterGroupConfig",
    "Positions",
    "Precision",
    "PreflightConfig",
    "ProfileConfig",
    "QualityConfig",
    "Recompute",
    "RecomputeMethod",
    "ResilienceConfig",
    "RopeScaling",
    "RopeScalingKind",
    "RunConfig",
    "Schedule",
    "SourceConfig",
    "SpeechSourceConfig",
    "StageConfig",
    "StageKind",
    "SynthesisConfig",
    "Tasks",
    "TrackerConfig",
    "TrainConfig",
    "Verification",
]


@dataclass
class Config:
    """All that a stage is; `config.yaml` of a run folder holds one of these, resolved."""

    recipe: str | None = None
    scale: str | None = None
    launcher: Launcher = Launcher.local
    run: RunConfig = field(default_factory=RunConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    codec: CodecConfig = field(default_factory=CodecConfig)
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
