"""The configuration of a run: one frozen pydantic section per stage, YAML and `--set`.

Imports no torch, ray or stage, so that a typing mistake is answered at once.
"""

from pmm_ray.config.load import ConfigError, load_recipe, to_yaml
from pmm_ray.config.sections import (
    CamsConfig,
    ClassifierConfig,
    CrfConfig,
    CyclesConfig,
    DataConfig,
    ErrorsConfig,
    EvaluateConfig,
    MasksConfig,
    PredictConfig,
    ReportConfig,
    RunConfig,
    RuntimeConfig,
    Section,
    SegmenterConfig,
    UnderfittingConfig,
    section_hash,
)

__all__ = [
    "CamsConfig",
    "ClassifierConfig",
    "ConfigError",
    "CrfConfig",
    "CyclesConfig",
    "DataConfig",
    "ErrorsConfig",
    "EvaluateConfig",
    "MasksConfig",
    "PredictConfig",
    "ReportConfig",
    "RunConfig",
    "RuntimeConfig",
    "Section",
    "SegmenterConfig",
    "UnderfittingConfig",
    "load_recipe",
    "section_hash",
    "to_yaml",
]
