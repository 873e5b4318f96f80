"""Every run as one strict model: an unknown key, a wrong type or an impossible value is an error that names it.

Imports no torch, so that ``--check`` and ``--help`` answer at once. Each field's meaning is its docstring's line;
defaults are chosen for a CPU, the files in ``configs/`` hold the settings for larger machines.
"""

from latentsynth.config.autoencoder import (
    AutoencoderConfig,
    AutoencoderRun,
    KLConfig,
    PerceptualConfig,
    ReconstructionConfig,
    VQConfig,
)
from latentsynth.config.data import AugmentConfig, DataConfig
from latentsynth.config.extractor import COPY_DETECTOR, ExtractorRun, ViewsConfig
from latentsynth.config.gan import GameConfig, GanDataConfig, GanRun
from latentsynth.config.generators import (
    CycleGANConfig,
    DiscriminatorConfig,
    GanSamplingConfig,
    GeneratorConfig,
    GrownConfig,
    LatentGANConfig,
    PatchConfig,
    Pix2PixConfig,
    ProgressiveGANConfig,
    ResidualConfig,
    SPADEConfig,
    StyleGAN1Config,
    StyleGAN2Config,
    StyleGAN3Config,
)
from latentsynth.config.ldm import (
    SCHEDULER_SHIFTS,
    ConditionerConfig,
    DenoiserConfig,
    DiffusionConfig,
    LatentDataConfig,
    LdmRun,
    SamplingConfig,
)
from latentsynth.config.mask_generators import (
    LabelSamplingConfig,
    LabelVAEConfig,
    MaskDataConfig,
    MaskDiffusionConfig,
    MaskGeneratorConfig,
    MaskRun,
    MaskSamplingConfig,
    SliceSamplingConfig,
    SliceVAEConfig,
)
from latentsynth.config.mask_set import MaskSetConfig
from latentsynth.config.mask_shapes import ComposeConfig, DeformConfig, ProceduralConfig
from latentsynth.config.memorization import MemorizationStudy, OvertrainedConfig
from latentsynth.config.runs import RUNS, run_of
from latentsynth.config.segmenter import (
    DynUNetConfig,
    InferenceConfig,
    NetworkConfig,
    SegmentationLossConfig,
    SegmenterDataConfig,
    SegmenterRun,
    SourceConfig,
    SwinUNETRConfig,
    UNetConfig,
    ValidationConfig,
)
from latentsynth.config.study import RolesConfig, StudyConfig
from latentsynth.config.training import Run, TrainConfig
from latentsynth.config.utility import ArmConfig, DropConfig, MarginsConfig, NewMasksConfig, UtilityStudy
from latentsynth.strict import Strict, build, dump, load

__all__ = [
    "COPY_DETECTOR",
    "RUNS",
    "SCHEDULER_SHIFTS",
    "ArmConfig",
    "AugmentConfig",
    "AutoencoderConfig",
    "AutoencoderRun",
    "ComposeConfig",
    "ConditionerConfig",
    "CycleGANConfig",
    "DataConfig",
    "DeformConfig",
    "DenoiserConfig",
    "DiffusionConfig",
    "DiscriminatorConfig",
    "DropConfig",
    "DynUNetConfig",
    "ExtractorRun",
    "GameConfig",
    "GanDataConfig",
    "GanRun",
    "GanSamplingConfig",
    "GeneratorConfig",
    "GrownConfig",
    "InferenceConfig",
    "KLConfig",
    "LabelSamplingConfig",
    "LabelVAEConfig",
    "LatentDataConfig",
    "LatentGANConfig",
    "LdmRun",
    "MarginsConfig",
    "MaskDataConfig",
    "MaskDiffusionConfig",
    "MaskGeneratorConfig",
    "MaskRun",
    "MaskSamplingConfig",
    "MaskSetConfig",
    "MemorizationStudy",
    "NetworkConfig",
    "NewMasksConfig",
    "OvertrainedConfig",
    "PatchConfig",
    "PerceptualConfig",
    "Pix2PixConfig",
    "ProceduralConfig",
    "ProgressiveGANConfig",
    "ReconstructionConfig",
    "ResidualConfig",
    "RolesConfig",
    "Run",
    "SPADEConfig",
    "SamplingConfig",
    "SegmentationLossConfig",
    "SegmenterDataConfig",
    "SegmenterRun",
    "SliceSamplingConfig",
    "SliceVAEConfig",
    "SourceConfig",
    "Strict",
    "StudyConfig",
    "StyleGAN1Config",
    "StyleGAN2Config",
    "StyleGAN3Config",
    "SwinUNETRConfig",
    "TrainConfig",
    "UNetConfig",
    "UtilityStudy",
    "VQConfig",
    "ValidationConfig",
    "ViewsConfig",
    "build",
    "dump",
    "load",
    "run_of",
]
