"""What to do after a search, in the user's terms: what its records say, and commands that can be run as they stand."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mft_ray.config import METHODS, Config, FloatRange, parse_config
from mft_ray.errors import UserError
from mft_ray.models.names import ADAPTER, BEST_MODEL, MASK
from mft_ray.runs.reading import Run
from mft_ray.runs.records import Verdict
from mft_ray.training.job import StopReason
from mft_ray.utils.formatting import setting, unit

_SEEDS = 3  # the fewest over which a spread says something
_EDGE = 0.1  # the part of a range, on either side, that counts as its edge
_AT_EDGE = 3  # so many best trials must lie there: by chance one search in a thousand has them on a given side
_FEW = 16  # trials; the default of search.trials
_MOST_REMOVED = 0.95
_MANY_TIMES = 20  # as many times the test examples are more than anybody gathers
_CUT_SHORT = {
    StopReason.BELOW_FFT: "ended below FFT by all that their curves said",
    StopReason.PLATEAU: "no longer improved",
    StopReason.PRUNED: "were ended by Ray Tune",
    StopReason.FAILED: "failed",
    StopReason.CANCELLED: "were ended by a person or the budget",
}
# Benchmark tasks that a model can be asked without further data, and without running what it writes.
_TASKS = ("gsm8k", "ifeval")
_ELSEWHERE = "See what it costs elsewhere: other tasks, with and without it (needs pip install 'mft_ray[eval]')."


@dataclass(frozen=True)
class Step:
    """One thing to do, or to know.

    Attributes:
        why: sentence or two for a person.
        command: command line that does it; None where there is none.
    """

    why: str
    command: str | None = None


def next_steps(run: Run) -> list[Step]:
    """Return what a person does best after a search, the most useful first.

    Args:
        run: what the run folder says.
    """
    if run.verdict is None:
        why = "The search has no verdict yet: it goes on where it was interrupted."
        return [Step(why, _command("tune", "--resume", run.folder.resolve()))]
    try:
        config = parse_config(run.config)
    except UserError:  # of an earlier version: no command of this one fits it
        config = None
    verdict = run.verdict
    surer = [*_missing(run, verdict), *(_confirm(run, config, verdict) if config else ())]
    if verdict.beats_fft:
        return [*_use(run), *surer, *([_share(run)] if config else ())]
    if verdict.better_than_fft:  # and something keeps that from being a gain
        return [*surer, *_use(run)]
    steps = [*_missing(run, verdict)]
    if config is not None:
        steps += [
            *_power(run, config, verdict),
            *_few(run, config),
            *_edges(run, config),
            *_stopped(run, config),
            *_fft_not_done(run, config, verdict),
        ]
    return steps or [Step(f"Nothing in this run's records says what would show a gain; the {run.product} gives none.")]


def lines(steps: Sequence[Step]) -> list[str]:
    """Return steps as lines for a terminal, commands on lines of their own so that they can be copied.

    Args:
        steps: as `next_steps` returns them.
    """
    if not steps:
        return []
    said = ["what next"]
    for step in steps:
        said.append(f"- {step.why}")
        if step.command is not None:
            said.append(f"    {step.command}")
    return said


def _use(run: Run) -> Iterator[Step]:
    """What a gain is good for."""
    root, verdict = run.folder.resolve(), run.verdict
    assert verdict is not None
    if (model := root / "best" / BEST_MODEL).exists():
        yield Step(f"Use it: {model} is an ordinary Hugging Face model.")
    elif run.product != "tuned model":
        out = root.with_name(f"{root.name}-model")
        yield Step("Make an ordinary Hugging Face model of it.", _command("export", root, "--out", out))
    yield from _other_tasks(run)


def _share(run: Run) -> Step:
    root = run.folder.resolve()
    why = "Share it on the hub, with a card that says what it is worth. This writes what would be uploaded:"
    return Step(why, _command("push", root, f"OWNER/{root.name}", "--dry-run", root.with_name(f"{root.name}-card")))


def _other_tasks(run: Run) -> Iterator[Step]:
    found = [run.folder.resolve() / "best" / name for name in (MASK, ADAPTER)]
    there = [path for path in found if path.exists()]
    section = run.config.get("model")
    words = isinstance(section, dict) and section.get("path") is not None  # one from scratch speaks only its own task
    mask = run.config.get("mask")
    if isinstance(mask, dict) and mask.get("removes") == "delta":  # the model before fine-tuning is wanted too
        return
    if run.verdict is None or run.verdict.other_tasks or not there or not words or run.backbone is None:
        return
    evaluation, data = run.config.get("evaluation"), run.config.get("data")
    asked = str(evaluation) + str(data)
    names = [task for task in _TASKS if task not in asked]
    if names:
        root = run.folder.resolve()
        backbone = root / run.backbone if (root / run.backbone).exists() else run.backbone
        given = (backbone, there[0], "--tasks", ",".join(names), "--out", root.with_name(f"{root.name}-tasks"))
        yield Step(_ELSEWHERE, _command("evaluate", *given))


def _missing(run: Run, verdict: Verdict) -> Iterator[Step]:
    if verdict.not_run:
        why = f"The verdict does without {', '.join(verdict.not_run)}, which could not be run. This tries again."
        yield Step(why, _command("tune", "--resume", run.folder.resolve()))


def _confirm(run: Run, config: Config, verdict: Verdict) -> Iterator[Step]:
    """What makes a gain surer, or says why it is none beside FFT continued."""
    if verdict.beats_continued_fft is False:
        longer = list(_fft_not_done(run, config, verdict))
        yield from longer or [
            Step(f"What the {run.product} gains over FFT, training FFT on gains too, for all that is known.")
        ]
    elif verdict.seeds is None and config.verdict.seeds == 1 and not config.fft.given:
        why = f"One seed gained; {_SEEDS} seeds say whether that is more than what a seed changes. A new search:"
        yield Step(why, _again(run, "seeds", f"verdict.seeds={_SEEDS}"))
    elif verdict.seeds is not None and verdict.seeds.within_noise:
        more = 2 * config.verdict.seeds
        why = f"Over {verdict.seeds.n} seeds the gain is within seed noise; more show a smaller one. A new search:"
        yield Step(why, _again(run, "seeds", f"verdict.seeds={more}"))


def _power(run: Run, config: Config, verdict: Verdict) -> Iterator[Step]:
    """What so many test examples can show."""
    if verdict.detectable is None or verdict.worse:
        return
    shown = unit(verdict.metric)
    why = f"{verdict.n:,} test examples cannot show a gain of less than {shown.distance(verdict.detectable)}"
    if verdict.delta <= 0 or not verdict.needed or verdict.needed <= verdict.n:
        yield Step(f"{why}. A smaller one may be there.")
        return
    needed = _rounded(verdict.needed)
    why = f"{why}; one of {shown.distance(verdict.delta)}, as was seen, takes about {needed:,}"
    if verdict.needed > _MANY_TIMES * verdict.n:
        yield Step(f"{why}: too small to be worth showing.")
    elif config.data.task != "arithmetic":
        yield Step(f"{why}. Where there is more test data, a new search with data.test and data.n_test can.")
    elif _arithmetic_has(config, needed):
        yield Step(f"{why}. A new search with as many:", _again(run, "more-test", f"data.n_test={needed}"))
    else:
        yield Step(f"{why}, more than {config.data.digits}-digit arithmetic has left.")


def _arithmetic_has(config: Config, n_test: int) -> bool:
    from mft_ray.data.arithmetic import available

    data = config.data
    return available(data.digits, data.operations) >= n_test + data.n_validation + (data.n_train or 1)


def _few(run: Run, config: Config) -> Iterator[Step]:
    wanted, scored = config.search.trials, sum(trial.score is not None for trial in run.trials)
    if scored >= _FEW:
        return
    more = max(_FEW, 2 * wanted)
    why = f"{scored} trials with a score are few"
    if scored <= config.search.startup_trials:
        why += f": the first {config.search.startup_trials} are drawn at random, and only later ones learn from them"
    # The best of more trials may be another, and the test examples have been looked at for this one.
    changes = [f"search.trials={more}", *_more_budget(run, config)]
    given = [part for change in changes for part in ("--set", change)]
    resume = ("--resume", run.folder.resolve(), *given, "--look-again")
    yield Step(f"{why}. {more} of them, with a further look at the test examples:", _command("tune", *resume))


def _more_budget(run: Run, config: Config) -> list[str]:
    """Return twice the limits of a budget that is spent: without that no further trial would begin."""
    if not (run.folder / "work" / "budget-spent").exists():
        return []
    limits = {name: getattr(config.search.budget, name) for name in ("hours", "tokens", "dollars")}
    return [f"search.budget.{name}={2 * limit}" for name, limit in limits.items() if limit is not None]


def _edges(run: Run, config: Config) -> Iterator[Step]:
    best = [trial for trial in run.trials if trial.score is not None][:_AT_EDGE]
    if len(best) < _AT_EDGE:
        return
    names = [*METHODS[config.search.method].short_names, *config.search.space.paths]
    for name in names:
        side = _side(_parameter(config, name), [trial.config.get(name) for trial in best])
        if side is None:
            continue
        values = ", ".join(setting(trial.config[name]) for trial in best)
        why = f"The best {_AT_EDGE} trials lie at the {side} edge of search.space.{name} ({values})"
        wider = _widened(name, _parameter(config, name), side)
        if wider is None:
            yield Step(f"{why}: what lies beyond was not tried.")
        else:
            command = _again(run, "wider", f"search.space.{name}={wider}", keep_fft=config)
            yield Step(f"{why}. A new search that goes further:", command)


def _parameter(config: Config, name: str) -> object:
    space = config.search.space
    return space.paths[name] if name in space.paths else getattr(space, name, None)


def _side(parameter: object, values: Sequence[object]) -> str | None:
    """Return the side of a parameter's range, lower or upper, at which all values lie; None if they do not."""
    numbers = [float(value) for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return None
    if isinstance(parameter, FloatRange):
        low, high, log = parameter.low, parameter.high, parameter.log
    else:
        ends = _ends_of_list(parameter)
        if ends is None:
            return None
        # Of a list only its ends are an edge.
        return "lower" if set(numbers) == {ends[0]} else "upper" if set(numbers) == {ends[1]} else None
    if low == high:
        return None
    places = [_place(number, low, high, log) for number in numbers]
    return "lower" if max(places) <= _EDGE else "upper" if min(places) >= 1 - _EDGE else None


def _place(value: float, low: float, high: float, log: bool) -> float:
    if log:
        value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
    return (value - low) / (high - low)


def _ends_of_list(parameter: object) -> tuple[float, float] | None:
    if not isinstance(parameter, list) or len(set(map(str, parameter))) < _AT_EDGE:
        return None
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in parameter):
        return None
    return min(parameter), max(parameter)


