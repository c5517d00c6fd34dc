"""All methods on one model, by the same workers: what they leave, what it cost, and that the backbone stays."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from ground import EVALUATION, Ground, file_hashes, scaling
from peft import PeftModel

from mft_ray.config import EvaluationConfig, LoraConfig, ScalingConfig
from mft_ray.errors import UserError
from mft_ray.masking import MaskFile, MaskSettings, fingerprint, keep_mask, load_mask
from mft_ray.models.artifacts import export, load_with
from mft_ray.models.loading import load_model
from mft_ray.models.names import find
from mft_ray.training.job import Outcome, ScoreJob, TrainJob
from mft_ray.workers.group import WorkerGroup, workers

ONE_SHOT = ("random_mask", "l1_mask", "wanda_mask")

pytestmark = pytest.mark.slow

Make = Callable[..., TrainJob]
Done = dict[str, tuple[TrainJob, Outcome]]
RATIO = 0.3
ADAPTER = LoraConfig(rank=4, alpha=8, layers="1")
MASKS = {
    "random_mask": MaskSettings(RATIO, layers="1"),
    "l1_mask": MaskSettings(RATIO, layers="1", init="magnitude"),
    "wanda_mask": MaskSettings(RATIO, layers="1", init="wanda"),
    "movement": MaskSettings(RATIO, layers="1", init="zero", rule="movement", schedule="anneal"),
    "mft": MaskSettings(RATIO, layers="1", init="magnitude", schedule="anneal"),
}
# Watched by one metric, decided by another: the best state is put back for a last evaluation.
GENERATES = EvaluationConfig(metric="exact_match", while_training="answer_logprob")


@pytest.fixture(scope="module", params=[(1, 0), (2, 3)], ids=["one worker", "two workers, ZeRO-3"])
def size(request: pytest.FixtureRequest) -> ScalingConfig:
    return scaling(*request.param)


@pytest.fixture(scope="module")
def group(size: ScalingConfig, ground: Ground, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerGroup]:
    with workers(size, tmp_path_factory.mktemp("group")) as group:
        yield group


@pytest.fixture(scope="module")
def done(group: WorkerGroup, size: ScalingConfig, mft_job: Make, ground: Ground) -> Done:
    found: Done = {}

    def train(method: str, job: TrainJob) -> None:
        changed = dataclasses.replace(job, method=method, evaluation=GENERATES)
        found[method] = (changed, group.train(changed))

    def prepared(method: str, mask: MaskSettings | None, **settings: object) -> TrainJob:
        job = mft_job(f"{method}-{size.workers}", size, MASKS["mft"], **settings)
        return dataclasses.replace(job, mask=mask)

    for method, mask in MASKS.items():
        train(method, prepared(method, mask, **({"steps": 0} if method in ONE_SHOT else {})))
    # From the model before fine-tuning: there is much to gain.
    before = {"model": ground.start, "backbone": fingerprint(load_model(ground.start))}
    for method, dropout in (("lora", 0.0), ("continued_fft", 0.0), ("dropout", 0.5)):
        lr = 1e-2 if method == "lora" else 1e-3
        job = dataclasses.replace(prepared(method, None, lr=lr, clip=1.0, dropout=dropout), **before)
        train(method, dataclasses.replace(job, lora=ADAPTER) if method == "lora" else job)
    return found


def test_all_see_the_same_tokens_but_those_that_learn_nothing(done: Done) -> None:
    tokens = {method: outcome.history[-1].tokens for method, (_, outcome) in done.items()}
    assert {tokens[method] for method in ONE_SHOT} == {0}
    assert len({tokens[method] for method in tokens.keys() - set(ONE_SHOT)}) == 1
    assert tokens["mft"] > 0


def test_each_leaves_one_artifact_and_the_backbone_as_it_was(done: Done, ground: Ground) -> None:
    names = {method: path.name for method, (job, _) in done.items() if (path := find(Path(job.out)))}
    masks = dict.fromkeys(MASKS, "mask.safetensors")
    assert names == {**masks, "lora": "adapter", "continued_fft": "best", "dropout": "best"}
    assert file_hashes(ground.backbone) == ground.files
    for job, _ in done.values():
        assert not list(Path(job.out).rglob("*partial*"))


def test_the_kept_state_scores_what_its_run_said(done: Done, group: WorkerGroup, size: ScalingConfig) -> None:
    for method, (job, outcome) in done.items():
        artifact = find(Path(job.out))
        assert artifact is not None
        model, put_on = (str(artifact), None) if artifact.name == "best" else (job.model, str(artifact))
        score = ScoreJob(model, job.data, "validation", "answer_logprob", EVALUATION, size, 64, artifact=put_on)
        watched = group.score(score).values
        assert outcome.best_evaluation is not None
        assert sum(watched) / len(watched) == pytest.approx(outcome.best_evaluation.score, rel=1e-5), method
        decisive = group.score(dataclasses.replace(score, metric="exact_match")).values
        assert outcome.score == pytest.approx(sum(decisive) / len(decisive)), method


def test_training_helps_and_dropout_trains_otherwise(done: Done) -> None:
    for method in ("lora", "continued_fft", "dropout"):
        scores = [evaluation.score for evaluation in done[method][1].history]
        assert max(scores) > scores[0], method
        assert scores[0] == done["continued_fft"][1].history[0].score  # all begin at the same model
    assert done["dropout"][1].history[1].score != done["continued_fft"][1].history[1].score


def test_one_shot_masks_are_what_their_names_say(done: Done, ground: Ground) -> None:
    masks: dict[str, MaskFile] = {}
    for method in ONE_SHOT:
        job, outcome = done[method]
        assert (outcome.stopped_reason, len(outcome.history), outcome.best) == ("completed", 1, 0)
        masks[method] = load_mask(Path(job.out) / "mask.safetensors")
    model = load_model(ground.backbone)
    for name, mask in masks["l1_mask"].masks.items():
        assert "layers.1." in name
        assert mask.equal(keep_mask(model.get_parameter(name), RATIO))
        others = [masks[method].masks[name] for method in ("random_mask", "wanda_mask")]
        assert all(int(mask.sum()) == int(other.sum()) and not mask.equal(other) for other in others)
    # A random cut agrees with any other by chance alone.
    agree = [(mask == masks["random_mask"].masks[name]).float().mean() for name, mask in masks["l1_mask"].masks.items()]
    assert sum(agree) / len(agree) == pytest.approx(RATIO**2 + (1 - RATIO) ** 2, abs=0.05)


def test_movement_begins_at_the_backbone_and_removes_as_much(done: Done) -> None:
    job, outcome = done["movement"]
    assert (outcome.history[0].ratio, outcome.history[0].score) == (0, done["mft"][1].history[0].score)
    masks = load_mask(Path(job.out) / "mask.safetensors").masks
    removed = {name: (~mask).float().mean() for name, mask in masks.items()}
    assert all(share == pytest.approx(RATIO, abs=0.01) for share in removed.values())
    assert not load_mask(Path(done["l1_mask"][0].out) / "mask.safetensors").masks.keys() - removed.keys()


def test_costs_are_counted_alike(done: Done, size: ScalingConfig, ground: Ground) -> None:
    costs = {method: outcome.cost for method, (_, outcome) in done.items()}
    model = load_model(ground.backbone)
    layer = sum(p.numel() for name, p in model.named_parameters() if "layers.1." in name and "proj" in name)
    for method, cost in costs.items():
        assert cost is not None
        artifact = find(Path(done[method][0].out))
        assert artifact is not None
        files = [artifact] if artifact.is_file() else [path for path in artifact.rglob("*") if path.is_file()]
        assert cost.artifact_bytes == sum(path.stat().st_size for path in files)
        assert cost.tokens == done[method][1].history[-1].tokens
        assert 50e6 < cost.memory < 8e9
        assert cost.seconds > 0
        trained = {
            "lora": None,
            **dict.fromkeys(ONE_SHOT, 0),
            "continued_fft": model.num_parameters(),
            "dropout": model.num_parameters(),
        }
        if (wanted := trained.get(method, layer)) is not None:
            assert cost.trainable == wanted, method
    lora, mft, full = costs["lora"], costs["mft"], costs["continued_fft"]
    assert lora
    assert mft
    assert full
    hidden, wide = model.config.hidden_size, model.config.intermediate_size
    assert lora.trainable == 4 * (4 * 2 * hidden + 3 * (hidden + wide))  # rank x (inputs + outputs)
    # A mask's backward stops below its lowest layer; a cut costs no training, but Wanda's looks at activations.
    assert 0 < mft.flops < full.flops
    costless = [costs[method].flops for method in ("random_mask", "l1_mask")]  # type: ignore[union-attr]
    assert costless == [0, 0]
    assert 0 < costs["wanda_mask"].flops < mft.flops  # type: ignore[union-attr]


def test_an_adapter_is_peft_s_and_knows_its_backbone(done: Done, ground: Ground, tmp_path: Path) -> None:
    folder = find(Path(done["lora"][0].out))
    assert folder is not None
    assert json.loads((folder / "backbone.json").read_text())["fingerprint"] == done["lora"][0].backbone
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        plain = load_model(ground.start)(tokens).logits
        theirs = PeftModel.from_pretrained(load_model(ground.start), str(folder))(tokens).logits
        assert load_with(ground.start, str(folder))(tokens).logits.equal(theirs)
        assert not theirs.allclose(plain)
        export(ground.start, str(folder), tmp_path / "merged")
        torch.testing.assert_close(load_model(tmp_path / "merged")(tokens).logits, theirs, rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="This adapter was learned on another backbone"):
        load_with(ground.backbone, str(folder))
