"""A study while a search works on it, and its copies in the run folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import BaseStorage, get_storage
from optuna.study import StudyDirection

from mft_ray.errors import RunFailed
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.study.file import STUDY_NAME, read_study, sound, storage_in, write_study


class Unusable(BaseException):
    """A study can be neither read nor changed any more.

    Tune takes an `Exception` for a failure of its trial, and goes on. This ends a search as a kill would, for which
    it is made; `explained` says it to the person.
    """


@contextmanager
def explained(folder: RunFolder) -> Iterator[None]:
    """End in one sentence what a study that cannot be used has ended.

    Args:
        folder: folder of the run.

    Raises:
        RunFailed: instead of `Unusable`.
    """
    try:
        yield
    except Unusable as error:
        raise RunFailed(
            f"{error}. What was finished is kept; once the cause is gone, go on with --resume {folder.named}"
        ) from error


class LiveStudy:
    """A study in any storage, kept nowhere else.

    Args:
        storage: storage of the study.
        name: name of the study there.
    """

    def __init__(self, storage: BaseStorage, name: str = STUDY_NAME) -> None:
        self.storage, self.name = storage, name

    @property
    def id(self) -> int | None:
        """Number of the study in its storage; None where there is none yet."""
        try:
            return self.storage.get_study_id_from_name(self.name)
        except KeyError:
            return None

    def begin_anew(self) -> None:
        """Forget all trials."""
        if (known := self.id) is not None:
            self.storage.delete_study(known)

    def have(self, directions: Sequence[StudyDirection]) -> int:
        """Return the number of the study in its storage, where it is made if there is none.

        Args:
            directions: of a new study.
        """
        known = self.id
        return self.storage.create_new_study(directions, self.name) if known is None else known

    def keep(self) -> None:
        """Have the files of the run say what the study says."""

    def close(self) -> None:
        """Let go of what holds it."""


class LocalStudy(LiveStudy):
    """A study in memory, kept in files.

    A kill loses what has changed since it was last kept. Of a search that is at most values on the way of trials at
    work, of some seconds: it keeps the study whenever a trial begins or ends, and before Tune's own state is written.

    Args:
        files: where it is kept; it begins with what the last of them holds that is sound.
    """

    def __init__(self, *files: Path) -> None:
        self._files = files
        self._connection = read_study(next((path for path in reversed(files) if sound(path)), None))
        self._changes = self._connection.total_changes
        super().__init__(get_storage(storage_in(self._connection)))

    def begin_anew(self) -> None:
        """Forget all trials, in memory."""
        self.close()
        self._connection = read_study(None)
        self._changes = self._connection.total_changes
        self.storage = get_storage(storage_in(self._connection))

    def keep(self) -> None:
        """Write the files, if the study has changed.

        Raises:
            Unusable: the disk is full, or gone.
        """
        if (changes := self._connection.total_changes) == self._changes:
            return
        content = self._connection.serialize()
        for path in self._files:
            try:
                write_study(content, path)
            except OSError as error:
                raise Unusable(f"The study {path} cannot be written: {error.strerror or error}") from error
        self._changes = changes

    def close(self) -> None:
        """Let go of the memory."""
        self._connection.close()
