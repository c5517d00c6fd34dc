"""Where a search finds its study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mft_ray.runs.folder import RunFolder
from mft_ray.runs.study.live import LiveStudy, LocalStudy
from mft_ray.runs.study.server import ServerStudy, leave_server


@contextmanager
def live_study(folder: RunFolder, url: str | None) -> Iterator[LiveStudy]:
    """Yield the study of a run, to work on; afterwards the files of the run say what it says.

    Args:
        folder: folder of the run.
        url: of a database that it is in while a search works on it; None has it in memory.

    Raises:
        Unusable: it cannot be read, or not be kept.
    """
    study: LiveStudy
    if url is None:
        leave_server(folder)
        study = LocalStudy(folder.study_copy, folder.study)
    else:
        study = ServerStudy(url, folder)
    try:
        yield study
        study.keep()
    finally:
        study.close()
