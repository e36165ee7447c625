"""The configuration of a run: one frozen pydantic section per stage, YAML and `--set`.

Imports no torch, ray or stage, so a mistyped key fails at once.
"""

from pmm_ray.config.affinity import AffinityConfig, WalkConfig
from pmm_ray.config.base import ConfigError, Section, section_hash
from pmm_ray.config.classifier import (
    AnyClassifierConfig,
    CamsConfig,
    ClassifierConfig,
    CropsConfig,
    MulticropConfig,
    PcmConfig,
)
from pmm_ray.config.data import DataConfig
from pmm_ray.config.inference import InferenceConfig
from pmm_ray.config.load import load_recipe, parse_recipe, recipe_bytes, refuse_unread, to_yaml
from pmm_ray.config.masks import BaseConfig, CrfConfig, MasksConfig
from pmm_ray.config.sections import (
    AblateConfig,
    ErrorsConfig,
    EvaluateConfig,
    ReportConfig,
    RunConfig,
    RuntimeConfig,
)
from pmm_ray.config.segmenter import (
    CyclesConfig,
    PredictConfig,
    SegmenterConfig,
    UnderfittingConfig,
)
from pmm_ray.config.training import EpochTrainingConfig, TrainingConfig

__all__ = [
    "AblateConfig",
    "AffinityConfig",
    "AnyClassifierConfig",
    "BaseConfig",
    "CamsConfig",
    "ClassifierConfig",
    "ConfigError",
    "CrfConfig",
    "CropsConfig",
    "CyclesConfig",
    "DataConfig",
    "EpochTrainingConfig",
    "ErrorsConfig",
    "EvaluateConfig",
    "InferenceConfig",
    "MasksConfig",
    "MulticropConfig",
    "PcmConfig",
    "PredictConfig",
    "ReportConfig",
    "RunConfig",
    "RuntimeConfig",
    "Section",
    "SegmenterConfig",
    "TrainingConfig",
    "UnderfittingConfig",
    "WalkConfig",
    "load_recipe",
    "parse_recipe",
    "recipe_bytes",
    "refuse_unread",
    "section_hash",
    "to_yaml",
]
