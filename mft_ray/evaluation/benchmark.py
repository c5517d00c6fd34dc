"""Run benchmark tasks on a model, and on masks and adapters over it, and keep every prompt, text and score."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from mft_ray.config import EvaluationConfig
from mft_ray.data.examples import Message
from mft_ray.data.text.chat import Chat, Refused, without_system
from mft_ray.errors import UserError
from mft_ray.evaluation.loaded_model import Backbone, Judged
from mft_ray.evaluation.statistics import standard_error
from mft_ray.evaluation.tasks import ExampleScores, Task, TaskOptions, load_task
from mft_ray.utils.files import write_json, write_text
from mft_ray.utils.formatting import duration
from mft_ray.utils.json_types import JsonObject

logger = logging.getLogger(__name__)

RESULTS = "results.json"
_TELL_S = 10.0


def load_tasks(
    names: Sequence[str], evaluation: EvaluationConfig, tokenizer: Tokenizer, shots: int | None = None
) -> list[Task]:
    """Return tasks, their prompts ready.

    Args:
        names: names of the tasks.
        evaluation: what it says of tasks is used.
        tokenizer: whose chat template prompts are made by, if wanted.
        shots: examples before each prompt; None takes each task's own number.

    Raises:
        UserError: there is no such task, its data cannot be used, or it runs code that was not allowed.
    """

    if evaluation.chat and not tokenizer.chat_template:
        raise UserError("Prompts are to be made by the model's chat template, and its tokenizer has none.")
    chat = chat_renderer(tokenizer) if evaluation.chat else None
    limit, allowed = evaluation.task_limit, evaluation.allow_code_execution
    tasks = [
        load_task(name, TaskOptions(evaluation.task_data.get(name), limit, shots, chat, allowed)) for name in names
    ]
    for task in tasks:
        if len(task.prompts) < 2:
            raise UserError(
                f"Task {task.name} has {len(task.prompts)} example(s) here; an error of its score needs at least two."
            )
        task.rendered = evaluation.chat
        task.max_new_tokens = evaluation.task_max_new_tokens or task.max_new_tokens
    return tasks


def chat_renderer(tokenizer: Tokenizer) -> Callable[..., str]:
    """Return what makes a prompt of a conversation, by a tokenizer's chat template.

    A system message that the template does not take is put before the user's words.
    """
    template = Chat(tokenizer)

    def render(turns: list[Message], add_generation_prompt: bool = True) -> str:
        try:
            asked = turns if template.takes_system is None else without_system(turns, fold=True)
            return template.render(asked, prompted=add_generation_prompt)
        except Refused as refused:
            roles = ", ".join(turn["role"] for turn in turns)
            raise UserError(f"The model's chat template does not take a prompt (roles {roles}): {refused}.") from None

    return render


def benchmark(
    backbone: Backbone, judged: Sequence[Judged], tasks: Sequence[Task], out: Path, batch_size: int
) -> Iterator[str]:
    """Evaluate models on tasks, or go on where that was interrupted.

    What ``results.json`` holds in the end: by task and name, each metric with its standard error.

    Args:
        backbone: in memory.
        judged: what to evaluate.
        tasks: by what.
        out: folder for ``TASK/NAME.jsonl`` (prompts, texts, scores) and ``results.json``.
        batch_size: prompts per forward.

    Yields:
        Lines of progress.

    Raises:
        UserError: the folder holds results of something else.
    """
    results: JsonObject = {}
    for task in tasks:
        for one in judged:
            file, about = texts_file(out, task.name, one.name), _about(backbone, one, task)
            begun = _begun(file)
            kept = file if file.exists() else begun
            elsewhere = [_begun(texts_file(folder, task.name, one.name)) for folder in _shares(out)]
            every = range(len(task.prompts))
            done = yield from _texts(backbone, one, task, about, kept, elsewhere, every, batch_size)
            texts = [done[index] for index in every]
            scores = task.score([row["text"] for row in texts])
            scored = [{**row, "scores": score} for row, score in zip(texts, scores, strict=True)]
            file.parent.mkdir(parents=True, exist_ok=True)
            _write_lines(file, [about, *scored])
            begun.unlink(missing_ok=True)
            summary = task.summarise(scores)
            errors = {metric: _error(scores, metric) for metric in summary}
            results.setdefault(task.name, {})[one.name] = {
                "metric": task.metric,
                "n": len(texts),
                "score": summary[task.metric],
                "metrics": {metric: {"score": summary[metric], "standard_error": errors[metric]} for metric in summary},
                "unfinished": sum(not row["finished"] for row in texts),
            }
            write_json(out / RESULTS, results)
            yield f"{task.name}, {one.name}: {task.metric} {summary[task.metric]:.4f} ± {errors[task.metric]:.4f}"
    for folder in _shares(out):
        shutil.rmtree(folder)


def answer_share(
    backbone: Backbone, one: Judged, tasks: Sequence[Task], out: Path, batch_size: int, share: int, shares: int
) -> Iterator[str]:
    """Generate a share of a model's texts, which `benchmark` then finds; as many processes have one each.

    Args:
        backbone: in memory.
        one: what to evaluate.
        tasks: by what.
        out: same as in `benchmark`.
        batch_size: prompts per forward.
        share: number of the share, from 0.
        shares: how many there are. Where there were others before, what these have left is used.

    Yields:
        Lines of progress.

    Raises:
        UserError: the folder holds texts of something else.
    """
    for task in tasks:
        file, about = texts_file(out, task.name, one.name), _about(backbone, one, task)
        folders = (share_folder(out, share), *_shares(out))
        mine, *others = (_begun(texts_file(folder, task.name, one.name)) for folder in folders)
        elsewhere = [file, _begun(file), *others]
        wanted = range(share, len(task.prompts), shares)
        yield from _texts(backbone, one, task, about, mine, elsewhere, wanted, batch_size)


def share_folder(out: Path, share: int) -> Path:
    """Return where `answer_share` keeps its texts, until `benchmark` has all of them.

    Args:
        out: same as in `benchmark`.
        share: number of the share.
    """
    return out / f"~share-{share}"  # as no task is called


def _shares(out: Path) -> list[Path]:
    return sorted(out.glob("~share-*"))


def _begun(file: Path) -> Path:
    return file.with_suffix(".begun.jsonl")


def _about(backbone: Backbone, one: Judged, task: Task) -> JsonObject:
    """Return what tells a model's texts from those of others, and of other settings."""
    about = {"task": task.name, "model": one.fingerprint, "max_new_tokens": task.max_new_tokens}
    return about | backbone.about


