import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mft_ray.data import arithmetic
from mft_ray.errors import UserError

PROMPT = re.compile(r"(\d+)([+-])(\d+)=")


def question(prompt: str) -> tuple[str, ...]:
    """What is asked: the same for a+b and b+a."""
    match = PROMPT.fullmatch(prompt)
    assert match
    left, sign, right = match.groups()
    return (sign, *sorted((left, right))) if sign == "+" else (sign, left, right)


@settings(max_examples=40, deadline=None)
@given(
    digits=st.integers(1, 3),
    sizes=st.tuples(*[st.integers(1, 45)] * 3),
    seed=st.integers(0, 2**32),
)
def test_splits_are_right_and_disjoint_up_to_commutation(digits: int, sizes: tuple[int, int, int], seed: int) -> None:
    splits = arithmetic.generate(digits, *sizes, seed)
    assert tuple(len(splits[split]) for split in ("train", "validation", "test")) == sizes
    prompts = [example.id for examples in splits.values() for example in examples]
    assert len({question(prompt) for prompt in prompts}) == len(prompts)
    for examples in splits.values():
        for example in examples:
            prompt = example.messages[0]["content"]
            match = PROMPT.fullmatch(prompt)
            assert match
            left, sign, right = match.groups()
            assert {len(left), len(right)} == {digits}
            assert int(example.answer) == (int(left) + int(right) if sign == "+" else int(left) - int(right))


@pytest.mark.parametrize("digits", [1, 2])
def test_every_prompt_can_be_asked_for(digits: int) -> None:
    total = arithmetic.available(digits)
    splits = arithmetic.generate(digits, total - 20, 10, 10, seed=0)
    asked = {question(example.id) for examples in splits.values() for example in examples}
    numbers = [str(n) for n in range(0 if digits == 1 else 10, 10**digits)]
    everything = {question(f"{a}{sign}{b}=") for a in numbers for b in numbers for sign in "+-"}
    assert asked == everything


def test_a_seed_repeats_and_more_training_data_leaves_what_is_judged_on_alone() -> None:
    small, again, other = (arithmetic.generate(2, 100, 50, 200, seed) for seed in (3, 3, 4))
    large = arithmetic.generate(2, 1000, 50, 200, seed=3)
    assert small == again != other
    assert large["test"] == small["test"]
    assert large["validation"] == small["validation"]
    assert large["train"][:100] == small["train"]


def test_both_orders_of_an_addition_and_negative_differences_occur() -> None:
    examples = arithmetic.generate(2, 1000, 10, 10, seed=0)["train"]
    sums = [PROMPT.fullmatch(example.id) for example in examples if "+" in example.id]
    ascending = sum(int(match[1]) < int(match[3]) for match in sums if match)
    assert 0.3 < ascending / len(sums) < 0.7
    assert any(example.answer.startswith("-") for example in examples)


def test_asking_for_more_than_there_is_says_how_many_there_are() -> None:
    with pytest.raises(UserError, match=r"asked for 1,200 .* only 155 .*data\.digits"):
        arithmetic.generate(1, 1000, 100, 100, seed=0)


def test_tokenizer_is_one_token_a_character_and_survives_saving(tmp_path: Path) -> None:
    tokenizer = arithmetic.tokenizer()
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for each in (tokenizer, loaded):
        text = "12+34=-46"
        tokens = each(text).input_ids
        assert len(tokens) == len(text)
        assert each.decode(tokens) == text
        assert each.decode([*tokens, each.eos_token_id], skip_special_tokens=True) == text
        assert each.chat_template is None
        assert len({each.pad_token_id, each.eos_token_id, each.unk_token_id}) == 3
        assert each("a\n").input_ids == [each.unk_token_id] * 2
    assert loaded.get_vocab() == tokenizer.get_vocab()
