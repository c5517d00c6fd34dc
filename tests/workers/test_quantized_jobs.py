"""Weights outside the selection in 8 or 4 bits, on real workers: what is learned, and of what model each score is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import on_workers
import pytest
import ray.cloudpickle
import torch
from ground import EVALUATION, UPPER_LAYER, Ground, Jobs, comparable, run_group, scaling
from job_fixtures import EIGHT_BITS, LIGHT, SMALL

from mft_ray.config import EvaluationConfig, LoraConfig
from mft_ray.evaluation.example_scores import ExampleScores
from mft_ray.masking import MaskSettings, fingerprint, load_mask, select
from mft_ray.models.export import load_masked
from mft_ray.models.loading import load_model
from mft_ray.models.quantized import QuantizedModel
from mft_ray.training.job import Outcome, ScoreJob, TrainJob

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not EIGHT_BITS, reason="bitsandbytes is not installed: make .venv/more"),
]
LOWER_LAYER = MaskSettings(ratio=0.3, layers="0")
REFERENCE = "reference.json"


def score(job: ScoreJob, into: str, device: torch.device) -> None:
    """Score on a worker, and keep what came of it."""
    from mft_ray.training.cache import WorkerCache
    from mft_ray.training.scoring import score

    values = score(job, WorkerCache(device), lambda _: None).values
    if torch.distributed.get_rank() == 0:
        Path(into).write_text(json.dumps(values))


def one_after_another(jobs: list[TrainJob], device: torch.device) -> None:
    """Do jobs in one process, which keeps its model."""
    from mft_ray.training.cache import WorkerCache
    from mft_ray.training.loop import train

    cache = WorkerCache(device)
    for job in jobs:
        train(job, cache)


@pytest.fixture(scope="module")
def unpacked(ground: Ground) -> str:
    """The FFT model with the weights of its lower layer as 4 bits have them."""
    made = QuantizedModel(ground.backbone, "float32", None, "nf4", torch.device("cpu"))
    held = made.on(lambda model: {weight.name for weight in select(model, "1")})
    model = load_model(ground.backbone)
    with torch.no_grad():
        for weight in select(model, "0"):
            model.get_parameter(weight.name).copy_(held.get_submodule(weight.module).weight)  # type: ignore[arg-type]
    model.save_pretrained(ground.root / "unpacked")
    return str(ground.root / "unpacked")


@pytest.fixture(scope="module")
def done(ground: Ground, mft_job: Callable[..., TrainJob], unpacked: str) -> Jobs:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this folder
    jobs: Jobs = {}
    reference = str(ground.root / REFERENCE)
    whole = ScoreJob(ground.backbone, ground.data, "validation", EVALUATION.metric, EVALUATION, scaling(), 64)

    def add(name: str, held: Any, workers: int = 1, zero: int = 0, **more: Any) -> TrainJob:
        train = more.pop("train", {})
        job = mft_job(f"q-{name}", scaling(workers, zero, **more.pop("scaling", {})), UPPER_LAYER, **train)
        jobs[name] = replace(job, unselected_dtype=held, reference_scores=reference, **more)
        return jobs[name]

    plain = on_workers.train_job
    lora: Any = {"method": "lora", "mask": None, "lora": LoraConfig(rank=2, layers="1")}
    as_unpacked: Any = {"model": unpacked, "backbone": fingerprint(load_model(unpacked))}
    generated = EvaluationConfig(metric="generated_match", max_new_tokens=4)
    run_group(
        1,
        [
            partial(score, whole, reference),
            partial(plain, add("nf4", "nf4")),
            partial(plain, add("unpacked", None, **as_unpacked)),
            partial(plain, add("each-time", "nf4", scaling={"prefix_cache_gb": 0})),
            partial(plain, add("checkpointing", "nf4", scaling={"gradient_checkpointing": True})),
            partial(plain, add("bf16", "int8", dtype="bfloat16", scaling={"compute": "bfloat16"})),
            partial(plain, add("light", "nf4", train=LIGHT)),
            partial(plain, add("lora", "int8", **lora)),
            partial(plain, add("generated", "int8", evaluation=generated)),
            partial(plain, add("micro", "nf4", train={"micro_batch_tokens": SMALL})),
            partial(plain, add("before", "nf4", mask=LOWER_LAYER)),
            partial(plain, add("whole-each-time", None, scaling={"prefix_cache_gb": 0})),
            partial(
                one_after_another,
                [
                    add("first", "nf4"),
                    add("other", "nf4", mask=LOWER_LAYER),
                    add("all", "nf4", mask=replace(UPPER_LAYER, layers="all")),
                    add("again", "nf4"),
                    add("whole", None),  # what frozen layers in 4 bits made of examples is nothing to it
                ],
            ),
        ],
        ground.root,
    )
    interrupted, left = on_workers.train_interrupted, on_workers.train_left
    run_group(
        2,
        [
            partial(plain, add("w2", "nf4", 2)),
            partial(interrupted, add("resumed-w2", "nf4", 2), 15),
            partial(left, add("left-w2", "nf4", 2), 8),
            partial(plain, add("z1w2", "nf4", 2, 1)),
            partial(plain, add("z2w2", "nf4", 2, 2)),
            partial(plain, add("offload-z2w2", "nf4", 2, 2, scaling={"offload": "cpu"})),
        ],
        ground.root,
    )
    return jobs


def outcome(job: TrainJob) -> Outcome:
    return Outcome.load(Path(job.out) / "outcome.json")


def masks(job: TrainJob) -> dict[str, torch.Tensor]:
    return load_mask(Path(job.out) / "mask.safetensors").masks


def curve(job: TrainJob) -> list[float]:
    return [each.score for each in outcome(job).history]


def assert_same_masks(left: TrainJob, right: TrainJob) -> None:
    mine, theirs = masks(left), masks(right)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_it_learns_as_on_weights_that_are_what_the_codes_stand_for(done: Jobs) -> None:
    assert curve(done["nf4"]) == pytest.approx(curve(done["unpacked"]), abs=1e-6)
    losses = [[each.loss for each in outcome(done[name]).history[1:]] for name in ("nf4", "unpacked")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    assert_same_masks(done["nf4"], done["unpacked"])


@pytest.mark.parametrize("name", ["w2", "z1w2", "z2w2", "offload-z2w2", "micro", "each-time", "checkpointing"])
def test_what_is_learned_does_not_depend_on_how_it_was_computed(done: Jobs, name: str) -> None:
    assert curve(done[name]) == pytest.approx(curve(done["nf4"]), abs=1e-4)
    assert outcome(done[name]).score == pytest.approx(outcome(done["nf4"]).score, abs=1e-4)


@pytest.mark.parametrize("name", ["resumed-w2", "left-w2"])
def test_a_run_that_goes_on_is_the_run_itself(done: Jobs, name: str) -> None:
    assert [row["score"] for row in comparable(outcome(done[name]))] == [
        row["score"] for row in comparable(outcome(done["w2"]))
    ]
    assert_same_masks(done[name], done["w2"])
    assert outcome(done[name]).score == outcome(done["w2"]).score


@pytest.mark.parametrize("name", ["nf4", "w2", "bf16", "light", "lora", "resumed-w2"])
def test_the_last_score_is_of_the_checkpoint_and_those_before_are_not(
    done: Jobs, name: str, ground: Ground, ray_cluster: None
) -> None:
    found = outcome(done[name])
    best = found.best_evaluation
    assert best is not None
    assert found.score == found.whole == found.watched
    assert found.score != best.score
    assert found.score == pytest.approx(best.score, abs=0.3)
    kept = ExampleScores.load(Path(done[name].out) / "validation_scores.safetensors")
    assert float(kept.values.mean()) == pytest.approx(found.score, abs=1e-5)
    assert not (Path(done[name].out) / "checkpoints").exists()


def test_a_mask_belongs_to_the_checkpoint(done: Jobs, ground: Ground) -> None:
    kept = load_mask(Path(done["nf4"].out) / "mask.safetensors")
    assert kept.backbone == ground.fingerprint
    load_masked(ground.backbone, kept)


def test_on_the_way_it_is_held_against_fft_in_as_many_bits(done: Jobs, ground: Ground) -> None:
    whole = json.loads((ground.root / REFERENCE).read_text())
    first = outcome(done["nf4"]).history[0]
    # At step 0 of an annealed mask nothing is removed, or what lowest scores are: FFT in 4 bits is not FFT.
    against = first.score - first.delta
    assert against != pytest.approx(sum(whole) / len(whole), abs=1e-6)
    unpacked = outcome(done["unpacked"]).history[0]
    assert first.score == pytest.approx(unpacked.score, abs=1e-6)
    assert "linear weights outside the selection" in first.note
    assert "are held in nf4" in first.note
    assert "before anything is learned" in first.note
    # Where nothing lies outside, it is held against FFT as it is, and that is said.
    all_of_it = outcome(done["all"]).history[0]
    assert all_of_it.score - all_of_it.delta == pytest.approx(sum(whole) / len(whole), abs=1e-6)
    assert "no linear weight lies outside the selection" in all_of_it.note
    best = outcome(done["all"]).best_evaluation
    assert best is not None
    assert outcome(done["all"]).score == pytest.approx(best.score, abs=1e-6)


def test_another_metric_decides_on_the_checkpoint_too(done: Jobs) -> None:
    found = outcome(done["generated"])
    best = found.best_evaluation
    assert best is not None
    assert found.whole == pytest.approx(best.score, abs=0.3)  # log-probabilities
    assert found.whole != best.score
    assert found.score is not None
    assert 0 <= found.score <= 1


def test_a_process_that_keeps_its_model_learns_the_same(done: Jobs) -> None:
    for name, alone in (("first", "nf4"), ("again", "nf4"), ("other", "before")):
        assert curve(done[name]) == curve(done[alone]), name
        assert outcome(done[name]).score == outcome(done[alone]).score
        assert_same_masks(done[name], done[alone])
    assert curve(done["whole"]) == pytest.approx(curve(done["whole-each-time"]), abs=1e-6)
    assert curve(done["whole"])[0] != pytest.approx(curve(done["again"])[0], abs=1e-5)


def test_the_checkpoint_is_left_as_it_was(done: Jobs, ground: Ground) -> None:
    assert fingerprint(load_model(ground.backbone)) == ground.fingerprint