def texts_file(out: Path, task: str, name: str) -> Path:
    """Return where `benchmark` keeps prompts, texts and scores: a line about them, then one for each example.

    Args:
        out: same as in `benchmark`.
        task: name of the task.
        name: name of what is evaluated.
    """
    return out / _plain(task) / f"{_plain(name)}.jsonl"


def _texts(
    backbone: Backbone,
    one: Judged,
    task: Task,
    about: Mapping[str, Any],
    file: Path,
    elsewhere: Sequence[Path],
    wanted: Sequence[int],
    batch_size: int,
) -> Generator[str, None, dict[int, JsonObject]]:
    """Generate what is neither in a file nor elsewhere; every text is in the file as soon as its batch is done."""
    mine = dict(_continued(file, about, task.prompts))
    done = {index: row for other in elsewhere for index, row in _continued(other, about, task.prompts)} | mine
    missing = [index for index in wanted if index not in done]
    if missing:
        file.parent.mkdir(parents=True, exist_ok=True)
        _write_lines(file, [about, *mine.values()])  # anew, since its last line may have been cut off
        with one.put_on(), file.open("a", encoding="utf-8") as kept:
            for row, told in _generated(backbone, one, task, missing, len(wanted), batch_size):
                done[row["index"]] = row
                kept.write(json.dumps(row) + "\n")
                kept.flush()
                if told:
                    yield told
    return done


def _generated(
    backbone: Backbone, one: Judged, task: Task, missing: list[int], wanted: int, batch_size: int
) -> Iterator[tuple[JsonObject, str | None]]:
    """Yield each text, and now and then how far it is."""
    began = told = time.monotonic()
    tokens = 0
    prompts = [task.prompts[index] for index in missing]
    made = backbone.generate(
        prompts, until=task.until, max_new_tokens=task.max_new_tokens, batch_size=batch_size, rendered=task.rendered
    )
    for count, (place, text) in enumerate(made, start=1):
        tokens += text.tokens
        now, line = time.monotonic(), None
        if now - told >= _TELL_S or count == len(missing):
            told, seconds = now, now - began
            line = (
                f"{task.name}, {one.name}: {wanted - len(missing) + count:,} of {wanted:,} examples, "
                f"{count / seconds:.2f} examples/s, {tokens / seconds:,.0f} tokens/s, about "
                f"{duration(seconds / count * (len(missing) - count))} left"
            )
        row = {
            "index": missing[place],
            "prompt": prompts[place],
            "text": text.text,
            "tokens": text.tokens,
            "finished": text.finished,
            **({"thought": text.thought} if text.thought else {}),
        }
        yield row, line


def _continued(file: Path, about: Mapping[str, Any], prompts: Sequence[str]) -> Iterator[tuple[int, JsonObject]]:
    if not file.exists():
        return
    # Lines that were cut off, or that a broken disk has left, are generated again.
    first, *found = [_row(line) for line in file.read_bytes().split(b"\n")]
    rows = [row for row in found if row and row.keys() >= set(_KEPT[:-1])]
    if first is None:
        logger.warning("%s is empty or half-written: its texts are generated again", file)
        return
    same = first == about and all(
        row["index"] < len(prompts) and row["prompt"] == prompts[row["index"]] for row in rows
    )  # more examples than before are welcome
    if rows and not same:
        raise UserError(
            f"{file} holds what another model, or other settings, answered. Give another --out, or delete it."
        )
    yield from ((row["index"], {key: row[key] for key in _KEPT if key in row}) for row in rows)


def _row(line: bytes) -> JsonObject | None:
    try:
        read = json.loads(line)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


_KEPT = ("index", "prompt", "text", "tokens", "finished", "thought")


def _write_lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def _error(scores: Sequence[ExampleScores], metric: str) -> float:
    return standard_error(one_each(scores, metric))


def one_each(scores: Sequence[ExampleScores], metric: str) -> list[float]:
    """Return a metric of every example as one number; of one with several, their mean."""
    values = [row[metric] for row in scores]
    return [sum(value) / len(value) if isinstance(value, list) else value for value in values]


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)
