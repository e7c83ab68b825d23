"""Every option of Megaphone, typed and documented. Hydra composes YAML groups into these and refuses other keys.

Units are in the comments; a `None` default says "derived" or "not used", and the comment says which.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from configs.schema.audio_input import AdapterConfig, AdapterKind, EncoderConfig, EncoderKind
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
from configs.schema.decoder import DecoderConfig, FlowConfig, MelConfig, VocoderConfig
from configs.schema.distillation import DistillationConfig
from configs.schema.evaluation import Asked, EvaluationConfig, EvaluationSetConfig, MeasurementConfig, MeasurementKind
from configs.schema.generation import GenerationConfig, Made
from configs.schema.inference import InferenceConfig, InferenceKind
from configs.schema.loss import LossConfig
from configs.schema.merge import MergeConfig
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
from configs.schema.ppo import PPOConfig
from configs.schema.preference import PreferenceConfig
from configs.schema.resilience import OnIncident, ResilienceConfig
from configs.schema.training import (
    AttentionKernel,
    CheckpointConfig,
    EngineConfig,
    ExpertKernel,
    Fp8Config,
    Fp8Recipe,
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
    "AdapterConfig",
    "AdapterKind",
    "AlignmentConfig",
    "Asked",
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
    "DecoderConfig",
    "DistillationConfig",
    "EncoderConfig",
    "EncoderKind",
    "EngineConfig",
    "EvaluationConfig",
    "EvaluationSetConfig",
    "Event",
    "ExpertKernel",
    "ExpertsConfig",
    "ExportConfig",
    "FlowConfig",
    "Fp8Config",
    "Fp8Recipe",
    "GenerationConfig",
    "InferenceConfig",
    "InferenceKind",
    "Launcher",
    "LoaderConfig",
    "LoraConfig",
    "LossConfig",
    "Made",
    "MeasurementConfig",
    "MeasurementKind",
    "MelConfig",
    "MergeConfig",
    "MixtureConfig",
    "NewRows",
    "NotifyConfig",
    "ObserveConfig",
    "OnIncident",
    "OptimizerConfig",
    "PPOConfig",
    "ParallelConfig",
    "ParameterGroupConfig",
    "Positions",
    "Precision",
    "PreferenceConfig",
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
    "VocoderConfig",
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
    encoder: EncoderConfig | None = None  # None: neither corpus nor model has one
    adapter: AdapterConfig | None = None  # None: the model hears through codes alone
    mixture: MixtureConfig = field(default_factory=MixtureConfig)
    loader: LoaderConfig = field(default_factory=LoaderConfig)
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    merge: MergeConfig = field(default_factory=MergeConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    observe: ObserveConfig = field(default_factory=ObserveConfig)
    resilience: ResilienceConfig = field(default_factory=ResilienceConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
