"""The study as optuna-dashboard shows it: a copy, with what the run knows of each trial."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import RDBStorage
from optuna_dashboard._note import save_note_with_version

from mft_ray.dashboard import optuna_page
from mft_ray.dashboard.optuna_page import StudyApp
from mft_ray.models.names import MASK
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.snapshot import read_live
from mft_ray.runs.study.file import STUDY_NAME
from mft_ray.searches.optuna_search import TRIAL_ID

SPACE = {"ratio": FloatDistribution(0.0, 0.5)}


class Client:
    """Asks the app as a server does."""

    def __init__(self, app: StudyApp) -> None:
        self.app = app

    def __call__(self, path: str, method: str = "GET") -> tuple[str, bytes]:
        environ: dict[str, Any] = {}
        setup_testing_defaults(environ)
        environ |= {"PATH_INFO": path, "REQUEST_METHOD": method}
        said: list[str] = []
        body = b"".join(self.app(environ, lambda status, headers, *rest: said.append(status)))
        return said[0][:3], body

    def json(self, path: str) -> Any:
        status, body = self(path)
        assert status == "200", body
        return json.loads(body)


@pytest.fixture
def run(make_run: Callable[..., Path]) -> RunFolder:
    """A finished run whose study has three of its trials, of which the first has kept its mask, and one unknown."""
    folder = RunFolder(make_run())
    folder.work.mkdir(exist_ok=True)
    folder.trial("trial00").mkdir(parents=True)
    (folder.trial("trial00") / MASK).write_bytes(b"a mask")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=RDBStorage(f"sqlite:///{folder.study}"), study_name=STUDY_NAME, direction="maximize"
    )
    study.set_metric_names(["Exact match"])
    study.set_user_attr("FFT", 0.884)
    for name, score in (("trial00", 0.906), ("trial01", 0.902), ("trial<i>99", None), ("of nobody", 0.5)):
        trial = study.ask(SPACE)
        trial.set_user_attr(TRIAL_ID, name)
        state = optuna.trial.TrialState.FAIL if score is None else None
        study.tell(trial, score, state=state)
    return folder


@pytest.fixture
def client(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(optuna_page, "_EVERY_S", 0.0)
    monkeypatch.setattr(optuna_page, "_PART", 1e9)
    return Client(StudyApp(run.study, lambda: read_live(run.root)))


def test_trials_have_their_names_reasons_numbers_and_masks(client: Client) -> None:
    study = client.json("/api/studies/1")
    assert study["objective_names"] == ["Exact match"]
    assert {"key": "FFT", "value": "0.884"} in study["user_attrs"]
    first, second, failed, unknown = study["trials"]
    assert [trial["number"] for trial in study["trials"]] == [0, 1, 2, 3]
    assert first["note"]["body"].startswith("## Trial trial00\n\n90.60 % on validation at step 30, +2.20 points")
    assert "[All that is known of it](/trial/trial00)" in first["note"]["body"]
    attributes = {each["key"]: each["value"] for each in second["user_attrs"]}
    assert attributes[TRIAL_ID] == "trial01"
    assert float(attributes["against FFT"]) == pytest.approx(0.018)
    assert "below FFT" in attributes["why it ended"]
    assert "Decided at step 210 of 300" in second["note"]["body"]
    assert "```\nout of memory in <linear>\n```" in failed["note"]["body"]
    assert unknown["note"]["body"] == ""
    [mask] = first["artifacts"]
    assert mask["filename"] == f"trial00-{MASK}"
    assert second["artifacts"] == []
    assert client(f"/artifacts/1/{first['trial_id']}/{mask['artifact_id']}") == ("200", b"a mask")


def test_the_study_says_what_it_is_and_shows_fft_as_a_line(client: Client) -> None:
    study = client.json("/api/studies/1")
    for said in ("quick<b>start: mask search", "FFT has 0.884 (**88.40 %**)", "Better than FFT", "This is a copy"):
        assert said in study["note"]["body"]
    [figure] = study["plotly_graph_objects"]
    assert figure["id"] == "fft"
    drawn = json.loads(figure["graph_object"])
    assert any(shape.get("y0") == shape.get("y1") == pytest.approx(88.4) for shape in drawn["layout"]["shapes"])
    assert drawn["data"][0]["x"] == [0, 1]
    assert "trial01" in drawn["data"][0]["text"][1]


def test_the_search_s_study_is_never_written(client: Client, run: RunFolder) -> None:
    before = (run.study.read_bytes(), run.study.stat().st_mtime_ns)
    assert client.json("/api/studies")["study_summaries"][0]["study_name"] == STUDY_NAME
    for method, path in (("DELETE", "/api/studies/1"), ("POST", "/api/studies"), ("PUT", "/api/studies/1/note")):
        status, body = client(path, method)
        assert status == "403"
        assert "nothing can be changed" in json.loads(body)["reason"]
    assert (run.study.read_bytes(), run.study.stat().st_mtime_ns) == before
    assert [path.name for path in run.root.glob("study.db*")] == ["study.db"]


def test_it_follows_the_study_and_the_run(client: Client, run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(client.json("/api/studies/1")["trials"]) == 4
    study = optuna.load_study(storage=RDBStorage(f"sqlite:///{run.study}"), study_name=STUDY_NAME)
    trial = study.ask(SPACE)
    trial.set_user_attr(TRIAL_ID, "trial02")
    trial.report(0.7, 10)
    running = client.json("/api/studies/1")["trials"][4]
    assert running["state"] == "Running"
    assert running["intermediate_values"] == [{"step": 10, "value": 0.7}]
    # While nothing changes nothing is made anew, and what is asked for often is made anew now and then.
    app = client.app._fresh()
    assert client.app._fresh() is app
    monkeypatch.setattr(optuna_page, "_EVERY_S", 1000.0)
    study.tell(trial, 0.7)
    assert client.app._fresh() is not app
    later = client.app._fresh()
    study.ask(SPACE)
    assert client.app._fresh() is later


def test_what_a_person_wrote_on_optuna_s_page_before_stays(client: Client, run: RunFolder) -> None:
    storage = RDBStorage(f"sqlite:///{run.study}")
    trials = storage.get_all_trials(1)
    save_note_with_version(storage, 1, trials[1]._trial_id, 3, "a note of mine")
    save_note_with_version(storage, 1, None, 2, "another one")
    found = client.json("/api/studies/1")
    assert found["note"]["body"].endswith("\n\nanother one")
    bodies = [trial["note"]["body"] for trial in found["trials"]]
    assert bodies[1].startswith("## Trial trial01")
    assert [body.endswith("\n\na note of mine") for body in bodies] == [False, True, False, False]


def test_a_file_without_its_study_yet_says_so(client: Client, run: RunFolder) -> None:
    optuna.delete_study(study_name=STUDY_NAME, storage=RDBStorage(f"sqlite:///{run.study}"))
    status, body = client("/api/studies")
    assert (status, b"holds 0 studies" in body) == ("503", True)


def test_a_mask_that_has_gone_since_is_not_found(client: Client, run: RunFolder) -> None:
    [mask] = client.json("/api/studies/1")["trials"][0]["artifacts"]
    client.app._due = time.monotonic() + 1000
    (run.trial("trial00") / MASK).unlink()
    status, body = client(f"/artifacts/1/0/{mask['artifact_id']}")
    assert (status, b"search.keep" in body) == ("404", True)
