"""A made-up run folder whose trainings grow as a test says, and what trackers have made of one."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mft_ray.runs.folder import RunFolder
from mft_ray.runs.records import Baseline, Measured, SplitScore, Verdict
from mft_ray.training.job import Evaluation, Outcome, StopReason
from mft_ray.utils.files import write_json

FFT_SCORE = 0.5


def evaluation(step: int, score: float) -> Evaluation:
    loss = math.nan if step == 0 else 1 / step
    return Evaluation(step, score, 0.01, 100 * step, 2.0 * step, loss, 0.25, True, score - FFT_SCORE, 0.01)


def write_progress(out: Path, *scores: float) -> None:
    """What workers write at an evaluation: scores at steps 0, 10 and so on."""
    out.mkdir(parents=True, exist_ok=True)
    history = [evaluation(10 * index, score) for index, score in enumerate(scores)]
    write_json(
        out / "progress.json",
        {"steps": 30, **asdict(history[-1]), "history": [asdict(each) for each in history]},
    )


def write_outcome(out: Path, *scores: float, reason: StopReason = StopReason.COMPLETED) -> None:
    write_progress(out, *scores)
    history = [evaluation(10 * index, score) for index, score in enumerate(scores)]
    best = max(range(len(scores)), key=scores.__getitem__)
    Outcome(reason, history, best, scores[best]).save(out / "outcome.json")


def begin_trial(folder: RunFolder, trial_id: str, ratio: float = 0.25) -> Path:
    out = folder.trial(trial_id)
    out.mkdir(parents=True)
    write_json(out / "config.json", {"ratio": ratio, "layers": "1-2", "lr": 1e-3})
    return out


def write_baseline(folder: RunFolder, continued: bool = False) -> None:
    write_outcome(folder.fft, 0.1, 0.3, FFT_SCORE)
    score = SplitScore(score=FFT_SCORE, n=40)
    record = Baseline(metric="exact_match", validation=score, model="work/fft/best", stopped="plateau", best_step=20)
    if continued:
        write_outcome(folder.continued, FFT_SCORE, 0.52)
        better = SplitScore(score=0.52, n=40)
        record.continued = Measured(method="fft", validation=better, stopped="completed", best_step=10)
    record.save(folder.baseline)


def write_verdict(folder: RunFolder, trial_id: str) -> None:
    Verdict(
        metric="exact_match",
        n=50,
        fft=0.48,
        mft=0.52,
        delta=0.04,
        ci95=(0.01, 0.07),
        p_value=0.01,
        beats_fft=True,
        trial_id=trial_id,
        sentence="Yes: better.",
    ).save(folder.verdict)


def finished(root: Path) -> RunFolder:
    """A search with a verdict: FFT, continued FFT, one trial that ended well and one that failed."""
    folder = RunFolder(root)
    write_baseline(folder, continued=True)
    write_outcome(begin_trial(folder, "aaaa1111"), 0.4, 0.55, 0.53)
    failed = begin_trial(folder, "bbbb2222", 0.5)
    write_progress(failed, 0.4)
    write_json(failed / "error.json", {"error": "out of memory", "raised": True})
    write_verdict(folder, "aaaa1111")
    folder.best.mkdir()
    (folder.best / "mask.safetensors").write_bytes(b"mask")
    (root / "report.html").write_text("report")
    (root / "config.yaml").write_text("run: {name: tiny}\n")
    return folder


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def mlflow_server(home: Path, port: int) -> Iterator[str]:
    """A real server of MLflow over a SQLite file, which a later one on the same folder goes on with; its address."""
    address, environment = f"http://127.0.0.1:{port}", {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    command += [
        "--backend-store-uri",
        f"sqlite:///{home / 'mlflow.db'}",
        "--artifacts-destination",
        str(home / "files"),
    ]
    with (home / "log").open("a") as log:
        process = subprocess.Popen(
            command, cwd=home, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 240
        while not _answers(f"{address}/health"):
            assert process.poll() is None, (home / "log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def mlflow_runs(address: str, experiment: str = "mft_ray") -> dict[str, Any]:
    """Every run of an experiment by its name: no name has two."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=address)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    names = [run.info.run_name for run in runs]
    assert len(names) == len(set(names)), names
    return dict(zip(names, runs, strict=True))


def mlflow_steps(address: str, run: Any, metric: str = "validation/score") -> list[int]:
    from mlflow import MlflowClient

    history = MlflowClient(tracking_uri=address).get_metric_history(run.info.run_id, metric)
    return [each.step for each in history]


def wandb_records(folder: RunFolder) -> dict[str, list[Any]]:
    """What Weights & Biases' library has kept of each run for `wandb sync`, in order, by the run's name."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: dict[str, list[Any]] = {}
    for path in sorted((folder.work / "wandb").glob("offline-run-*/*.wandb")):
        records = [Record.FromString(content) for content in _of_leveldb(path.read_bytes())]
        [name] = {record.run.display_name for record in records if record.WhichOneof("record_type") == "run"}
        found.setdefault(name, []).extend(records)
    return found


def wandb_steps(records: list[Any]) -> list[int]:
    items = [{item.nested_key[0]: item.value_json for item in record.history.item} for record in records]
    return [int(each["_step"]) for each in items if "validation/score" in each]


def wandb_summary(records: list[Any]) -> dict[str, Any]:
    updates = [update for record in records for update in record.summary.update]
    return {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}


def _of_leveldb(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file in LevelDB's form: pieces with checksum, length and kind, in blocks of 32 KiB."""
    place, record = 7, b""
    while place + 7 <= len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last piece
            yield record
            record = b""
