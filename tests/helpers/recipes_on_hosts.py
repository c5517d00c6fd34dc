"""The driver of the paper's recipes on several hosts, a program: ``recipes_on_hosts.py FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import on_workers
import ray.cloudpickle
from tiny_recipes import RECIPES, SMALL, recipe, train_both

from mft_ray.training.job import Outcome
from mft_ray.workers.connection import connected
from mft_ray.workers.group import workers

SCALING = ["scaling.workers=2", "scaling.cpus_per_worker=1"]  # one a host, which has one CPU


def main(home: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(on_workers)
    scaling = recipe(RECIPES[0], *SMALL, *SCALING).scaling
    with connected(), workers(scaling, home / "group") as group:
        for name in RECIPES:

            def on_the_group(job: Any, stop: Any, heard: Any, name: str = name) -> Outcome:
                assert job.scaling == group.scaling
                return group.train(job, on_workers.NoteHosts(str(home / f"{name}.{job.method}.hosts")), heard)

            (home / name).mkdir()
            train_both(name, SCALING, on_the_group, home / name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
