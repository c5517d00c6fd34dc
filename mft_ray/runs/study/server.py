"""A study in a PostgreSQL server, which may be away for a while, with a copy in the run folder."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import RDBStorage, get_storage
from optuna.storages._rdb.models import TrialModel
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import func, make_url, select
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, OperationalError, ProgrammingError

from mft_ray.errors import UserError
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import StudyName
from mft_ray.runs.study.copying import bring_up
from mft_ray.runs.study.file import STUDY_NAME
from mft_ray.runs.study.live import LiveStudy, LocalStudy, Unusable
from mft_ray.utils.console import log, log_warning
from mft_ray.utils.files import Damaged

_T = TypeVar("_T")
# How long a server may be away: long enough to be started anew.
PATIENCE_S = 60.0
_AGAIN_S = 0.5
# libpq's: a host that has gone without a word is noticed.
_CONNECT = {
    "connect_timeout": "10",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
    "application_name": "mft_ray",
}
# Heads that make Optuna's tables at the same time are in each other's way, once.
_HEADS = 5
# What Optuna asks of it, and changes in it in a way that may be repeated.
_ASKS = (
    "get_study_id_from_name",
    "get_study_name_from_id",
    "get_study_directions",
    "get_study_user_attrs",
    "get_study_system_attrs",
    "get_all_studies",
    "get_trial_id_from_study_id_trial_number",
    "_get_best_trial_id",
    "get_trial",
    "_get_trials",
)
_CHANGES = (
    "create_new_study",
    "delete_study",
    "set_study_user_attr",
    "set_study_system_attr",
    "_set_trial_param",
    "set_trial_intermediate_value",
    "set_trial_user_attr",
    "set_trial_system_attr",
)


class PatientStorage(RDBStorage):
    """Optuna's storage over a server; calls are made again while it is away.

    Optuna's own would end a search with the first connection that a server drops.

    Args:
        url: without a password.

    Attributes:
        changes: grows whenever something may have been changed.
    """

    changes = 0

    def __init__(self, url: str) -> None:
        place = make_url(url).set(drivername="postgresql+psycopg")
        connect = {name: value for name, value in _CONNECT.items() if name not in place.query}
        self.place = url
        options = {"pool_pre_ping": True, "connect_args": connect}
        for left in reversed(range(_HEADS)):
            try:
                super().__init__(place.render_as_string(hide_password=False), engine_kwargs=options)
                return
            except (IntegrityError, ProgrammingError):
                if not left:
                    raise
                time.sleep(_AGAIN_S)

    def repeated(self, call: Callable[[], _T], again: Callable[[], _T] | None = None) -> _T:
        """Return what a call returns, made again while the server is away.

        Args:
            call: a call of Optuna's.
            again: made instead after the first, which may have reached the server although nothing came back.

        Raises:
            Unusable: the server is away for good, or has its reasons.
        """
        until, said = time.monotonic() + PATIENCE_S, False
        while True:
            try:
                result = call()
            except (StorageInternalError, DBAPIError) as error:
                if not _away(error) or time.monotonic() > until:
                    raise Unusable(f"The study on {self.place} cannot be used: {reason(error)}") from error
                if not said:
                    log_warning(f"{self.place} is away ({reason(error)}): waiting for it, {PATIENCE_S:.0f} s at most")
                said, call = True, again or call
                time.sleep(_AGAIN_S)
            else:
                if said:
                    log(f"{self.place} is back")
                return result

    def _create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> FrozenTrial:
        self.changes += 1
        number = self.repeated(lambda: self._count(study_id))

        def create() -> FrozenTrial:
            return RDBStorage._create_new_trial(self, study_id, template_trial)

        def again() -> FrozenTrial:
            if self._count(study_id) == number:
                return create()
            known = RDBStorage.get_trial_id_from_study_id_trial_number(self, study_id, number)
            return RDBStorage.get_trial(self, known)

        created = self.repeated(create, again)
        for lost in range(number, created.number):  # by a try of Optuna's own, whose answer was lost
            known = self.repeated(partial(RDBStorage.get_trial_id_from_study_id_trial_number, self, study_id, lost))
            self.set_trial_state_values(known, TrialState.FAIL)
        return created

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Set that a trial is at work, or how it ended; return whether it was not so before."""
        self.changes += 1

        def change() -> bool:
            return RDBStorage.set_trial_state_values(self, trial_id, state, values)

        def again() -> bool:
            # There is nobody else who may have done it.
            with suppress(UpdateFinishedTrialError):
                change()
            return True

        return self.repeated(change, again)

    def _count(self, study_id: int) -> int:
        with self.engine.connect() as connection:
            query = select(func.count()).select_from(TrialModel).where(TrialModel.study_id == study_id)
            return int(connection.execute(query).scalar_one())


