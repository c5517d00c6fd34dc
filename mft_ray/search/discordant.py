"""Examples on which FFT and the winner differ, with what both say: what a mean difference is made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from mft_ray.config import Config
from mft_ray.data.prepare import TOKENIZER, open_split
from mft_ray.errors import RunFailed
from mft_ray.evaluation.generation import Prompt
from mft_ray.search.benchmark import texts_file
from mft_ray.search.folder import RunFolder
from mft_ray.search.judged import Backbone
from mft_ray.search.scoring import Subject
from mft_ray.training.backbone import load_tokenizer
from mft_ray.training.group import worker_environment, worker_resources
from mft_ray.training.job import write_json

SHOWN = 5  # each way


@dataclass(frozen=True)
class Pair:
    """Two models and their scores on the same examples.

    Attributes:
        fft: the FFT model.
        winner: the other.
        scores: of FFT and of the winner, one per example.
    """

    fft: Subject
    winner: Subject
    scores: tuple[Sequence[float], Sequence[float]]

    def apart(self) -> list[int]:
        """Return the examples of the largest gains, then those of the largest losses, at most `SHOWN` of each."""
        differences = [after - before for before, after in zip(*self.scores, strict=True)]
        order = sorted(range(len(differences)), key=lambda index: -differences[index])
        gains = [index for index in order[:SHOWN] if differences[index] > 0]
        losses = [index for index in order[::-1][:SHOWN] if differences[index] < 0]
        return gains + losses


def keep_test_examples(pair: Pair, config: Config, folder: RunFolder) -> None:
    """Generate what both models say to the test examples on which they differ most, and keep that in the run.

    Raises:
        RunFailed: the process that generates failed.
    """
    indices = pair.apart()
    split = open_split(folder.data, "test")
    rows = [split[index] for index in indices]
    prompts = [row["prompt_ids"] for row in rows]
    resources = worker_resources(config.scaling)
    remote = ray.remote(
        num_cpus=resources["CPU"],
        num_gpus=resources.get("GPU", 0),
        max_retries=config.scaling.max_failures,
        runtime_env={"env_vars": worker_environment()},
    )(_texts)
    try:
        texts = ray.get(remote.remote([pair.fft, pair.winner], prompts, config)) if prompts else [[], []]
    except ray.exceptions.RayError as error:
        raise RunFailed(f"generating for examples failed: {str(error).strip().splitlines()[-1]}") from error
    tokenizer = load_tokenizer(str(folder.data / TOKENIZER))
    examples = [
        _example(pair, index, tokenizer.decode(row["prompt_ids"], skip_special_tokens=True), row["answer"], said)
        for index, row, said in zip(indices, rows, zip(*texts, strict=True), strict=True)
    ]
    _keep(folder, "test", config.evaluation.metric, examples)


def keep_task_examples(pair: Pair, task: str, metric: str, folder: RunFolder) -> None:
    """Keep the same of a benchmark task, whose texts are in the run already."""
    lines = [
        texts_file(folder.tasks / subject.name, task, subject.name).read_text(encoding="utf-8").splitlines()[1:]
        for subject in (pair.fft, pair.winner)
    ]
    examples = []
    for index in pair.apart():
        before, after = (json.loads(texts[index]) for texts in lines)
        examples.append(_example(pair, index, before["prompt"], None, (before["text"], after["text"])))
    _keep(folder, task, metric, examples)


def _example(pair: Pair, index: int, prompt: str, answer: str | None, said: tuple[str, str]) -> dict[str, Any]:
    scores = dict(zip(("fft", "mft"), (values[index] for values in pair.scores), strict=True))
    return {"index": index, "prompt": prompt, "answer": answer, "fft": said[0], "mft": said[1], "scores": scores}


def _keep(folder: RunFolder, on: str, metric: str, examples: list[dict[str, Any]]) -> None:
    kept = json.loads(folder.discordant.read_text())["sets"] if folder.discordant.exists() else []
    kept = [each for each in kept if each["on"] != on]
    write_json(folder.discordant, {"sets": [*kept, {"on": on, "metric": metric, "examples": examples}]})


def _texts(subjects: list[Subject], prompts: Sequence[Prompt], config: Config) -> list[list[str]]:
    return [list(_said(subject, prompts, config)) for subject in subjects]


def _said(subject: Subject, prompts: Sequence[Prompt], config: Config) -> Iterator[str]:
    backbone = Backbone(subject.model, config.model.dtype, subject.before)
    judged = backbone.having(subject.artifact) if subject.artifact else backbone.itself()
    evaluation = config.evaluation
    with judged.put_on():
        made = backbone.generate(
            prompts, max_new_tokens=evaluation.max_new_tokens, batch_size=evaluation.task_batch_size
        )
        texts = dict(made)
    return (texts[index].text for index in range(len(prompts)))
