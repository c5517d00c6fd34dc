"""The driver of worker groups on several hosts, a program: ``groups_on_hosts.py FOLDER``.

First there are two hosts with a place for one worker each. When FOLDER/worse is there, the wire between them has become
worse; when FOLDER/joined is, one with places for two has come, and is to be taken before the others.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import on_workers
import ray.cloudpickle
from ground import EVALUATION, FFT, MASK, MFT

from mft_ray.config import ScalingConfig, parse_config
from mft_ray.masking import fingerprint
from mft_ray.models.loading import load_model
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import make_ready
from mft_ray.training.job import Restart, TrainJob
from mft_ray.workers.connection import connected
from mft_ray.workers.group import WorkerGroup, workers

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
CONFIG = {
    "model": {"architecture": {**LLAMA, "num_attention_heads": 4, "max_position_embeddings": 32}},
    "data": {"task": "arithmetic", "digits": 1, "n_train": 60, "n_validation": 41, "n_test": 40},
}
STAGES = (0, 2, 3)
# Evaluations so far apart that the notice comes in between.
LONG = MFT.model_copy(update={"steps": 300, "eval_every": 100})
PAUSE_S = 0.5  # that a step takes from the first evaluation on, until FOLDER/noticed is there


def scaling(stage: int = 0) -> ScalingConfig:
    return ScalingConfig(workers=2, zero_stage=stage, max_failures=0)  # to leave a node is no failure


def main(home: Path) -> None:
    ray.cloudpickle.register_pickle_by_value(on_workers)
    folder = RunFolder(home / "run")
    start = make_ready(parse_config(CONFIG), folder)
    fft = TrainJob("fft", start, str(folder.data), str(home / "fft"), FFT, EVALUATION, scaling())
    backbone = str(home / "fft" / "best")

    def train(group: WorkerGroup, name: str, stage: int = 0, long: bool = False, pause: float = 0.0) -> list[str]:
        job = replace(
            fft,
            method="mft",
            model=backbone,
            out=str(home / name),
            train=LONG if long else MFT,
            scaling=scaling(stage),
            mask=MASK,
            backbone=fingerprint(load_model(backbone)),
        )
        heard: list[object] = []
        group.train(job, on_workers.NoteHosts(str(home / f"{name}.hosts"), pause, str(home / "noticed")), heard.append)
        return [event.reason for event in heard if isinstance(event, Restart)]

    with connected():
        with workers(scaling(), home / "groups" / "two") as group:
            group.train(fft)
            for stage in STAGES:
                train(group, f"two-z{stage}", stage)
            train(group, "undisturbed", long=True)
            tell_and_wait(home / "two", home / "worse")
            for stage in STAGES:
                train(group, f"worse-z{stage}", stage)
        tell_and_wait(home / "worst", home / "joined")
        with workers(scaling(), home / "groups" / "one") as group:
            for stage in STAGES:
                train(group, f"one-z{stage}", stage)
            restarts = train(group, "left", long=True, pause=PAUSE_S)
    (home / "restarts.json").write_text(json.dumps(restarts))


def tell_and_wait(told: Path, awaited: Path) -> None:
    told.touch()
    while not awaited.exists():
        time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
