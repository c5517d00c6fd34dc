"""The domains against the paper: its facts stand here once more, so that neither changes unnoticed."""

from __future__ import annotations

from typing import get_args

import pytest

from mft_ray.config import DataConfig
from mft_ray.data.mixture import locate_training
from mft_ray.data.rows.formats import FORMS
from mft_ray.domains import DOMAINS
from mft_ray.evaluation.tasks import TASKS

# Fine-tuning data with the number of rows, layer group of 32 layers, benchmarks.
PAPER = {
    "math": (
        {
            "MetaMathQA": 10_000,
            "NuminaMath-TIR": 10_000,
            "NuminaMath-CoT": 10_000,
            "tulu-3-sft-personas-math": 10_000,
            "tulu-3-sft-personas-math-grade": 10_000,
            "tulu-3-sft-personas-algebra": 10_000,
        },
        "4-7",
        ["gsm8k", "math"],
    ),
    "coding": (
        {
            "tulu-3-sft-personas-code": 10_000,
            "Magicoder-Evol-Instruct-110K": 10_000,  # evol-codealpaca without what resembles HumanEval
            "CodeFeedback-Filtered-Instruction": 10_000,
        },
        "20-23",
        ["humaneval", "humaneval_plus"],
    ),
    "instruction": (
        {
            "tulu-3-sft-personas-instruction-following": 10_000,
            "oasst1": 7_000,
            "oasst2": 9_000,
            "coconot:original": 10_000,
            "aya_dataset": 10_000,
            "Daring-Anteater": 10_000,
        },
        "0-3",
        ["ifeval"],
    ),
}


@pytest.mark.parametrize("name", PAPER)
def test_a_domain_is_the_papers(name: str) -> None:
    rows, layers, tasks = PAPER[name]
    domain = DOMAINS[name]
    assert {part.hub.split("/")[1]: part.rows for part in domain.parts} == rows
    assert (domain.layers, list(domain.tasks)) == (layers, tasks)


def test_the_configuration_knows_each_domain_and_no_other() -> None:
    tasks = get_args(DataConfig.model_fields["task"].annotation)
    assert set(DOMAINS) == set(PAPER) == set(tasks) - {"arithmetic", "gsm8k", "chat"}
    assert DataConfig(task="coding").domain is DOMAINS["coding"]
    assert DataConfig(task="chat").domain is None


@pytest.mark.parametrize("name", PAPER)
def test_what_a_domain_names_is_there(name: str) -> None:
    assert set(DOMAINS[name].tasks) <= set(TASKS)
    assert {part.columns for part in DOMAINS[name].parts} <= set(FORMS)
    located = locate_training(DataConfig(task=name))  # type: ignore[arg-type]
    assert all(not part.source.local and part.source.split == "train" for part in located)
    assert [part.source.path for part in located] == [part.hub.split(":")[0] for part in DOMAINS[name].parts]
    assert [part.rows for part in located] == [part.rows for part in DOMAINS[name].parts]
