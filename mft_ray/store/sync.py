"""Carrying a run between its copy on this machine and its store, so that either is one whole state or another.

A file's content goes into an object of its own, whose name no other content ever has; then one object, the manifest,
takes its predecessor's place and says which of them are the run. A kill at any moment leaves the old manifest with all
that it names, or the new one. What nobody names any more is deleted afterwards.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from mft_ray.store.bucket import Bucket, StoreFailed, digest_of
from mft_ray.store.manifest import LEASE, OBJECTS, Entry, Manifest
from mft_ray.store.scratch import Scratch, Synced, new_generation
from mft_ray.store.snapshot import Taken, of_run, taken
from mft_ray.store.written import NAME, Written
from mft_ray.utils.files import replacing, signature

_T = TypeVar("_T")
_AT_ONCE = 8
# How often a run may change while it is read.
_READS = 10
# A library's own state, which nobody but a search reads, and of which the names say nothing.
_OURS = "work"


@dataclass(frozen=True)
class Pushed:
    """What was carried to the store.

    Attributes:
        generation: of the manifest that the store has now.
        files: number of files whose content was written.
        bytes: bytes of them.
        last: whether it was the last of a session.
    """

    generation: str
    files: int
    bytes: int
    last: bool = False


def push(scratch: Scratch, bucket: Bucket, check: Callable[[], object] = lambda: None) -> Pushed | None:
    """Have the store be what the copy is now; return what that took, or None where it is so already.

    Args:
        scratch: copy on this machine.
        bucket: of the run.
        check: called right before anything is changed; what it raises leaves the run as it was.

    Raises:
        StoreFailed: the store does not do what it is asked, and is as it was.
        Busy: the run folder is written to without a pause.
    """
    with scratch.held():
        before = scratch.synced()
        changed, paths = taken(scratch.run, scratch.taken, before.signatures)
        try:
            # What is carried is counted in a file that is carried too: it alone is no reason to.
            now = Synced(new_generation(), *_kept(before, paths))
            new = [(each, _entry(each)) for each in changed if each.path != NAME]
            counted = [(each, entry) for each, entry in new if _differs(before.files.get(each.path), entry)]
            if before.generation and not counted and paths >= before.files.keys():
                return None
            new.append(_counted(scratch, counted))
            counted.append(new[-1])
            _all(lambda pair: bucket.upload(pair[1].key(pair[0].path), pair[0].file, pair[1].size), counted)
            for each, entry in new:
                now.files[each.path], now.signatures[each.path] = entry, each.signed
            check()
            _publish(bucket, counted, before.files.keys() - now.files.keys())
            check()  # again: that may have taken a while
            manifest = Manifest(now.generation, str(scratch.run), now.files)
            scratch.save(before, now)
            manifest.save(bucket)
            scratch.save(now)
            _all(lambda name: bucket.remove([name]), Manifest("", "", before.files).objects - manifest.objects)
            return Pushed(now.generation, len(counted), sum(entry.size for _, entry in counted))
        finally:
            shutil.rmtree(scratch.taken, ignore_errors=True)


def pull(
    scratch: Scratch,
    bucket: Bucket,
    say: Callable[[str], object] = lambda text: None,
    moved: Callable[[Path, Path], Iterable[str]] = lambda old, new: (),
) -> Manifest | None:
    """Have the copy be what the store is; return that, or None where there is no run in it.

    A copy that was last written to this very state of the store is left as it is: it is the same, or ahead of it.

    Args:
        scratch: copy on this machine.
        bucket: of the run.
        say: told what of the copy is lost by it.
        moved: called where the run lay at another path when it was written, with that and the one it has now; has its
            records name files by the latter, and returns the paths within the run of those that it changed.

    Raises:
        StoreFailed: the store does not do what it is asked; the next `pull` goes on where this one ended.
    """
    with scratch.held():
        for _ in range(_READS):
            manifest = Manifest.load(bucket)
            before = scratch.synced(manifest.generation if manifest else None)
            if manifest is None:
                if before.generation:  # what was written there is gone
                    scratch.save(Synced())
                return None
            if before.generation == manifest.generation and scratch.run.is_dir():
                scratch.save(before)
                return manifest
            if before.generation and (lost := _ahead(scratch, before)):
                say(
                    f"{lost} files in {scratch.run} were changed here and never written to {scratch.address}, where "
                    "the run has gone on from elsewhere: they are replaced by what is there"
                )
            if _fetch(scratch, bucket, manifest, before, moved):
                return manifest
    raise StoreFailed(f"{bucket.address} has changed {_READS} times while it was read. Try again when less is written")


def clear(scratch: Scratch, bucket: Bucket) -> None:
    """Delete all that is at an address, on both sides, but for who holds it: only for what was empty before.

    Args:
        scratch: copy on this machine.
        bucket: of the run.
    """
    with scratch.held():
        bucket.remove(name for name in bucket.listed() if not name.startswith(LEASE))
        shutil.rmtree(scratch.run, ignore_errors=True)
        scratch.save(Synced())


def sweep(bucket: Bucket, manifest: Manifest | None) -> int:
    """Delete objects that no manifest names: of pushes that were ended midway; return how many there were.

    Args:
        bucket: of the run, which nobody else writes into.
        manifest: what the run is.
    """
    left = bucket.listed(OBJECTS).keys() - (manifest.objects if manifest else set())
    bucket.remove(sorted(left))
    return len(left)


def _kept(before: Synced, paths: set[str]) -> tuple[dict[str, Entry], dict[str, tuple[int, int]]]:
    files = {path: entry for path, entry in before.files.items() if path in paths}
    return files, {path: signed for path, signed in before.signatures.items() if path in paths}


def _entry(each: Taken) -> Entry:
    changed, size = each.signed
    return Entry(size, digest_of(each.file, size), changed)


def _differs(before: Entry | None, now: Entry) -> bool:
    return before is None or (before.size, before.digest) != (now.size, now.digest)


def _counted(scratch: Scratch, carried: Iterable[tuple[Taken, Entry]]) -> tuple[Taken, Entry]:
    """Count what is carried, and return the file that says so, which is carried with it."""
    written, file = Written.load(scratch.run) or Written(str(scratch.address)), scratch.run / NAME
    written.address = str(scratch.address)
    written.add((each.path, entry.size) for each, entry in carried)
    file.parent.mkdir(parents=True, exist_ok=True)
    written.save(scratch.run)
    signed = signature(file)
    assert signed is not None, "it was written right now"
    note = Taken(NAME, file, signed)
    return note, _entry(note)


def _publish(bucket: Bucket, carried: Iterable[tuple[Taken, Entry]], gone: Iterable[str]) -> None:
    """Have what a search leaves for others under its own name too, for whoever knows nothing of manifests.

    Before the manifest: a kill in between leaves them newer than the run, and what is pushed next writes them again.
    """
    public = [(each, entry) for each, entry in carried if _is_public(each.path)]
    _all(lambda pair: bucket.upload(pair[0].path, pair[0].file, pair[1].size), public)
    bucket.remove(sorted(path for path in gone if _is_public(path)))


def _is_public(path: str) -> bool:
    return PurePosixPath(path).parts[0] != _OURS


def _ahead(scratch: Scratch, before: Synced) -> int:
    """Return how many files here are not what they were when copy and store were the same."""
    paths = {str(path) for path in of_run(scratch.run)} if scratch.run.is_dir() else set()
    kept = before.files.keys() - before.signatures.keys()  # as they were read, but for paths
    changed = [path for path in paths - kept if before.signatures.get(path) != signature(scratch.run / path)]
    return len(changed) + len(before.files.keys() - paths)


def _fetch(
    scratch: Scratch, bucket: Bucket, manifest: Manifest, before: Synced, moved: Callable[[Path, Path], Iterable[str]]
) -> bool:
    """Have the copy be what a manifest says; False where that has been replaced meanwhile."""
    scratch.run.mkdir(parents=True, exist_ok=True)
    now = Synced()
    for path, entry in manifest.files.items():
        signed = signature(scratch.run / path)
        if signed is not None and signed == before.signatures.get(path) and before.files.get(path) == entry:
            now.files[path], now.signatures[path] = entry, signed
    scratch.save(now)  # from here on it is neither what it was, nor whole
    for path in {str(each) for each in of_run(scratch.run)} - manifest.files.keys():
        (scratch.run / path).unlink()
    _remove_empty(scratch.run)
    missing = [(path, entry) for path, entry in manifest.files.items() if path not in now.files]
    lost = _all(lambda pair: _download(scratch.run / pair[0], bucket, *pair), missing)
    for path, entry in missing:
        if (signed := signature(scratch.run / path)) is not None and path not in lost:
            now.files[path], now.signatures[path] = entry, signed
    if not any(lost):
        if manifest.root != str(scratch.run):
            for path in moved(Path(manifest.root), scratch.run):
                now.signatures.pop(path, None)  # so that it is written with the next change
        now.generation = manifest.generation
    scratch.save(now)
    if now.generation:
        return True
    if (there := Manifest.load(bucket)) is not None and there.generation == manifest.generation:
        gone = ", ".join(sorted(filter(None, lost))[:3])
        raise StoreFailed(
            f"{bucket.address} is damaged: objects that its manifest names are gone or hold something else, such as "
            f"that of {gone}. Put them back, where the bucket keeps versions; else what is in {scratch.run} is all "
            "that is left of the run."
        )
    return False


def _download(file: Path, bucket: Bucket, path: str, entry: Entry) -> str | None:
    """Read a file's object; return its path where that is gone, or holds something else."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replacing(file) as partial:
            if bucket.download(entry.key(path), partial) != entry.digest:
                raise _Lost
            os.utime(partial, ns=(entry.changed, entry.changed))
    except _Lost:
        return path
    return None


class _Lost(Exception):
    """An object is not what it should be."""


def _remove_empty(run: Path) -> None:
    for folder, _, _ in os.walk(run, topdown=False):
        if folder != str(run) and not os.listdir(folder):
            os.rmdir(folder)


def _all(work: Callable[[_T], str | None], items: Iterable[_T]) -> list[str | None]:
    """Do some work for several things at once; return what came of each."""
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="store") as pool:
        running = [pool.submit(work, item) for item in items]
        try:
            return [each.result() for each in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
