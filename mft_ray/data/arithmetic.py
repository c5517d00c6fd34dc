"""A task that needs no download: addition and subtraction, and the character-level tokenizer for it."""

from __future__ import annotations

import math
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mft_ray.data.examples import Example
from mft_ray.errors import UserError

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
CHARACTERS = "0123456789+-="
_NAMES = {"+": "additions", "-": "subtractions"}


def available(digits: int, operations: str = "+-") -> int:
    """How many different prompts there are; ``a+b`` and ``b+a`` count as one.

    Args:
        digits: decimal digits of each operand (one digit includes 0).
        operations: ``+``, ``-`` or both.
    """
    return len(_indices(digits, operations))


def generate(
    digits: int, n_train: int, n_validation: int, n_test: int, seed: int, operations: str = "+-"
) -> dict[str, list[Example]]:
    """Draw disjoint splits of prompts such as ``12+34=`` with answers such as ``46``.

    Prompts are drawn uniformly and without repetition. Of ``a+b`` and ``b+a`` only one, in a random
    order, is ever used: a split never holds the twin of another split's prompt, and the examples of a
    split are independent. The test split depends on `n_test` and `seed` alone, validation on these and
    `n_validation`, so more training examples never change what a model is judged on.

    Args:
        digits: decimal digits of each operand (one digit includes 0); differences may be negative.
        n_train: examples of the train split.
        n_validation: examples of the validation split.
        n_test: examples of the test split.
        seed: what is drawn.
        operations: ``+``, ``-`` or both.

    Returns:
        ``train``, ``validation`` and ``test``.

    Raises:
        UserError: more examples are asked for than there are prompts.
    """
    wanted, indices = n_train + n_validation + n_test, _indices(digits, operations)
    if wanted > len(indices):
        kinds = " and ".join(name for sign, name in _NAMES.items() if sign in operations)
        raise UserError(
            f"The arithmetic task was asked for {wanted:,} examples (train {n_train:,}, validation "
            f"{n_validation:,}, test {n_test:,}), but {kinds} of {digits}-digit numbers "
            f"give only {len(indices):,} different prompts. Lower data.n_train, data.n_validation or data.n_test, "
            "or raise data.digits."
        )
    rng = random.Random(seed)
    drawn: dict[int, Example] = {}
    while len(drawn) < wanted:
        index = indices[rng.randrange(len(indices))]
        if index not in drawn:
            drawn[index] = _example(index, digits, swap=rng.random() < 0.5)
    examples = list(drawn.values())
    held_out = n_test + n_validation
    return {
        "train": examples[held_out:],
        "validation": examples[n_test:held_out],
        "test": examples[:n_test],
    }


def tokenizer() -> PreTrainedTokenizerFast:
    """A character-level tokenizer for the task: 13 characters, padding, end of sequence and unknown."""
    vocabulary = {token: index for index, token in enumerate((PAD, EOS, UNKNOWN, *CHARACTERS))}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=characters,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        clean_up_tokenization_spaces=False,
    )


def _indices(digits: int, operations: str) -> range:
    """Places among all subtractions followed by all unordered additions."""
    operands = len(_operands(digits))
    subtractions, additions = operands**2, operands * (operands + 1) // 2
    return range(0 if "-" in operations else subtractions, subtractions + (additions if "+" in operations else 0))


def _operands(digits: int) -> range:
    return range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def _example(index: int, digits: int, swap: bool) -> Example:
    """The example at `index` of all subtractions followed by all unordered additions."""
    operands = _operands(digits)
    subtractions = len(operands) ** 2
    if index < subtractions:
        row, column = divmod(index, len(operands))
        left, right = operands[row], operands[column]
        prompt, result = f"{left}-{right}=", left - right
    else:
        # Row r of the triangle column <= row starts at r(r + 1)/2.
        offset = index - subtractions
        row = (math.isqrt(8 * offset + 1) - 1) // 2
        left, right = operands[row], operands[offset - row * (row + 1) // 2]
        if swap:
            left, right = right, left
        prompt, result = f"{left}+{right}=", left + right
    return Example(
        id=prompt,
        messages=({"role": "user", "content": prompt}, {"role": "assistant", "content": str(result)}),
        separator="",
    )
