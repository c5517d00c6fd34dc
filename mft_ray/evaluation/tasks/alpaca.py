"""AlpacaEval 2 (arXiv 2404.04475): a judge says of each instruction whose answer is better, ours or GPT-4's."""

from __future__ import annotations

import glob
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import datasets

from mft_ray.errors import UserError
from mft_ray.evaluation.tasks.base import ExampleScores, Task, TaskOptions
from mft_ray.utils.json_types import JsonObject

_REPO = "tatsu-lab/alpaca_eval"
_REFERENCE = "alpaca_eval_gpt4_baseline.json"
_JUDGE = "weighted_alpaca_eval_gpt4_turbo"
_KEYS = ("OPENAI_API_KEY", "OPENAI_API_KEYS", "OPENAI_CLIENT_CONFIG_PATH")


class AlpacaTask(Task):
    """Win rates in percent, by the package alpaca-eval and its GPT-4 judge.

    The length-controlled win rate is the one that is published: the mean of what the package's regression predicts
    for each instruction if both answers were equally long.

    Args:
        name: ours.
        options: what the user said; ``data`` is a file with ``instruction`` and the reference's ``output``.

    Raises:
        UserError: the package, the judge's key or the data is missing; nothing has been generated then.
    """

    metric = "length_controlled_winrate"
    until = ()
    max_new_tokens = 2048

    def __init__(self, name: str, options: TaskOptions) -> None:
        _check_judge(name)
        self.name = name
        self._reference = _reference(name, options)
        _check_regression(name)
        instructions = [row["instruction"] for row in self._reference]
        if options.chat is not None:
            self.prompts = [options.chat([{"role": "user", "content": each}]) for each in instructions]
        else:
            self.prompts = instructions

    def outputs(self, texts: Sequence[str]) -> list[dict[str, str]]:
        """Return a model's answers as alpaca-eval takes them."""
        return [
            {"instruction": row["instruction"], "output": text.strip(), "generator": "mft_ray"}
            for row, text in zip(self._reference, texts, strict=True)
        ]

    def score(self, texts: Sequence[str]) -> list[ExampleScores]:
        """Have each answer judged against the reference's; what the judge has said before, alpaca-eval keeps.

        Raises:
            UserError: the judge did not answer for each.
        """
        import pandas as pd
        from alpaca_eval.annotators import PairwiseAnnotator
        from alpaca_eval.metrics import get_length_controlled_winrate

        judge = PairwiseAnnotator(annotators_config=_JUDGE)
        # What the judge failed on is asked again the next time; alpaca-eval cannot do that without a cache.
        judge.is_store_missing_annotations = judge.df_annotations is None
        said = judge.annotate_head2head(self._reference, self.outputs(texts), is_ordered=True)
        missing = sum(not _usable(row["preference"]) for row in said)
        if missing:
            raise UserError(
                f"The judge of {self.name} said nothing usable about {missing} of {len(said)} answers (its log above "
                "says why). Run the same command again: only those are asked for."
            )
        frame = pd.DataFrame(said)
        get_length_controlled_winrate(frame, save_weights_dir=None)
        return example_scores(frame.to_dict(orient="records"))


def example_scores(annotations: Sequence[JsonObject]) -> list[ExampleScores]:
    """Turn alpaca-eval's annotations into percent; a preference is from 1, the reference's answer, to 2, ours."""
    return [
        {AlpacaTask.metric: 100 * float(row["glm_preference"]), "win_rate": 100 * (float(row["preference"]) - 1)}
        for row in annotations
    ]


def _usable(preference: float | None) -> bool:
    return preference is not None and 1 <= preference <= 2


def _check_judge(name: str) -> None:
    if importlib.util.find_spec("alpaca_eval") is None:
        raise UserError(
            f"The task {name} is judged by the package alpaca-eval, which is not installed: pip install "
            "'mft_ray[alpaca]'."
        )
    if not any(os.environ.get(key) for key in _KEYS):
        raise UserError(
            f"The task {name} is judged by a GPT-4 at OpenAI (some $10 for all 805 instructions). Set OPENAI_API_KEY "
            "to a key for it, or OPENAI_CLIENT_CONFIG_PATH to alpaca-eval's file of clients."
        )


def _reference(name: str, options: TaskOptions) -> list[dict[str, str]]:
    # A path of the user's is no pattern.
    local = glob.escape(str(Path(options.data).expanduser())) if options.data else None
    file = local or f"hf://datasets/{_REPO}/{_REFERENCE}"
    try:
        rows = datasets.load_dataset("json", data_files=file)["train"]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"The instructions of task {name} cannot be loaded ({str(error).splitlines()[0]}). Give a local copy of "
            f"{_REFERENCE} with --data {name}=FILE."
        ) from None
    if missing := {"instruction", "output"}.difference(rows.column_names):
        raise UserError(
            f"The data of task {name} lacks {' and '.join(sorted(missing))}: each row needs an instruction and the "
            f"output of the model to compare with, as in {_REFERENCE}."
        )
    rows = rows if options.limit is None else rows.select(range(min(options.limit, len(rows))))
    return [
        {"instruction": row["instruction"], "output": row["output"], "generator": row.get("generator") or "reference"}
        for row in rows
    ]


def _check_regression(name: str) -> None:
    """See that alpaca-eval will have what it controls length by, before the judge is paid."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        hf_hub_download(_REPO, "df_gamed.csv", repo_type="dataset")
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"The task {name} controls length by df_gamed.csv of the hub's data set {_REPO}, which cannot be had here "
            f"({str(error).splitlines()[0]}). Fetch it once where the hub can be reached: hf download --repo-type "
            f"dataset {_REPO} df_gamed.csv."
        ) from None
