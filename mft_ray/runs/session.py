"""From a configuration to a run folder that is ready to work in, on a Ray; the same for every long command."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mft_ray.config import Config, load_config
from mft_ray.errors import UserError
from mft_ray.runs.environment import keep_environment
from mft_ray.runs.folder import RunFolder, check_owner, lock, open_folder
from mft_ray.runs.prepare import Check, check, check_tasks, make_ready, with_absolute_paths, with_fixed_date
from mft_ray.runs.ray_logs import kept_logs
from mft_ray.runs.repair.mend import mend_run
from mft_ray.runs.settled import Settled, check_settled
from mft_ray.runs.stored import check_nodes, held_in_store
from mft_ray.store.places import place_of
from mft_ray.utils.console import kept_log, log_warning
from mft_ray.workers.capacity import concurrent_trials
from mft_ray.workers.connection import connected


@dataclass(frozen=True)
class Session:
    """What a long command works with.

    Attributes:
        config: resolved, with ``run.seed`` added to every other seed.
        folder: folder of the run, held for this process alone; the data is in it.
        start: folder or hub id of the model that FFT starts from, or that is fine-tuned already.
        concurrent: training runs that the cluster has room for at once.
        settled: what stages were made with; to be told of each that begins.
    """

    config: Config
    folder: RunFolder
    start: str
    concurrent: int
    settled: Settled


def configuration(config: Config | None, resume: str | None) -> Config:
    """Return the configuration of a new run, or that of one to go on with, with absolute paths.

    Args:
        config: configuration of a new run, or the changed one of a run to go on with; None takes that run's own.
        resume: folder or address of the run to go on with, which is here by now.

    Raises:
        UserError: the folder's cannot be read.
    """
    earlier = None
    if resume is not None:
        earlier = load_config(place_of(resume) / "config.yaml")
        config = config or earlier
    assert config is not None
    return with_fixed_date(with_absolute_paths(config), earlier)


@contextmanager
def session(config: Config | None, resume: str | None = None, also: Check | None = None) -> Iterator[Session]:
    """Check everything, connect, and make data and start model ready; an interruption says how to go on.

    Args:
        config: configuration of a new run, or the changed one of a run to go on with.
        resume: folder or address of the run to go on with, whose own configuration is used if no other is given.
        also: further checks, as of `mft_ray.runs.prepare.check`.

    Raises:
        UserError: something given cannot work, or is not what the run was begun with; nothing was then written.
        RunFailed: the run is in an object store, and that does not do what it is asked any more.
    """
    with held_in_store(config, resume), _session(config, resume, also) as run:
        yield run


@contextmanager
def _session(config: Config | None, resume: str | None, also: Check | None) -> Iterator[Session]:
    config = configuration(config, resume)
    folder = open_folder(config, resume)
    check_owner(folder.work)
    check_settled(folder, config)
    seeded = config.seeded()
    check(seeded, also)
    check_tasks(seeded)
    with connected():
        check_nodes(folder)
        concurrent = concurrent_trials(seeded.scaling, seeded.search.max_concurrent)
        concurrent_trials(seeded.fft.scaling or seeded.scaling)
        held = lock(folder)
        try:
            settled = check_settled(folder, config)  # again, now that nobody else is at it
            mend_run(folder)
            start = _prepare(config, seeded, settled, new=resume is None)
            keep_environment(folder)
            with kept_logs(folder), kept_log(folder.log):
                yield Session(seeded, folder, start, concurrent, settled)
        except KeyboardInterrupt:
            log_warning(f"interrupted; what was finished is kept: --resume {folder.named}")
            raise
        finally:
            held.release()


def _prepare(config: Config, seeded: Config, settled: Settled, new: bool) -> str:
    folder = settled.folder
    # First, so that whatever is interrupted from here on can be resumed.
    settled.begin("data")
    config.save(folder.config)
    try:
        return make_ready(seeded, folder)
    except UserError:
        if new:
            shutil.rmtree(folder.root, ignore_errors=True)
        raise
