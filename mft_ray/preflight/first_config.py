"""A first configuration for a model and data, after a look at both: what `mft-ray init` writes."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import jinja2
from transformers import PreTrainedModel

from mft_ray.config import parse_config
from mft_ray.config.parsing.yaml_text import read_yaml, write_yaml
from mft_ray.data.rows.formats import WHOLE, find_columns
from mft_ray.data.rows.reading import locate, read
from mft_ray.data.store import SPLITS, open_split
from mft_ray.errors import UserError
from mft_ray.masking import depth
from mft_ray.models.loading import check_path, load_skeleton, load_tokenizer
from mft_ray.models.positions import positions
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.prepare import prepare_data, tokenizer_of, with_absolute_paths
from mft_ray.utils.formatting import size
from mft_ray.utils.json_types import JsonObject
from mft_ray.workers.machine import Machine, this_machine

_TEMPLATE = Path(__file__).with_name("first_config.yaml.j2")
_COMMENTS = {
    "n_validation": "choose the best trial",
    "n_test": "scored once, for the verdict",
    "max_length": "tokens; what is longer is left out, and counted",
}
_ROWS = 2_000  # whose lengths are measured
_FEWEST_ROWS = 20
_LONGEST = 32_768  # tokens, where the model does not say
_SHORT_ANSWER = 12  # tokens; a longer answer is rarely met exactly
_BYTES_OF_FFT = 18  # a weight: itself in bf16 and fp32, its gradient, and AdamW's two moments
_PART_OF_CARD = 0.8  # of a GPU's memory; the rest is for activations


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows that were looked at.

    Attributes:
        examples: tokens of each prompt with its answer, ascending.
        answers: tokens of each answer, ascending.
    """

    examples: Sequence[int]
    answers: Sequence[int]

    def example(self, part: float) -> int:
        """Return the length that a part of all examples does not exceed."""
        return self.examples[min(len(self.examples) - 1, int(part * len(self.examples)))]

    @property
    def short(self) -> bool:
        """Whether most answers are short enough to be met exactly."""
        return self.answers[len(self.answers) // 2] <= _SHORT_ANSWER


def first_config(
    model: str,
    train: str,
    test: str | None = None,
    *,
    prompt_column: str | None = None,
    answer_column: str | None = None,
    fine_tuned: bool = False,
) -> str:
    """Look at a model and at data and return a search's configuration for them, commented.

    Args:
        model: folder or hub id.
        train: file, folder or hub id of the training data.
        test: file, folder or hub id of the test data; None holds test examples out of the training data.
        prompt_column: column of the prompt, for rows of no known form.
        answer_column: column of the answer.
        fine_tuned: whether the model is fine-tuned on this task already.

    Returns:
        Text of a YAML file.

    Raises:
        UserError: model or data cannot be used, with what to do.
    """
    skeleton = load_skeleton(check_path(model, "--model"))
    rows = _count(train)
    columns = _columns(train, prompt_column, answer_column)
    template = {} if load_tokenizer(model).chat_template else {"chat_template": "tulu"}
    lengths = _lengths(model, skeleton, {"train": train, **columns, **template}, rows)
    limit = positions(skeleton.config) or _LONGEST
    data = {
        "task": "chat",
        "train": train,
        **({"test": test} if test is not None else {}),
        **columns,
        **template,
        "n_validation": max(2, min(200, rows // 10)),
        "n_test": 1000 if test is not None else max(2, min(1000, rows // 5)),
        "max_length": min(limit, 64 * math.ceil(lengths.example(0.995) / 64)),
    }
    if test is not None:
        data["n_test"] = max(2, min(1000, _count(test, "--test")))
    text = _written(model, skeleton, data, rows, lengths, fine_tuned, this_machine())
    parse_config(read_yaml(text), "the configuration that was written")
    return text


def _count(path: str, option: str = "--train") -> int:
    found = sum(1 for _ in read(locate(path, option, option.strip("-")), option))
    if found < _FEWEST_ROWS:
        raise UserError(
            f"{option} {path} has {found} rows. A search needs some to learn from, some to choose by and some to test: "
            f"give {_FEWEST_ROWS} or more, better thousands."
        )
    return found


def _columns(train: str, prompt: str | None, answer: str | None) -> JsonObject:
    if (prompt is None) != (answer is None):
        raise UserError("Give both --prompt-column and --answer-column, or neither.")
    if prompt is not None:
        return {"prompt_column": prompt, "answer_column": answer}
    first = islice(read(locate(train, "--train", "train"), "--train", first=100), 100)
    seen = dict.fromkeys(column for row in first if isinstance(row.row, dict) for column in row.row)
    advice = "Name two of them with --prompt-column and --answer-column."
    columns = find_columns(list(seen), f"--train {train}", advice)
    if columns == ("messages",):
        return {}
    if columns in WHOLE:
        return {"messages_column": columns[0]}
    if len(columns) != 2:
        raise UserError(
            f"--train {train} holds trees of messages ({', '.join(columns)}), which only the domain instruction reads: "
            "write a configuration with data.task: instruction and this file in data.mixture."
        )
    return {"prompt_column": columns[0], "answer_column": columns[1]}


def _lengths(model: str, skeleton: PreTrainedModel, data: JsonObject, rows: int) -> Lengths:
    """Encode some rows as a run would."""
    few = {"task": "chat", "n_train": min(_ROWS, rows // 2), "n_validation": 2, "n_test": 2}
    limit = positions(skeleton.config) or _LONGEST
    config = parse_config({"model": {"path": model}, "data": {**data, **few, "max_length": limit}}, "the data")
    config = with_absolute_paths(config)
    with tempfile.TemporaryDirectory(prefix="mft-ray-init-") as scratch:
        folder = RunFolder(Path(scratch))
        prepare_data(config, tokenizer_of(config, model), skeleton, folder)
        found = [(len(row["input_ids"]), row["labels"]) for split in SPLITS for row in open_split(folder.data, split)]
    return Lengths(sorted(length for length, _ in found), sorted(sum(label >= 0 for label in its) for _, its in found))


def _scaling(weights: int, machine: Machine) -> tuple[JsonObject, str]:
    """Return what a trial asks for on this machine, and why."""
    if not machine.cards or machine.cuda is None:
        cpus = max(1, machine.cpus // 2)
        why = f"No GPU here: two trials at a time, with {cpus} of {machine.cpus} processors"
        return {"cpus_per_worker": cpus, "compute": "auto"}, why
    cards, room = len(machine.cards), min(card.memory for card in machine.cards) * _PART_OF_CARD
    needed = weights * _BYTES_OF_FFT
    workers = min(cards, max(1, math.ceil(needed / room)))
    more = "" if needed <= room * workers else ", which is more than these GPUs have: see docs/clusters"
    return (
        {"workers": workers, "gpus_per_worker": 1, "zero_stage": 3 if workers > 1 else 0, "compute": "auto"},
        f"FFT holds about {size(needed)} beside activations{more}; a mask much less. {cards} GPU(s) here",
    )


def _written(
    model: str, skeleton: PreTrainedModel, data: JsonObject, rows: int, lengths: Lengths, tuned: bool, machine: Machine
) -> str:
    weights, layers = sum(parameter.numel() for parameter in skeleton.parameters()), depth(skeleton)
    scaling, why = _scaling(weights, machine)
    quarter = max(1, math.ceil(layers / 4))
    jinja = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    jinja.filters["yaml"] = _in_one_line
    return jinja.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        model=model,
        kind=skeleton.config.model_type,
        weights=weights,
        layers=layers,
        name=re.sub(r"[^\w.-]", "-", Path(model).name, flags=re.ASCII)[:60].strip("-.") or "search",
        dtype="bfloat16" if "gpus_per_worker" in scaling else "float32",
        tuned=tuned,
        trained=max(1, rows - data["n_validation"] - (0 if "test" in data else data["n_test"])),
        rows=rows,
        looked_at=len(lengths.examples),
        median=lengths.example(0.5),
        most=lengths.example(0.95),
        longest=lengths.examples[-1],
        data=data,
        comments=_COMMENTS,
        metric="exact_match" if lengths.short else "answer_logprob",
        scaling=scaling,
        why=why,
        groups=[f"{first}-{min(first + quarter, layers) - 1}" for first in range(0, layers, quarter)],
    )


def _in_one_line(value: object) -> str:
    """Return a value as YAML has it in one line, text in quotes where it needs them."""
    return write_yaml({"value": value}).removeprefix("value: ").strip()
