"""The dashboard as it is served: its port, its token, and what it shows of a run folder."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import optuna
import pytest
from filelock import FileLock

from mft_ray.dashboard.optuna_page import check_study
from mft_ray.dashboard.server import serve
from mft_ray.errors import UserError
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.models.names import SCORES
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.live.nodes import CardUse, NodeUse, WorkerUse
from mft_ray.runs.records import Cluster


@pytest.fixture
def run(make_run):
    """A run folder as a search leaves it, with a study of three trials."""
    folder = make_run()
    (folder / "work").mkdir(exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{folder / 'study.db'}", study_name="masks", direction="maximize")
    study.optimize(lambda trial: trial.suggest_float("ratio", 0.02, 0.5), n_trials=3)
    for name, scores in (("trial00", [1, 1, 0, 0, 1]), ("trial01", [1, 0, 1, 1, 1])):
        out = RunFolder(folder).trial(name)
        out.mkdir(parents=True)
        ExampleScores.of("exact_match", scores).save(out / SCORES)
        (folder / "tensorboard" / name).mkdir(parents=True)
    return folder


@pytest.fixture
def served(run):
    """A client that has shown the token, of a dashboard in a process of its own."""
    process, address = start(run)
    client = httpx.Client(base_url=address.split("/?")[0], trust_env=False, timeout=240, follow_redirects=True)
    assert client.get(address).status_code == 200
    yield client
    client.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 0
    assert process.communicate()[1] == ""


def start(run, **environment):
    command = [sys.executable, "-m", "mft_ray", "dashboard", str(run), "--port", "0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    line = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S+", line)
    assert address, line + process.stderr.read()
    return process, address[0]


def test_pages_show_what_the_folder_says_and_nothing_can_be_injected(served):
    whole = served.get("/")
    assert "quick&lt;b&gt;start" in whole.text
    assert "<b>start" not in whole.text
    assert "default-src 'none'" in whole.headers["content-security-policy"]
    board = served.get("/part/board").text
    assert "trial00" in board
    assert "&lt;/script&gt;&lt;b&gt;" in board
    state = served.get("/part/state").text
    assert "88.40" in state
    assert "What next" in state
    assert "mft-ray export" in state
    drawn = json.loads(served.get("/figures").text)
    assert {"trials", "fft", "ratio", "heat", "parallel", "forest"} <= set(drawn)
    trial = served.get("/trial/trial03").text
    assert "Ray Tune ended it" in trial
    assert "Decided at step" not in trial
    below = served.get("/trial/trial01").text
    for said in ("it would have ended below FFT", "Decided at step 210 of 300", "−1.80 points", "95 % confidence"):
        assert said in below
    for page in (state, below):
        assert "tensorboard --logdir" in page
    assert "tensorboard --logdir" not in trial  # which has no events
    side_by_side = served.get("/compare?trial=trial00&trial=trial01").text
    assert 'class="differs"' in side_by_side
    assert json.loads(served.get("/compare/figures?trial=trial00&trial=trial01").text)["trials"]["data"]
    examples = served.get("/compare/examples?trial=trial00&trial=trial01").text
    alone = "trial00 alone is right on 1; trial01 alone is right on 2"
    for said in (alone, "on 3 of 5 validation", "no prepared data"):
        assert said in examples
    assert "search.keep" in served.get("/compare/examples?trial=trial00&trial=trial02").text
    [study] = served.get("/api/studies").json()["study_summaries"]
    assert study["study_name"] == "masks"
    assert served.get("/assets/plotly.js").status_code == 200


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/trial/nothing", "There is no trial"),
        ("/compare?trial=trial00", "two or more trials"),
        ("/form", "FFT model"),
        ("/report", "when trials have ended"),
    ],
)
def test_what_cannot_be_shown_is_said(served, path, said):
    page = served.get(path)
    assert page.status_code == 404
    assert said in page.text
    # In a part of a page it stands where that part would.
    assert said in served.get(path, headers={"HX-Request": "true"}).text


def test_nodes_and_workers_are_shown_while_a_search_runs(served, run):
    worker, card = WorkerUse(7, 2_000_000_000, 900_000_000), CardUse("H100", 5_000_000_000, 80_000_000_000, 93)
    nodes = [NodeUse("here", 4.0, 2.0, 1.0, 1.0, 64_000_000_000, 32_000_000_000, (card,), (worker,))]
    nodes += [NodeUse(f"n{number}", 2.0, 0.0, 0.0, 0.0) for number in range(40)]
    Cluster(time=time.time(), nodes=nodes).save(RunFolder(run).cluster)
    assert "<table>" not in served.get("/part/cluster").text
    with FileLock(run / "work" / "lock"):
        shown = served.get("/part/cluster").text
    for said in (
        "41 nodes, 1 worker, 2 of 84 CPUs and 1 of 1 GPUs in use",
        "32 GB of 64 GB",
        "H100: 5 GB of 80 GB, 93 % busy",
        "2 GB and 900 MB of a GPU&#39;s",
        "Not shown: 1 more node.",
    ):
        assert said in shown


def test_nothing_to_end_is_said(served):
    assert "No search works on" in served.post("/stop", headers={"HX-Request": "true"}).text


def test_events_say_that_the_run_has_changed(served, run):
    with served.stream("GET", "/events") as events:
        lines = events.iter_lines()
        assert next(line for line in lines if line.startswith("event")) == "event: changed"
        (run / "work" / "log.txt").write_text("2026-01-01 10:00:00 something\n")
        assert next(line for line in lines if line.startswith("event")) == "event: changed"
    assert "10:00:00 something" in served.get("/part/log").text


def test_only_who_knows_the_token_is_let_in(run):
    process, address = start(run, MFT_RAY_DASHBOARD_TOKEN="a-token-that-is-long-enough")
    base = address.split("/?")[0]
    try:
        assert address.endswith("a-token-that-is-long-enough")
        with httpx.Client(base_url=base, trust_env=False, timeout=240) as stranger:
            for path in ("/", "/part/board", "/events", "/api/studies", "/assets/live.js", "/?token=wrong"):
                answer = stranger.get(path)
                assert answer.status_code == 403
                assert "trial00" not in answer.text
            assert stranger.post("/stop").status_code == 403
        with httpx.Client(base_url=base, trust_env=False, timeout=240) as known:
            first = known.get(address)
            assert first.status_code == 303
            assert "token" not in first.headers["location"]
            assert "httponly" in first.headers["set-cookie"].lower()
            assert known.get("/").status_code == 200
            # A page of another site may send the cookie in an old browser, and must not steer.
            assert known.post("/stop", headers={"Origin": "http://elsewhere.example"}).status_code == 403
            assert known.post("/stop", headers={"Origin": base}).status_code != 403
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
        process.communicate()


def test_a_run_folder_of_any_name(run, tmp_path):
    folder = tmp_path / "a%20b [v2]#1?"
    run.rename(folder)
    process, address = start(folder)
    try:
        with httpx.Client(trust_env=False, timeout=240, follow_redirects=True) as client:
            assert "quick&lt;b&gt;start" in client.get(address).text
            [study] = client.get(address.split("/?")[0] + "/api/studies").json()["study_summaries"]
        assert study["study_name"] == "masks"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


def test_port_in_use_is_an_error_only_if_it_was_asked_for(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}"):
            serve(run, port=port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such host"])
def test_address_of_another_machine(run, host):
    with pytest.raises(UserError, match="Cannot listen"):
        serve(run, host=host)


def test_port_out_of_range(run):
    with pytest.raises(UserError, match="70000 is not a port"):
        serve(run, port=70000)


def test_a_token_that_is_too_short(run, monkeypatch):
    monkeypatch.setenv("MFT_RAY_DASHBOARD_TOKEN", "short")
    with pytest.raises(UserError, match="16 or more"):
        serve(run)


def test_command_ends_with_2_where_there_is_no_run(tmp_path):
    for folder in (tmp_path, tmp_path / "nothing"):
        command = [sys.executable, "-m", "mft_ray", "dashboard", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 2
        assert "run" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [None, b"", b"not a database at all, whatever its name says"])
def test_what_is_no_study_is_left_alone(tmp_path: Path, content: bytes | None):
    database = tmp_path / "study.db"
    if content is not None:
        database.write_bytes(content)
    with pytest.raises(UserError, match=r"no study|not an Optuna study"):
        check_study(database)
    assert os.listdir(tmp_path) == ([] if content is None else ["study.db"])
    assert content is None or database.read_bytes() == content


def test_it_ends_in_order_while_somebody_watches(run):
    process, address = start(run)
    with httpx.Client(trust_env=False, timeout=240, follow_redirects=True) as client:
        assert client.get(address).status_code == 200
        with client.stream("GET", address.split("/?")[0] + "/events") as events:
            lines = events.iter_lines()
            assert next(line for line in lines if line.startswith("event")) == "event: changed"
            process.send_signal(signal.SIGINT)
            list(lines)  # the end is told, not torn off
    assert process.wait(timeout=120) == 0
    assert process.communicate()[1] == ""