def _widened(name: str, parameter: object, side: str) -> str | None:
    """Return a wider range as ``--set`` takes it; None where what lies beyond is not known to be allowed."""
    if not isinstance(parameter, FloatRange) or name not in ("ratio", "lr"):
        return None
    low, high = parameter.low, parameter.high
    if name == "lr":
        low, high = (low / 10, high) if side == "lower" else (low, high * 10)
    elif side == "lower":
        low = low / 4
    else:
        high = min(_MOST_REMOVED, 2 * high)
    if (low, high) == (parameter.low, parameter.high):
        return None
    given = f"low: {_number(low)}, high: {_number(high)}" + (", log: true" if parameter.log else "")
    return f"{{{given}}}"


def _number(value: float) -> str:
    """A number as YAML reads one: it has none such as 1e-05."""
    text = f"{value:.6g}"
    return text if "e" not in text else f"{float(text):.1e}"


def _stopped(run: Run, config: Config) -> Iterator[Step]:
    reasons = Counter(trial.stopped_reason for trial in run.trials if trial.stopped_reason in _CUT_SHORT)
    if 2 * sum(reasons.values()) <= len(run.trials):
        return
    told = ", ".join(f"{count} {_CUT_SHORT[StopReason(str(reason))]}" for reason, count in reasons.most_common())
    why = f"Of {len(run.trials)} trials {sum(reasons.values())} were ended early: {told}"
    [(most, _), *_] = reasons.most_common()
    if most == StopReason.BELOW_FFT and config.search.stop.below_fft:
        command = _again(run, "whole-trials", "search.stop.below_fft=false", keep_fft=config)
        yield Step(f"{why}. A new search that lets each use up its steps:", command)
    elif most == StopReason.FAILED:
        yield Step(f"{why}. {run.folder.resolve() / 'report.html'} has their reasons.")
    else:
        yield Step(f"{why}.")


