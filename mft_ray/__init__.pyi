from .api import (
    ComparisonRun,
    ExperimentRun,
    TrainingRun,
    compare,
    evaluate,
    experiment,
    export,
    load_masked,
    load_run,
    push,
    score,
    search,
    train,
)
from .config import Config
from .errors import RunFailed, UserError
from .masking import Masks, MaskSettings
from .runs.reading import Run

__version__: str
__all__ = [
    "ComparisonRun",
    "Config",
    "ExperimentRun",
    "MaskSettings",
    "Masks",
    "Run",
    "RunFailed",
    "TrainingRun",
    "UserError",
    "compare",
    "evaluate",
    "experiment",
    "export",
    "load_masked",
    "load_run",
    "push",
    "score",
    "search",
    "train",
]
