"""The paper's three domains: what it fine-tunes on, which layers it masks, what evaluates them.

The mixtures are the reference code's (arXiv 2503.22764). It trains on copies that allenai/open-instruct's scripts
converted (KKHYA/metamath_converted and so on, which `data.mixture` can name instead); here stand the sources that
those scripts read. Three differences remain: the scripts can leave out answers that name ChatGPT and the like, and
whether they did is not known; prompts that come twice are used once; and validation and test are held out.
"""

from __future__ import annotations

from dataclasses import dataclass

# Columns of a message tree, one message a row, as OpenAssistant publishes them.
TREE = ("message_id", "parent_id", "role", "text")


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    Attributes:
        hub: id of the hub dataset, ``owner/name`` or ``owner/name:configuration``; its train split is meant.
        columns: what its rows are read by: a conversation's column, a prompt's and an answer's, or `TREE`.
        rows: the first so many rows, or conversations of a tree; None takes all.
    """

    hub: str
    columns: tuple[str, ...]
    rows: int | None = 10_000


@dataclass(frozen=True)
class Domain:
    """What the paper does in one domain.

    Attributes:
        parts: the mixture to fine-tune on.
        layers: the layer group that it masks, of 32 layers.
        tasks: benchmark tasks of `mft_ray.evaluation.tasks`.
    """

    parts: tuple[Part, ...]
    layers: str
    tasks: tuple[str, ...]


DOMAINS = {
    "math": Domain(
        parts=(
            Part("meta-math/MetaMathQA", ("query", "response")),
            Part("AI-MO/NuminaMath-TIR", ("messages",)),
            Part("AI-MO/NuminaMath-CoT", ("messages",)),
            Part("allenai/tulu-3-sft-personas-math", ("messages",)),
            Part("allenai/tulu-3-sft-personas-math-grade", ("messages",)),
            Part("allenai/tulu-3-sft-personas-algebra", ("messages",)),
        ),
        layers="4-7",
        tasks=("gsm8k", "math"),
    ),
    "coding": Domain(
        parts=(
            Part("allenai/tulu-3-sft-personas-code", ("messages",)),
            # theblackcat102/evol-codealpaca-v1 without what resembles HumanEval: what open-instruct converts.
            Part("ise-uiuc/Magicoder-Evol-Instruct-110K", ("instruction", "response")),
            Part("m-a-p/CodeFeedback-Filtered-Instruction", ("query", "answer")),
        ),
        layers="20-23",
        tasks=("humaneval", "humaneval_plus"),
    ),
    "instruction": Domain(
        parts=(
            Part("allenai/tulu-3-sft-personas-instruction-following", ("messages",)),
            Part("OpenAssistant/oasst1", TREE, 7_000),
            Part("OpenAssistant/oasst2", TREE, 9_000),
            Part("allenai/coconot:original", ("prompt", "response")),
            Part("CohereForAI/aya_dataset", ("inputs", "targets")),
            Part("nvidia/Daring-Anteater", ("conversations",)),
        ),
        layers="0-3",
        tasks=("ifeval",),
    ),
}
