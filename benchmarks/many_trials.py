"""A search of many tiny trials: is memory flat, does a trial cost more at the end, is anything left?

    python benchmarks/many_trials.py [--trials 200] [--recycle-after 50] [--json FILE]

The trials are a few steps each, so that what a search spends per trial, and might leak, is all that there is. What
grows with the number of trials is timed once more when all are there: the best of three.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from ray.util.state import list_actors, list_placement_groups

from mft_ray.config import load_config, parse_config
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.snapshot import read_live, state_of
from mft_ray.runs.study.live import LocalStudy
from mft_ray.searches.leaderboard import write_results
from mft_ray.searches.more_trials import continue_search
from mft_ray.searches.pipeline import search
from mft_ray.tracking.snapshot import SnapshotReader
from mft_ray.workers.connection import connected

EVERY_S = 1.0
LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


class Memory:
    """Resident megabytes of this process and of the kinds of processes that a search has, over time."""

    def __init__(self, trials: Path) -> None:
        self._trials = trials
        self.samples: list[tuple[int, dict[str, float]]] = []  # with how many trials had ended
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def at(self, low: int, high: int) -> dict[str, float]:
        """Return the median of each kind while so many trials had ended."""
        kinds: dict[str, list[float]] = defaultdict(list)
        for ended, sample in self.samples:
            for kind, megabytes in sample.items() if low <= ended <= high else ():
                kinds[kind].append(megabytes)
        return {kind: round(statistics.median(values), 1) for kind, values in sorted(kinds.items())}

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._over.wait(EVERY_S):
            ended = len(list(self._trials.glob("*/outcome.json")))
            sample = {"search": _megabytes(me), "worker": 0.0, "driver": 0.0, "all of Ray": 0.0}
            for process in me.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    title, megabytes = " ".join(process.cmdline()[:1]), _megabytes(process)
                    sample["all of Ray"] += megabytes
                    for kind, start in (("worker", "ray::RayTrainWorker"), ("driver", "ray::ResourceTrainable")):
                        if title.startswith(start):
                            sample[kind] = max(sample[kind], megabytes)
            self.samples.append((ended, sample))


def seconds_a_trial(trials: Path, low: int, high: int) -> float:
    """Return the time from the end of one trial to that of a later one, divided by the trials between them."""
    ends = sorted(path.stat().st_mtime for path in trials.glob("*/outcome.json"))
    return round((ends[high] - ends[low]) / (high - low), 3)


def once_more(folder: RunFolder) -> dict[str, float]:
    """Return the seconds that each thing takes which is done again and again with all trials at hand."""
    config, fft = load_config(folder.config), FftModel.load(folder.fft_model)

    def suggest() -> None:
        search = continue_search(LocalStudy(folder.study), config.search.sampler, 0, 0, 1)
        search._ot_study.ask(search._space)

    def keep() -> None:
        study = LocalStudy(folder.study)
        study.storage.set_study_user_attr(study.have([]), "looked at", time.time())
        study.keep()

    reader = SnapshotReader(folder, config.search.method)
    reader.read()
    works: dict[str, Callable[[], object]] = {
        "leaderboard and curves": lambda: write_results(folder, fft, config.search.keep),
        "study opened, and a suggestion": suggest,
        "study read and kept": keep,
        "a dashboard's look whether anything has changed": lambda: state_of(folder.root),
        "a dashboard's look at all of it": lambda: read_live(folder.root),
        "a tracker's look": reader.read,
    }
    return {name: round(min(_timed(work) for _ in range(3)), 3) for name, work in works.items()}


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _megabytes(process: psutil.Process) -> float:
    memory = process.memory_info()
    return float(memory.rss - memory.shared) / 2**20  # what is shared, such as libraries, counts for none


def run(trials: int, recycle_after: int, out: Path) -> dict[str, Any]:
    """Run the search and say what it took."""
    config = parse_config(
        {
            "run": {"dir": str(out / "run"), "export_model": False},
            "model": {"architecture": {**LLAMA, "num_attention_heads": 4, "max_position_embeddings": 32}},
            "data": {"task": "arithmetic", "digits": 1, "n_train": 60, "n_validation": 40, "n_test": 50},
            "evaluation": {"metric": "exact_match", "resamples": 500},
            "fft": {"train": {"steps": 40, "batch_size": 16, "lr": 3e-3, "eval_every": 20, "patience": 2}},
            "train": {"steps": 20, "batch_size": 16, "eval_every": 10},
            "search": {"trials": trials, "recycle_after": recycle_after},
        }
    )
    began = time.monotonic()
    with connected():
        with Memory(out / "run" / "work" / "trials") as memory:
            folder = search(config)
        wall = time.monotonic() - began
        # Ray's own: one for all groups, and it stays with the cluster.
        actors = [each.class_name for each in list_actors(limit=10_000) if each.state != "DEAD"]
        groups = [each for each in list_placement_groups(limit=10_000) if each.state != "REMOVED"]
    board = json.loads(folder.leaderboard.read_text())["trials"]
    tenth = max(1, trials // 10)
    return {
        "trials": len(board),
        "with a score": sum(row["score"] is not None for row in board),
        "wall_s": round(wall, 1),
        "seconds a trial, second tenth": seconds_a_trial(folder.trials, tenth, 2 * tenth),
        "seconds a trial, last tenth": seconds_a_trial(folder.trials, trials - tenth, trials - 1),
        "seconds with all trials there": once_more(folder),
        "megabytes, second tenth of the trials": memory.at(tenth, 2 * tenth),
        "megabytes, last tenth of the trials": memory.at(trials - tenth, trials - 1),
        "actors left": [name for name in actors if not name.startswith("_AutoscalingCoordinatorActor")],
        "placement groups left": len(groups),
        "megabytes of the study": round(folder.study.stat().st_size / 2**20, 1),
        "megabytes of Tune's snapshot": round(
            sum(path.stat().st_size for path in folder.tune.glob("*/experiment_state-*.json")) / 2**20, 1
        ),
        "megabytes on disk": round(sum(path.stat().st_size for path in folder.root.rglob("*")) / 2**20, 1),
    }


def main() -> None:
    """Run, print, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--recycle-after", type=int, default=50, help="as search.recycle_after")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as out:
        figures = run(options.trials, options.recycle_after, Path(out))
    print(json.dumps(figures, indent=1))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
