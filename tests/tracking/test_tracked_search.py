"""A whole search with all trackers at once: killed, resumed, left by its server, and shown once all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_searches import TIMEOUT_S, in_the_middle, kill, run, start
from tensorboardX.proto.event_pb2 import Event
from tracking_fixtures import (
    free_port,
    mlflow_runs,
    mlflow_server,
    mlflow_steps,
    wandb_records,
    wandb_steps,
    wandb_summary,
)

from mft_ray.runs.folder import RunFolder
from mft_ray.tracking.tensorboard import _records
from mft_ray.training.job import Outcome

pytestmark = pytest.mark.slow
pytest.importorskip("wandb", reason="needs wandb, which `make test-all` installs")
pytest.importorskip("mlflow.server", reason="needs mlflow, which `make test-all` installs")


def while_true(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def tensorboard_steps(folder: RunFolder, name: str) -> list[int]:
    events = [
        Event.FromString(record)
        for path in sorted((folder.tensorboard / name).iterdir())
        for record in _records(path.read_bytes())
    ]
    return [event.step for event in events for value in event.summary.value if value.tag == "validation/score"]


def test_every_evaluation_is_shown_once(tiny: dict[str, Any], tmp_path: Path) -> None:
    port, folder = free_port(), RunFolder(tmp_path / "run")
    tiny["search"] |= {"trials": 3, "max_concurrent": 1, "stop": {"below_fft": False, "plateau": None}}
    tiny["train"] |= {"steps": 400}  # time to be killed in
    tiny["run"]["dir"] = str(folder.root)
    tiny["tracking"] = {"wandb": {"project": "masks"}, "mlflow": {"uri": f"http://127.0.0.1:{port}"}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    with mlflow_server(tmp_path / "server", port):
        process = start(tmp_path, "--config", "tiny.yaml", WANDB_MODE="offline")
        while_true(lambda: not in_the_middle(folder.root))
        kill(process)
        process = start(tmp_path, "--resume", str(folder.root), WANDB_MODE="offline")
        assert process.stdout is not None
        said = ""
        while "2/4 search" not in said:
            line = process.stdout.readline()
            assert line, said
            said += line
    # The server is gone; the search goes on to its end.
    said += process.communicate(timeout=TIMEOUT_S)[0]
    assert process.returncode == 0, said
    assert said.count("MLflow fails: ") == 1, said
    assert said.count("something is missing there") == 1
    assert f"--resume {folder.root} sends it" in said
    assert "Weights & Biases fail" not in said

    with mlflow_server(tmp_path / "server", port) as address:
        again = run(tmp_path, "--resume", str(folder.root), WANDB_MODE="offline")
        assert again.returncode == 0, again.stdout + again.stderr
        runs = mlflow_runs(address)
        sent = {name: mlflow_steps(address, each) for name, each in runs.items()}
    outs = {"fft": folder.fft, "continued_fft": folder.continued, **{out.name: out for out in folder.trials.iterdir()}}
    offline = wandb_records(folder)
    assert set(runs) == set(offline) == {*outs, "verdict"}
    assert {each.info.status for each in runs.values()} == {"FINISHED"}
    assert {path.name for path in folder.tensorboard.iterdir()} == set(outs)
    for name, out in outs.items():
        steps = [each.step for each in Outcome.load(out / "outcome.json").history]
        assert sent[name] == steps, name
        assert wandb_steps(offline[name]) == steps, name
        assert tensorboard_steps(folder, name) == steps, name
        assert wandb_summary(offline[name])["final/score"] == runs[name].data.metrics["final/score"]
    assert runs["verdict"].data.metrics["test/n"] == wandb_summary(offline["verdict"])["test/n"] == 50
