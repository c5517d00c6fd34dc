"""Where Optuna's study may lie while a search works on it: what a trial costs there, and who waits for whom.

    python benchmarks/study_storage.py --folder FOLDER [--trials 10 200 1000] [--postgresql URL] [--held]

FOLDER is on the storage to be tried. For storage as several hosts share it, in another terminal:

    mkdir behind shared && python tests/helpers/shared_storage.py behind shared

A trial is what `StudySearch` does for one: a suggestion by TPE, 4 values on the way, its end; what is kept in the run
folder is kept when it begins and when it ends. No model is trained.

- ``none``: Optuna's storage in memory, kept nowhere. What all others have on top of it is theirs.
- ``sqlite``: SQLite in the run folder, changed in place, and a second copy of it (what searches did before).
- ``journal``: Optuna's JournalStorage over a file in the run folder. It has no copy: ``study.db`` would
  come on top.
- ``local``: SQLite on this machine's own disk, two copies in the run folder.
- ``memory``: SQLite in memory, two copies in the run folder (what searches do now).
- ``server``: PostgreSQL, two copies in the run folder.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import sqlite3
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import InMemoryStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import TrialState, create_trial

from mft_ray.runs.folder import RunFolder
from mft_ray.runs.study.copying import bring_up
from mft_ray.runs.study.file import STUDY_NAME, write_study
from mft_ray.runs.study.live import LiveStudy, LocalStudy
from mft_ray.runs.study.server import ServerStudy
from mft_ray.searches.optuna_search import StudySearch, build_search
from mft_ray.searches.trial_report import Ended, Evaluated
from mft_ray.training.job import Evaluation, StopReason
from mft_ray.utils.files import replacing

SPACE: dict[str, BaseDistribution] = {
    "ratio": FloatDistribution(0.02, 0.5),
    "lr": FloatDistribution(1e-5, 1e-2, log=True),
    "layers": CategoricalDistribution([f"{n}-{n + 3}" for n in range(0, 28, 4)]),
    "target": CategoricalDistribution(["attn", "mlp", "both"]),
    "init": CategoricalDistribution(["normal", "magnitude"]),
    "schedule": CategoricalDistribution(["constant", "anneal"]),
}
MEASURED, VALUES = 10, 4
HELD_S = 2.0


class SqliteInPlace(LiveStudy):
    """SQLite changed in place, and copied elsewhere by its own backup."""

    def __init__(self, path: Path, *copies: Path) -> None:
        self.path, self._copies = path, copies
        super().__init__(RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}}))

    def keep(self) -> None:
        """Copy it as it is now."""
        for copy in self._copies:
            study = sqlite3.connect(self.path, timeout=60)
            with replacing(copy) as partial, closing(study), closing(sqlite3.connect(partial)) as new:
                study.backup(new)


@contextmanager
def opened(kind: str, root: Path, known: LocalStudy, url: str | None) -> Iterator[LiveStudy]:
    """Yield a study of one kind in a run folder, with the trials of another."""
    folder = RunFolder(root)
    folder.work.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as local:
        study: LiveStudy
        if kind in ("sqlite", "local"):
            path = folder.study if kind == "sqlite" else Path(local) / "study.db"
            write_study(known._connection.serialize(), path)
            copies = (folder.study_copy,) if kind == "sqlite" else (folder.study_copy, folder.study)
            study = SqliteInPlace(path, *copies)
        elif kind == "memory":
            write_study(known._connection.serialize(), folder.study)
            study = LocalStudy(folder.study_copy, folder.study)
        elif kind == "server":
            assert url is not None
            write_study(known._connection.serialize(), folder.study)
            study = ServerStudy(url, folder)
        else:
            backend = JournalFileBackend(str(folder.work / "journal"))
            study = LiveStudy(InMemoryStorage() if kind == "none" else JournalStorage(backend))
            bring_up(study, known)
        yield study
        study.begin_anew()
        study.close()


def filled(trials: int) -> LocalStudy:
    """Return a study of made-up trials."""
    study, draw = LocalStudy(), random.Random(0)
    made = optuna.create_study(study_name=STUDY_NAME, storage=study.storage, direction="maximize")
    for _ in range(trials):
        params: dict[str, Any] = {"ratio": draw.uniform(0.02, 0.5), "lr": math.exp(draw.uniform(-11.5, -4.7))}
        params |= {n: draw.choice(d.choices) for n, d in SPACE.items() if isinstance(d, CategoricalDistribution)}
        way = {step: params["ratio"] * step / 40 for step in range(0, 40, 10)}
        made.add_trial(
            create_trial(
                state=TrialState.COMPLETE,
                value=params["ratio"],
                params=params,
                distributions=SPACE,
                intermediate_values=way,
                user_attrs={"trial_id": "x", "stopped_reason": "completed", "value_is": "its best score"},
            )
        )
    return study


def trial(search: StudySearch, name: str) -> None:
    """Do for one trial what a search does."""
    point = search.suggest(name)
    assert isinstance(point, dict)
    for step in range(VALUES):
        last = Evaluation(10 * step, 0.5, 0.01, 64, 1.0, 0.1, point["ratio"], True)
        search.on_trial_result(name, Evaluated(last, point["ratio"] * step).to_tune())
    search.on_trial_complete(name, Ended(StopReason.COMPLETED, point["ratio"], last).to_tune())


def seconds_a_trial(study: LiveStudy) -> float:
    """Return the median; the first, which reads what there is, does not count."""
    search, found = build_search(study, SPACE, [], "tpe", 6, 0), []
    for number in range(MEASURED + 1):
        began = time.perf_counter()
        trial(search, str(number))
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


def waits(kind: str, root: Path, study: LiveStudy) -> float:
    """Return how long a trial takes during which another program holds the study for `HELD_S`."""
    search, held = build_search(study, SPACE, [], "random", 6, 0), threading.Event()
    release: Callable[[], object]
    if kind == "journal":
        lock = JournalFileSymlinkLock(str(RunFolder(root).work / "journal"))
        lock.acquire()
        release = lock.release
    else:
        holder = sqlite3.connect(RunFolder(root).study, check_same_thread=False)
        holder.execute("BEGIN EXCLUSIVE")
        release = holder.rollback

    def let_go() -> None:
        release()
        held.set()

    threading.Timer(HELD_S, let_go).start()
    began = time.perf_counter()
    trial(search, "while it is held")
    took = time.perf_counter() - began
    held.wait()
    return took


def waits_for_the_dead(root: Path, study: LiveStudy) -> float:
    """Return how long a trial takes after a program was killed while it held a journal's lock."""
    search = build_search(study, SPACE, [], "random", 6, 0)
    JournalFileSymlinkLock(str(RunFolder(root).work / "journal")).acquire()
    began = time.perf_counter()
    trial(search, "after a kill")
    return time.perf_counter() - began


