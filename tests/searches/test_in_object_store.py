"""A search whose run folder is in an object store: that goes away for ever, the head dies and its disk with it."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import object_store
import optuna
import pytest
import small_searches
import yaml
from optuna.trial import TrialState

from mft_ray.runs.study.file import STUDY_NAME, open_copy
from mft_ray.store.address import Address
from mft_ray.store.bucket import Bucket
from mft_ray.store.manifest import MANIFEST, OBJECTS, Manifest
from mft_ray.store.scratch import SCRATCH

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1800)]

TRIALS = 4
STEPS, EVAL_EVERY = 1600, 100
URI = f"s3://{object_store.BUCKET}/runs/mine"
AWAY_S = 5


@dataclass
class Ended:
    """The search.

    Attributes:
        folder: this machine's copy of the run, at the end.
        bucket: the run in the store.
        environment: of its processes.
        finished: by trial, what its outcome was in the store right before the machine was lost.
        said: what each of its three sessions printed.
        status: their exit statuses; None of the one that was killed.
        first: trials that had ended in the first session.
    """

    folder: Path
    bucket: Bucket
    environment: dict[str, str]
    finished: dict[str, bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    status: list[int | None] = field(default_factory=list)
    first: set[str] = field(default_factory=set)

    def rows(self) -> list[dict[str, Any]]:
        trials: list[dict[str, Any]] = json.loads((self.folder / "leaderboard.json").read_text())["trials"]
        return trials


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, make_tiny: Callable[[], dict[str, Any]]) -> Iterator[Ended]:
    home = tmp_path_factory.mktemp("store")
    tree = make_tiny()
    tree["train"].update(steps=STEPS, eval_every=EVAL_EVERY)
    tree["search"] = {"trials": TRIALS, "max_concurrent": 1, "stop": {"below_fft": False, "plateau": None}}
    tree["run"] = {"push_seconds": 1, "push_patience_minutes": 0.05}
    (home / "tiny.yaml").write_text(yaml.safe_dump(tree))
    with object_store.server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        wire = object_store.Wire(server.port)
        wire.mend()
        environment = {**server.environment, "AWS_ENDPOINT_URL": wire.endpoint, SCRATCH: str(home / "scratch")}
        bucket = Bucket(Address.parse(URI), 10, print)
        its = Ended(home, bucket, environment)
        until_the_store_is_gone(home, its, wire)
        until_the_machine_is_gone(home, its, wire)
        to_the_end(home, its, wire)
        yield its
        wire.cut()


def run_folder(home: Path) -> Path | None:
    return next(iter((home / "scratch").glob("*/mine")), None)


def in_store(bucket: Bucket) -> dict[str, bytes]:
    """The outcomes of trials that the store has, by trial."""
    manifest = Manifest.load(bucket)
    files = manifest.files if manifest else {}
    found = {
        path.split("/")[2]: bucket.read(entry.key(path))
        for path, entry in files.items()
        if path.startswith("work/trials/") and path.endswith("/outcome.json")
    }
    return {trial: content for trial, content in found.items() if content is not None}


def until(what: Callable[[], object], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + small_searches.TIMEOUT_S
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)


def note(its: Ended, process: subprocess.Popen[str]) -> None:
    out, err = process.communicate(timeout=small_searches.TIMEOUT_S)
    its.said.append(out + err)
    its.status.append(process.returncode)


def until_the_store_is_gone(home: Path, its: Ended, wire: object_store.Wire) -> None:
    process = small_searches.start(home, "--config", "tiny.yaml", "--set", f"run.dir={URI}", **its.environment)
    until(lambda: (folder := run_folder(home)) and small_searches.in_the_middle(folder), process)
    wire.cut()
    note(its, process)
    folder = run_folder(home)
    assert folder is not None
    its.folder = folder
    its.first = {path.parent.name for path in folder.glob("work/trials/*/outcome.json")}
    wire.mend()


def until_the_machine_is_gone(home: Path, its: Ended, wire: object_store.Wire) -> None:
    longer = ("--set", "run.push_patience_minutes=10")
    process = small_searches.start(home, "--resume", URI, *longer, **its.environment)
    until(lambda: len(in_store(its.bucket)) > len(its.first) and small_searches.at_work(its.folder), process)
    small_searches.kill(process)
    its.said.append("")
    its.status.append(None)
    its.finished = in_store(its.bucket)
    shutil.rmtree(home / "scratch")


def to_the_end(home: Path, its: Ended, wire: object_store.Wire) -> None:
    process = small_searches.start(home, "--resume", URI, **its.environment)
    until(lambda: len(in_store(its.bucket)) > len(its.finished), process)
    wire.cut()
    time.sleep(AWAY_S)
    wire.mend()
    note(its, process)


def test_a_store_that_is_gone_ends_a_search_in_one_paragraph(ended: Ended) -> None:
    assert ended.status[0] == 1
    assert "Traceback" not in ended.said[0]
    [last] = [line for line in ended.said[0].splitlines() if line.startswith("failed: ")]
    assert "NETWORK_CONNECTION" in last
    assert f"What is finished is kept in {ended.folder}" in last
    assert f"--resume {URI}" in last


def test_what_was_finished_without_the_store_is_not_lost(ended: Ended) -> None:
    assert ended.first
    assert ended.first <= ended.finished.keys()


def test_a_search_goes_on_from_the_store_alone_to_its_verdict(ended: Ended) -> None:
    assert ended.status[2] == 0, ended.said[2]
    rows = ended.rows()
    assert len({row["trial_id"] for row in rows}) == len(rows) == TRIALS
    assert all(row["status"] in ("completed", "stopped") for row in rows)
    verdict = json.loads((ended.folder / "verdict.json").read_text())
    assert verdict["trial_id"] == rows[0]["trial_id"]
    assert (ended.folder / "best" / "mask.safetensors").exists()


def test_no_trial_that_the_store_had_is_lost_or_repeated(ended: Ended) -> None:
    assert len(ended.finished) >= 2
    now = in_store(ended.bucket)
    assert {trial: now[trial] for trial in ended.finished} == ended.finished
    assert now.keys() == {row["trial_id"] for row in ended.rows()}


def test_the_study_says_what_the_trials_say(ended: Ended) -> None:
    study = optuna.load_study(study_name=STUDY_NAME, storage=open_copy(ended.folder / "study.db"))
    assert TrialState.RUNNING not in {trial.state for trial in study.trials}
    told = {t.user_attrs["trial_id"]: t.value for t in study.trials if t.state == TrialState.COMPLETE}
    assert told == {row["trial_id"]: row["score"] for row in ended.rows()}


def test_a_store_that_is_away_for_seconds_costs_nothing(ended: Ended) -> None:
    assert "Traceback" not in ended.said[2]
    assert ended.said[2].count(f"{URI} answers again") == 1


def test_at_the_end_the_store_is_what_the_copy_is(ended: Ended) -> None:
    manifest = Manifest.load(ended.bucket)
    assert manifest is not None
    assert ended.bucket.listed(OBJECTS).keys() == manifest.objects
    for name in ("leaderboard.json", "verdict.json", "report.html", "best/mask.safetensors"):
        content = (ended.folder / name).read_bytes()
        assert ended.bucket.read(manifest.files[name].key(name)) == content
        assert ended.bucket.read(name) == content
    own = {name for name in ended.bucket.listed() if name.startswith(".mft_ray/")} - manifest.objects
    assert own == {MANIFEST}  # nobody holds it


def test_what_was_written_is_said(ended: Ended) -> None:
    written = json.loads((ended.folder / "work" / "store.json").read_text())
    trials = {row["trial_id"] for row in ended.rows()}
    assert trials <= written["trials"].keys()
    assert 0 < sum(written["trials"].values()) < written["bytes"]
    assert f"{URI} is up to date: " in ended.said[2]
    assert any(f"trial {trial} is in {URI}: " in ended.said[2] for trial in trials - ended.finished.keys())


def test_commands_read_it_by_its_address(ended: Ended, tmp_path: Path) -> None:
    """On a machine that has never seen it."""

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        return small_searches.command(tmp_path, *arguments, **{**ended.environment, SCRATCH: str(tmp_path / "scratch")})

    report = command("report", URI)
    assert report.returncode == 0, report.stderr
    assert str(tmp_path / "scratch") in report.stdout
    export = command("export", URI, "--out", "model")
    assert export.returncode == 0, export.stderr
    assert (tmp_path / "model" / "model.safetensors").exists()
    nothing = command("stop", URI)
    assert nothing.returncode == 2
    assert "on this machine" in nothing.stderr
