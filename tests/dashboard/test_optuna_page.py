"""Optuna's dashboard over a study's file that a search replaces as it goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import optuna
import pytest
from optuna.distributions import FloatDistribution

from mft_ray.dashboard.optuna_page import study_app
from mft_ray.runs.folder import RunFolder, lock
from mft_ray.runs.study.live import LocalStudy
from mft_ray.searches.optuna_search import StudySearch, build_search


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def search(folder: RunFolder) -> StudySearch:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = build_search(LocalStudy(folder.study), {"ratio": FloatDistribution(0, 0.5)}, [], "random", 1, 0)
    search.suggest("a")
    return search


@pytest.fixture
def page(folder: RunFolder) -> Iterator[httpx.Client]:
    transport = httpx.WSGITransport(study_app(folder.study), raise_app_exceptions=False)
    with httpx.Client(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


def trials(page: httpx.Client) -> int:
    [study] = page.get("/api/studies").json()["study_summaries"]
    return len(page.get(f"/api/studies/{study['study_id']}").json()["trials"])


def note(page: httpx.Client, version: int) -> int:
    [study] = page.get("/api/studies").json()["study_summaries"]
    there = f"/api/studies/{study['study_id']}/note"
    return page.put(there, json={"body": "mine", "version": version}).status_code


def test_it_shows_the_study_as_it_is(search: StudySearch, page: httpx.Client) -> None:
    assert trials(page) == 1
    search.suggest("b")
    deadline = time.monotonic() + 30  # optuna-dashboard looks every few seconds
    while trials(page) == 1 and time.monotonic() < deadline:
        time.sleep(1)
    assert trials(page) == 2


def test_it_is_not_there_before_the_study_is(folder: RunFolder, page: httpx.Client) -> None:
    answer = page.get("/api/studies")
    assert answer.status_code == 503
    assert f"no study at {folder.study} yet" in answer.text


def test_notes_are_kept_where_no_search_would_replace_them(
    folder: RunFolder, search: StudySearch, page: httpx.Client
) -> None:
    held = lock(folder)
    try:
        before = folder.study.read_bytes()
        assert note(page, 1) == 500
        assert folder.study.read_bytes() == before
    finally:
        held.release()
    assert note(page, 1) == 204
    study = LocalStudy(folder.study)  # a search that goes on
    assert "mine" in study.storage.get_study_system_attrs(study.have([])).values()