def run(folder: Path, counts: list[int], url: str | None, held: bool) -> dict[str, dict[str, float]]:
    """Return by kind the milliseconds of a trial at each count, and the seconds that it waits for others."""
    kinds = ["none", "sqlite", "journal", "local", "memory", *(["server"] if url else [])]
    rows: dict[str, dict[str, float]] = {kind: {} for kind in kinds}
    for count in counts:
        known = filled(count)
        for kind in kinds:
            root = folder / f"{kind}-{count}"
            with opened(kind, root, known, url) as study:
                rows[kind][f"ms at {count}"] = round(1000 * seconds_a_trial(study), 1)
            shutil.rmtree(root, ignore_errors=True)
            print(count, kind, rows[kind], flush=True)
    known = filled(10)
    for kind in ("sqlite", "journal", "memory") if held else ():
        root = folder / f"{kind}-held"
        with opened(kind, root, known, url) as study:
            rows[kind]["s while it is held"] = round(waits(kind, root, study), 1)
            if kind == "journal":
                rows[kind]["s after a kill"] = round(waits_for_the_dead(root, study), 1)
        shutil.rmtree(root, ignore_errors=True)
    return rows


def main() -> None:
    """Run, print a table, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="on the storage to be tried")
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 200, 1000], help="that there are already")
    parser.add_argument("--postgresql", metavar="URL", help="as search.storage; the password as there")
    parser.add_argument("--held", action="store_true", help="also how long a trial waits for a program that holds it")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = run(options.folder.resolve(), options.trials, options.postgresql, options.held)
    columns = [f"ms at {count}" for count in options.trials]
    print("\n| study |", " | ".join(columns), "| s while another program holds it 2 s |")
    print("|", " | ".join("---" for _ in range(len(columns) + 2)), "|")
    for kind, row in rows.items():
        cells = [str(row[column]) for column in columns] + [str(row.get("s while it is held", ""))]
        print(f"| `{kind}` | {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
