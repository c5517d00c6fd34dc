"""The files of a run folder that others read, one model for each: its writer makes it, its readers get it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from mft_ray.config.params import Params
from mft_ray.errors import UserError
from mft_ray.evaluation.statistics import loss_believed
from mft_ray.runs.live.nodes import NodeUse
from mft_ray.training.job import Cost, Evaluation, Stop
from mft_ray.utils.files import read_json, write_json
from mft_ray.utils.json_types import JsonObject


def _finite(value: object) -> object:
    """A diverged trial's NaN or infinity has no place on an axis: it counts as no score."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Score = Annotated[float | None, BeforeValidator(_finite)]
Interval = tuple[float, float]


class Record(BaseModel):
    """A part of a file; keys that are not known here are kept but not needed."""

    model_config = ConfigDict(extra="allow", coerce_numbers_to_str=True, populate_by_name=True)

    def content(self) -> JsonObject:
        """Return what is written, as JSON has it."""
        return self.model_dump(mode="json", by_alias=True)


class FileRecord(Record):
    """A whole file.

    Attributes:
        SCHEMA: the newest version of the file that can be read; a file that says none is of the first.
    """

    SCHEMA: ClassVar[int] = 1

    schema_version: int = Field(1, alias="schema")

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.content())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file.

        Raises:
            FileNotFoundError: there is none.
            Damaged: it is empty, half-written, or something else.
            UserError: it is of a later version.
        """
        found = read_json(path, cls.model_validate)
        if found.schema_version > cls.SCHEMA:
            raise UserError(
                f"{path} has schema {found.schema_version}, and this version of mft_ray reads {path.name} up to schema "
                f"{cls.SCHEMA}. Use the version that wrote it, or a later one."
            )
        return found


class SplitScore(Record):
    """A mean score over the n examples of one split."""

    score: Score
    n: int
    standard_error: Score = None

    @classmethod
    def of(cls, values: Sequence[float], standard_error: float | None = None) -> SplitScore:
        """Return the mean of scores, one per example."""
        return cls(score=sum(values) / len(values), n=len(values), standard_error=standard_error)


class Measured(Record):
    """Scores of one model; either split may not have been judged yet."""

    method: str | None = None
    metric: str | None = None
    validation: SplitScore | None = None
    test: SplitScore | None = None
    standard_error: Score = None
    stopped: str | None = None
    best_step: int | None = None
    steps: int | None = None
    tokens: int | None = None
    seconds: Score = None


class FftScores(Measured):
    """The FFT model by one metric."""

    metric: str
    validation: SplitScore

    @property
    def error(self) -> float | None:
        """Standard error of the validation score, wherever the search put it."""
        return self.validation.standard_error if self.standard_error is None else self.standard_error


class Baseline(FftScores, FileRecord):
    """baseline.json: the FFT model, and FFT continued for the winner's token budget.

    ``watched`` is the same model by the metric that training was watched by, if that was not ``metric``.
    """

    model: str | None = None
    continued: Measured | None = None
    watched: FftScores | None = None


class Trial(Record):
    """One line of leaderboard.json; ``score`` is its best on validation, at ``step``.

    ``stop`` has the numbers by which a rule ended it, in the metric that training was watched by.
    """

    trial_id: str
    config: Params
    step: int | None = None
    score: Score = None
    delta_fft: Score = None
    watched: Score = None
    status: str = ""
    stopped_reason: str | None = None
    seconds: Score = None
    steps: int | None = None
    tokens: int | None = None
    cost: Cost | None = None
    stop: Stop | None = None
    error: str | None = None
    pareto: bool = False

    @property
    def ratio(self) -> float:
        """How much the trial masks; a method without masks has nothing to choose between."""
        return float(self.config.get("ratio", 0.0))


class Leaderboard(FileRecord):
    """leaderboard.json: every trial, best first."""

    baseline: Baseline | None = None
    trials: list[Trial]


class MetricComparison(Record):
    """The winner against FFT by another metric, or on a benchmark task."""

    metric: str
    n: int
    fft: Score = None
    continued: Score = None
    mft: Score = None
    delta: Score = None
    ci95: Interval | None = None
    p_value: Score = None
    test: str | None = None
    detectable: Score = None
    p_holm: Score = None
    worse: bool = False


class Rival(Record):
    """The winner against the best of other methods, by validation."""

    method: str
    score: float
    delta: float
    ci95: Interval
    p_value: float
    beaten: bool | None = None


class Spread(Record):
    """A difference over seeds: mean, standard deviation, and Student's 95% interval of the mean."""

    mean: float
    sd: float
    ci95: Interval