def _fft_not_done(run: Run, config: Config, verdict: Verdict) -> Iterator[Step]:
    """FFT that got better when it was simply trained on had not had enough."""
    continued = verdict.continued_fft
    # Less than the test examples can show of a difference is taken for none.
    if continued is None or continued - verdict.fft <= (verdict.detectable or 0.0) or verdict.beats_continued_fft:
        return
    shown = unit(verdict.metric)
    why = (
        f"FFT continued scores {shown.score(continued)} and FFT {shown.score(verdict.fft)}: FFT had more to learn, and "
        f"a {run.product} is worth little before that"
    )
    train = config.fft.train
    if config.fft.given:
        yield Step(f"{why}. Fine-tune {config.model.path} further, and search on that.")
    elif run.baseline.stopped == StopReason.PLATEAU and train.patience is not None:
        more = f"fft.train.patience={2 * train.patience}"
        yield Step(f"{why}. It stopped at a plateau; a new search with more patience:", _again(run, "longer-fft", more))
    else:
        more = f"fft.train.epochs={2 * train.epochs:g}" if train.epochs else f"fft.train.steps={2 * train.steps}"
        yield Step(f"{why}. A new search with a longer FFT:", _again(run, "longer-fft", more))


def _again(run: Run, how: str, *changes: str, keep_fft: Config | None = None) -> str:
    """Return a command that repeats a search with other settings, into another folder.

    Args:
        run: the search.
        how: last part of the other folder's name.
        changes: settings that change.
        keep_fft: configuration of the search, where its FFT model may serve again.
    """
    root = run.folder.resolve()
    given = [f"run.dir={root.with_name(f'{root.name}-{how}')}", *changes]
    if keep_fft is not None and (fft := _trained_fft(run, keep_fft)) is not None:
        given += [f"model.path={fft}", "fft.given=true"]
    return _command("tune", "--config", root / "config.yaml", *(part for each in given for part in ("--set", each)))


def _trained_fft(run: Run, config: Config) -> str | None:
    """Return the FFT model that a search has trained, where another one can begin with it."""
    if config.fft.given or config.model.path is None or config.verdict.seeds > 1 or run.backbone is None:
        return None
    if config.mask.removes == "delta" or config.search.method == "fft":  # these want the model before fine-tuning
        return None
    root = run.folder.resolve()
    path = root / run.backbone
    return str(path) if path.is_dir() else None


def _rounded(count: int) -> int:
    """Two digits, upwards: more would promise too much."""
    scale = int(10 ** max(0, len(str(count)) - 2))
    return math.ceil(count / scale) * scale


def _command(*words: object) -> str:
    return shlex.join(["mft-ray", *map(str, words)])