def _patient(name: str, changes: int) -> Callable[..., Any]:
    method = getattr(RDBStorage, name)

    @wraps(method)
    def call(self: PatientStorage, *args: Any, **options: Any) -> Any:
        self.changes += changes
        return self.repeated(partial(method, self, *args, **options))

    return call


for _name in _ASKS + _CHANGES:
    setattr(PatientStorage, _name, _patient(_name, int(_name in _CHANGES)))


class ServerStudy(LiveStudy):
    """A study in a server. What the server does not have, or has lost, it gets from the copy in the run folder.

    Args:
        url: of the database, without a password.
        folder: folder of the run.

    Raises:
        Unusable: the server does not answer.
    """

    def __init__(self, url: str, folder: RunFolder) -> None:
        self._copy = LocalStudy(folder.study_copy, folder.study)
        try:
            self._server = PatientStorage(url)
        except (StorageInternalError, DBAPIError) as error:
            raise Unusable(f"The study on {url} cannot be used: {reason(error)}") from error
        super().__init__(get_storage(self._server), _own_name(folder, url))
        if self._copy.id is not None and self.id is None:
            log(f"the study goes on in {url}, as {self.name}, with what {folder.study.name} has of it")
        bring_up(self, self._copy)
        self._changes = -1

    def begin_anew(self) -> None:
        """Forget all trials, of this run alone."""
        super().begin_anew()
        self._copy.begin_anew()

    def keep(self) -> None:
        """Write the copy in the run folder, if the study has changed."""
        changes = self._server.changes
        if changes != self._changes:
            bring_up(self._copy, self)
            self._copy.keep()
            self._changes = changes

    def close(self) -> None:
        """Close connections."""
        self._server.engine.dispose()
        self._copy.close()


def check_server(url: str) -> None:
    """Refuse a server that a search could not use.

    Args:
        url: of the database, without a password.

    Raises:
        UserError: saying what is missing.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise UserError(
            "search.storage needs psycopg, which is not installed. Run pip install 'mft_ray[postgresql]', or leave "
            "search.storage out."
        )
    try:
        PatientStorage(url).engine.dispose()
    except (StorageInternalError, DBAPIError, ImportError, RuntimeError) as error:
        raise UserError(
            f"search.storage is {url}, and no study can be kept there: {reason(error)}. Look at the address, whether "
            "the server runs, and whether the user may make tables in the database; a password is taken from "
            "PGPASSWORD in the environment, or from ~/.pgpass. Or leave search.storage out: the study is then kept in "
            "the run folder alone."
        ) from None


def reason(error: BaseException) -> str:
    """Return what a server or its driver said, in a line."""
    found = _said(error)
    said = error if found is None else found.orig
    return " ".join(str(said).split()).rstrip(".")


def _away(error: BaseException) -> bool:
    """Say whether an error is of a server that is away, rather than of what it was asked for."""
    found = _said(error)
    return isinstance(found, OperationalError | InterfaceError) or (found is not None and found.connection_invalidated)


def _said(error: BaseException | None) -> DBAPIError | None:
    while error is not None and not isinstance(error, DBAPIError):
        error = error.__cause__ or error.__context__
    return error


def leave_server(folder: RunFolder) -> None:
    """Have a run's study never go on where it was on a server: it goes on elsewhere, and is another one then."""
    folder.study_name.unlink(missing_ok=True)


def _own_name(folder: RunFolder, url: str) -> str:
    """Return the name of the run's study on a server that other runs have theirs on; a copied run gets a new one."""
    here = str(folder.root)
    known = _recorded(folder)
    if known is not None and known.folder != here:
        other = _recorded(RunFolder(Path(known.folder)))
        if other is not None and other.name == known.name:
            log_warning(f"this run is a copy of {known.folder}: its study goes on under a name of its own")
            known = None
    if known is not None and known.url != url:
        known = None
    name = f"{STUDY_NAME}-{uuid4().hex[:12]}" if known is None else known.name
    if known is None or known.folder != here:
        StudyName(name=name, folder=here, url=url).save(folder.study_name)
    return name


def _recorded(folder: RunFolder) -> StudyName | None:
    try:
        return StudyName.load(folder.study_name)
    except (OSError, Damaged):
        return None