class SeedSpread(Record):
    """FFT, continued FFT and the winner with several seeds: their mean test scores, and the differences.

    Attributes:
        n: number of seeds.
        runs: for each seed the mean scores of ``fft``, ``mft`` and, if it could be run, ``continued``.
        delta: difference to FFT.
        delta_continued_fft: difference to continued FFT.
        within_noise: whether one of the intervals holds zero.
    """

    n: int = 0
    runs: list[dict[str, float]]
    delta: Spread
    delta_continued_fft: Spread | None = None
    within_noise: bool


class Selection(Record):
    """What chose the winner; ``by_person``: a person, in the place of the best on validation."""

    split: str
    n: int
    metric: str
    trials: int
    by_person: bool = False


class TestLook(Record):
    """One look at the test examples: for which trial, and when."""

    __test__ = False  # no test of pytest's

    trial_id: str
    time: str


class Verdict(FileRecord):
    """verdict.json: the winner against FFT and continued FFT on the untouched test split.

    ``not_run`` says what could not be run, and why: the verdict is then on what there is.
    """

    method: str = "mft"
    metric: str
    split: str = "test"
    n: int
    sources: int | None = None
    fft: float
    mft: float
    delta: float
    ci95: Interval
    p_value: float
    test: str | None = None
    confidence: float = 0.95
    beats_fft: bool
    better_than_fft: bool = False
    worse_than_fft: bool | None = None
    continued_fft: float | None = None
    delta_continued_fft: float | None = None
    ci95_continued_fft: Interval | None = None
    p_value_continued_fft: float | None = None
    beats_continued_fft: bool | None = None
    rival: Rival | None = None
    detectable: Score = None
    needed: int | None = None
    seeds: SeedSpread | None = None
    other_tasks: list[MetricComparison] = []
    not_run: dict[str, str] = {}
    sentence: str | None = None
    trial_id: str
    selection: Selection | None = None
    looks: list[TestLook] = []
    extra: list[MetricComparison] = []

    @property
    def worse(self) -> bool:
        """Whether the winner is worse than FFT beyond chance; an older file does not say so itself."""
        if self.worse_than_fft is not None:
            return self.worse_than_fft
        return loss_believed(self.ci95, self.p_value)


class Example(Record):
    """An example on which FFT and the winner differ; ``scores`` are of ``fft`` and ``mft``."""

    index: int | None = None
    prompt: str
    answer: str | None = None
    fft: str
    mft: str
    scores: dict[str, float]


class Discordant(Record):
    """The examples of the test split, or of a benchmark task, on which FFT and the winner differ most."""

    on: str
    metric: str
    examples: list[Example]


class Differences(FileRecord):
    """work/discordant.json."""

    sets: list[Discordant] = []


class Point(Record):
    """One evaluation on validation; seconds and tokens count from the start of that training."""

    step: int
    score: Score
    ratio: Score = None
    seconds: Score = None
    tokens: int | None = None
    loss: Score = None

    @classmethod
    def of(cls, evaluation: Evaluation) -> Point:
        """Take what is kept of an evaluation."""
        return cls(**{name: getattr(evaluation, name) for name in cls.model_fields})


class Curves(FileRecord):
    """curves.json: score against step of the FFT training, its continuation and each trial."""

    fft: list[Point] = []
    continued: list[Point] = []
    trials: dict[str, list[Point]] = {}


class Cluster(FileRecord):
    """work/cluster.json: nodes and the workers on them, at a time in seconds since 1970; there while a search runs."""

    time: float
    nodes: list[NodeUse]


class Row(Record):
    """A method of a comparison: how its training went.

    Attributes:
        name: name of the row.
        method: name of the method.
        validation: best validation score by ``validation_metric``.
        best_step: step of that score.
        steps: steps trained.
        stopped_reason: why training ended.
        error: why there is no model, if there is none.
        cost: cost of the training.
    """

    name: str
    method: str
    validation: Score = None
    best_step: int | None = None
    steps: int | None = None
    stopped_reason: str
    error: str | None = None
    cost: Cost | None = None


class RowScore(Record):
    """A row's test score with its interval, and its difference to FFT on the same examples."""

    score: float
    ci95: Interval
    delta_fft: float
    delta_ci95: Interval
    p_value: float | None = None
    p_holm: float | None = None


class ScoreTable(Record):
    """All rows by one metric, on the test split (``on`` is ``test``) or a benchmark task."""

    on: str
    metric: str
    n: int
    rows: dict[str, RowScore]


class Comparison(FileRecord):
    """comparison.json: several methods on one backbone."""

    backbone: str
    validation_metric: str
    rows: list[Row]
    scores: list[ScoreTable]


class StudyName(FileRecord):
    """work/study_name.json: where the study is in a database that many runs share.

    Attributes:
        name: name of the study there.
        folder: run folder that it is the study of.
        url: of the database, without a password.
    """

    name: str
    folder: str
    url: str
