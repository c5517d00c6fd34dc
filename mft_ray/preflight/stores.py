"""Whether an object store does what a run needs of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

from mft_ray.preflight.finding import Finding
from mft_ray.store.address import Address
from mft_ray.store.bucket import Bucket, StoreFailed
from mft_ray.store.manifest import OWN
from mft_ray.utils.console import log

_PATIENCE_S = 5.0
_BYTES = 4 * 2**20
_OLD, _NEW = b"old", b"new" * (_BYTES // 3)


def look_at_store(address: Address) -> Iterator[Finding]:
    """Write, replace, list, read and delete an object where runs are to go.

    Args:
        address: of a run, or of the folder of several.
    """
    bucket = Bucket(address, _PATIENCE_S, log)
    name = f"{OWN}/doctor-{uuid.uuid4().hex[:8]}"
    try:
        began = time.monotonic()
        bucket.write(name, _OLD)
        bucket.write(name, _NEW)
        wrote = time.monotonic()
        problem = None
        if bucket.read(name) != _NEW:
            problem = "an object that took another's place reads as the old one"
        elif name not in bucket.listed(OWN):
            problem = "an object that was written is not listed"
        read = time.monotonic()
        bucket.remove([name])
        if problem is None and bucket.read(name) is not None:
            problem = "an object that was deleted can still be read"
    except StoreFailed as error:
        with suppress(StoreFailed):
            bucket.patience_s = 0.0
            bucket.remove([name])
        yield Finding("wrong", "object store", str(error))
        return
    if problem is not None:
        yield Finding("wrong", "object store", f"{address}: {problem}. Give a store that shows at once what it is told")
        return
    rates = f"{len(_NEW) / 1e6 / (wrote - began):.3g} MB/s written, {len(_NEW) / 1e6 / (read - wrote):.3g} MB/s read"
    yield Finding("ok", "object store", f"{address}: writes, lists, reads and deletes objects ({rates}, one at a time)")
