"""A run in an object store: fetched to be read, or held by this process and followed by its store meanwhile.

Everything else knows a run folder alone, which is the copy on this machine.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mft_ray.config import Config, load_config
from mft_ray.errors import UserError
from mft_ray.runs.fft_model import FftModel, moved
from mft_ray.runs.folder import RunFolder, has_ended
from mft_ray.runs.live.steering import at_work
from mft_ray.runs.records import Baseline
from mft_ray.store.address import Address, is_address
from mft_ray.store.bucket import Bucket, StoreFailed
from mft_ray.store.keeper import kept
from mft_ray.store.lease import Lease
from mft_ray.store.manifest import MANIFEST, OWN, Manifest
from mft_ray.store.places import scratch_of
from mft_ray.store.scratch import SCRATCH, Scratch, note_above
from mft_ray.store.sync import Pushed, clear, pull, sweep
from mft_ray.store.written import Written
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.files import Damaged
from mft_ray.utils.formatting import size

# For who reads a run, or is about to begin one: a person waits.
_ASK_S = 20.0
_FOLLOW_S = 10.0
_CONFIG = "config.yaml"


def fetched(given: str | os.PathLike[str], setting: str = "RUN") -> Path:
    """Return the folder of a run, to be read; one in an object store is brought here, as far as it has changed.

    Where a process of this machine works on it, its folder is what is newest.

    Args:
        given: folder, or address.
        setting: that names it.

    Raises:
        UserError: the address cannot be used, the store refuses it, or there is no run.
    """
    if not is_address(given):
        return Path(given).expanduser()
    scratch = Scratch(Address.parse(os.fspath(given), setting))
    if not at_work(RunFolder(scratch.run)):
        with _as_mistakes():
            manifest = pull(scratch, Bucket(scratch.address, _ASK_S, log_warning), log_warning, _relocated)
        _check_there(scratch, manifest)
    return scratch.run


@contextmanager
def held_in_store(config: Config | None, resume: str | None) -> Iterator[None]:
    """Context manager during which a run in an object store is this process's, and its store follows what is done.

    Of a run in a folder nothing is done.

    Args:
        config: configuration of a new run, or the changed one of a run to go on with.
        resume: folder or address of the run to go on with.

    Raises:
        UserError: the address cannot be used, the store refuses it, or the run is worked on, or there, already.
        RunFailed: what was done could not be carried to the store.
    """
    given = resume if resume is not None else config.run.dir if config else None
    scratch = scratch_of(given, "--resume" if resume is not None else "run.dir")
    if scratch is None:
        yield
        return
    bucket = Bucket(scratch.address, _ASK_S, log_warning)
    lease, ours = Lease(bucket, log), False
    with _as_mistakes():
        lease.take()
    try:
        with _as_mistakes():
            manifest = pull(scratch, bucket, log_warning, _relocated)
            if resume is None:
                _check_new(scratch, manifest, bucket)
                ours = True
            else:
                _check_there(scratch, manifest)
            if swept := sweep(bucket, manifest):
                log(f"{swept} objects of a push that was ended midway are deleted from {scratch.address}")
        scratch.mark()
        log(f"{scratch.address} is worked on in {scratch.run}")
        run = (config or load_config(scratch.run / _CONFIG)).run
        bucket.patience_s = run.push_patience_minutes * 60
        with kept(scratch, bucket, lease, run.push_seconds, _has_begun(scratch), _teller(scratch)):
            yield
    finally:
        bucket.patience_s = 0.0
        try:
            if ours and not _has_begun(scratch)():
                clear(scratch, bucket)
            lease.give_back()
        except StoreFailed as error:
            log_warning(f"{error}. Others can go on with the run in half a minute")


def check_nodes(folder: RunFolder) -> None:
    """Refuse a cluster of which a node does not see the copy of a run in which all work is done.

    Args:
        folder: run folder; one in no object store is seen by all, as whoever named it knows.

    Raises:
        UserError: naming the nodes.
    """
    note = note_above(folder.root / _CONFIG)
    if note is None:
        return
    import ray  # who only reads a run need not wait for it
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    look = ray.remote(num_cpus=0, max_retries=0)(os.path.exists)
    asked = {
        str(node["NodeManagerHostname"]): look.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        ).remote(str(note))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here
    }
    if blind := sorted(host for host, seen in asked.items() if not ray.get(seen)):
        raise UserError(
            f"{folder.named} is worked on in {folder.root}, and {', '.join(blind)} of this cluster do not see that. "
            f"Have all nodes share the folder that {SCRATCH} names, set before Ray is started on the head, or run on "
            "one machine."
        )


def _has_begun(scratch: Scratch) -> Callable[[], bool]:
    return (scratch.run / _CONFIG).exists


def _teller(scratch: Scratch) -> Callable[[Pushed], None]:
    """Return what says how much was written for each trial that ends from now on, and at last for all."""
    told = {out.name for out in _ended(scratch)}

    def tell(pushed: Pushed) -> None:
        if (written := Written.load(scratch.run)) is None:
            return
        for out in _ended(scratch):
            if out.name not in told:
                told.add(out.name)
                log(f"trial {out.name} is in {scratch.address}: {size(written.trials.get(out.name, 0))} written for it")
        if pushed.last:
            log(
                f"{scratch.address} is up to date: {size(written.bytes)} in {written.objects:,} objects were written "
                f"so far, {size(sum(written.trials.values()))} of them for {len(written.trials)} trials"
            )

    return tell


def _ended(scratch: Scratch) -> list[Path]:
    return [out for out in sorted(RunFolder(scratch.run).trials.glob("*")) if has_ended(out)]


def _check_new(scratch: Scratch, manifest: Manifest | None, bucket: Bucket) -> None:
    if manifest is not None:
        raise UserError(
            f"There is a run in {scratch.address} already. Continue it with --resume {scratch.address}, or give "
            "another address with --set run.dir=…"
        )
    if others := sorted(name for name in bucket.listed() if not name.startswith(f"{OWN}/")):
        raise UserError(
            f"{scratch.address} is not empty: there is {others[0]}, which is of no run. Give an address below which "
            "there is nothing, with --set run.dir=…"
        )
    if scratch.run.exists() and any(scratch.run.iterdir()):
        raise UserError(
            f"There is no run in {scratch.address}, but one of that address is in {scratch.run} on this machine. "
            f"Continue it with --resume {scratch.address}, delete that folder, or give another address with "
            "--set run.dir=…"
        )


def _check_there(scratch: Scratch, manifest: Manifest | None) -> None:
    if manifest is None and not _has_begun(scratch)():
        raise UserError(
            f"There is no run in {scratch.address}: {MANIFEST} is missing there. Give the run.dir of a search that has "
            "begun. A run folder that was copied there by other means is no run: copy it back, and give that folder."
        )


def _relocated(old: Path, new: Path) -> list[str]:
    """Have a run's own records name files by the path that its folder has on this machine.

    Args:
        old: path of the run folder where they were written.
        new: its path here.

    Returns:
        The paths within the run of those that were changed.
    """
    changed = []
    folder = RunFolder(new)
    with suppress(FileNotFoundError, Damaged):  # what is damaged is told when the run is gone on with
        FftModel.load(folder.fft_model).moved(old, new).save(folder.fft_model)
        changed.append(folder.fft_model)
    with suppress(FileNotFoundError, Damaged):
        public = Baseline.load(folder.baseline)
        if public.model is not None:
            public.model_copy(update={"model": moved(public.model, old, new)}).save(folder.baseline)
            changed.append(folder.baseline)
    return [path.relative_to(new).as_posix() for path in changed]


@contextmanager
def _as_mistakes() -> Iterator[None]:
    """Have what a store refuses be told as a mistake of who gave its address: nothing has begun yet."""
    try:
        yield
    except StoreFailed as error:
        raise UserError(str(error)) from error


@contextmanager
def followed(given: str) -> Iterator[Path]:
    """Context manager yielding what `fetched` does, which is brought here anew every few seconds meanwhile.

    Args:
        given: folder, or address.
    """
    folder, over = fetched(given), threading.Event()

    def follow() -> None:
        while not over.wait(_FOLLOW_S):
            try:
                fetched(given)
            except UserError as error:
                log_warning(f"{error}. What is shown is as it was, and is brought up to date once that is gone")

    thread = threading.Thread(target=follow, name="follow", daemon=True)
    if is_address(given):
        thread.start()
    try:
        yield folder
    finally:
        over.set()
