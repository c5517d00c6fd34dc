"""Every setting, once: its name, default, allowed values and meaning.

A YAML file holds only differences from these defaults; unknown keys are refused. The resolved tree is
saved beside every result, so that a run folder is enough to run again.
"""

from mft_ray.config.data import DataConfig, EvaluationConfig, Metric, PartConfig
from mft_ray.config.search import (
    BudgetConfig,
    FloatRange,
    LearningRateRange,
    MaskingRatioRange,
    SearchConfig,
    SpaceConfig,
    StopConfig,
)
from mft_ray.config.training import FftConfig, FftTrainConfig, ModelConfig, ScalingConfig, TrainConfig
from mft_ray.config.tree import Config, RunConfig, load_config, parse_config

__all__ = [
    "BudgetConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "FftConfig",
    "FftTrainConfig",
    "FloatRange",
    "LearningRateRange",
    "MaskingRatioRange",
    "Metric",
    "ModelConfig",
    "PartConfig",
    "RunConfig",
    "ScalingConfig",
    "SearchConfig",
    "SpaceConfig",
    "StopConfig",
    "TrainConfig",
    "load_config",
    "parse_config",
]
