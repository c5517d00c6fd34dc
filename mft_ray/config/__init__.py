"""Every setting, once: its name, default, allowed values and meaning.

A YAML file holds only differences from these defaults; unknown keys are refused. The resolved tree is
saved beside every result, so that a run folder is enough to run again.
"""

from mft_ray.config.comparison import CompareConfig
from mft_ray.config.data import DataConfig, EvaluationConfig, Metric, PartConfig
from mft_ray.config.experiment import ExperimentConfig
from mft_ray.config.methods import METHODS
from mft_ray.config.parsing.paths import setting_type, with_settings
from mft_ray.config.search import BudgetConfig, SearchConfig, StopConfig
from mft_ray.config.space import (
    FloatRange,
    LearningRateRange,
    MaskingRatioRange,
    SettingRange,
    SpaceConfig,
)
from mft_ray.config.tracking import ArtifactName, MlflowConfig, TrackingConfig, WandbConfig
from mft_ray.config.training import FftConfig, FftTrainConfig, LoraConfig, ModelConfig, ScalingConfig, TrainConfig
from mft_ray.config.tree import Config, RunConfig, load_config, parse_config
from mft_ray.config.verdict import VerdictConfig

__all__ = [
    "METHODS",
    "ArtifactName",
    "BudgetConfig",
    "CompareConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "ExperimentConfig",
    "FftConfig",
    "FftTrainConfig",
    "FloatRange",
    "LearningRateRange",
    "LoraConfig",
    "MaskingRatioRange",
    "Metric",
    "MlflowConfig",
    "ModelConfig",
    "PartConfig",
    "RunConfig",
    "ScalingConfig",
    "SearchConfig",
    "SettingRange",
    "SpaceConfig",
    "StopConfig",
    "TrackingConfig",
    "TrainConfig",
    "VerdictConfig",
    "WandbConfig",
    "load_config",
    "parse_config",
    "setting_type",
    "with_settings",
]
