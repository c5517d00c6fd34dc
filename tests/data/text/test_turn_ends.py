"""What ends an answer, in templates of the kinds that there are: one rule for labels and everything that stops."""

from __future__ import annotations

from typing import Any

import pytest
from test_encoding import conversation, labelled
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mft_ray.data.accounting import SplitCounts
from mft_ray.data.encoding import Row, encode
from mft_ray.data.examples import Example, Message
from mft_ray.data.text.ends import end_tokens
from mft_ray.data.text.template import chat_template
from mft_ray.errors import UserError

TURN_END = (
    "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{% endif -%}"
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<turn>' + m['role'] + '\n' + m['content'] | trim + '<turn_end>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>assistant\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|head|>' + m['role'] + '<|/head|>\n\n' + m['content'] | trim + "
    "'<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LINES = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
# ChatML on a tokenizer that does not have its tokens: what ends a turn is text.
NO_TOKENS = CHATML.replace("<|im_end|>", "[end]").replace("<|im_start|>", "[start]")
SPECIAL = ("<turn_end>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot_id|>", "<|end|>")


def tokenizer_with(template: str | None, special: tuple[str, ...] = SPECIAL, **options: Any) -> PreTrainedTokenizerFast:
    """A character-level tokenizer with special tokens."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "\n", *map(chr, range(32, 127)), *special]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=list(special),
        **options,
    )
    fast.chat_template = template
    return fast


def only(rows: list[Row]) -> Row:
    (row,) = rows
    return row


@pytest.mark.parametrize(
    ("template", "ends", "labels"),
    [
        (TURN_END, "<turn_end>", ["6<turn_end>", "7<turn_end>"]),
        (CHATML, "<|im_end|>", ["6<|im_end|>", "7<|im_end|>"]),
        (LLAMA3, "<|eot_id|>", ["6<|eot_id|>", "7<|eot_id|>"]),
        (PHI3, "<|end|>", ["6<|end|>", "7<|end|>"]),
        (LLAMA2, "<eos>", [" 6 <eos>", " 7 <eos>"]),
        (chat_template("tulu"), "<eos>", ["6<eos>", "7<eos>"]),
        (LINES, "<eos>", ["6\n", "7\n<eos>"]),
        (NO_TOKENS, "<eos>", ["6", "7<eos>"]),
        (None, "<eos>", ["7<eos>"]),
    ],
)
def test_labels_end_with_what_ends_a_turn_and_stops_generation(
    template: str | None, ends: str, labels: list[str]
) -> None:
    tokenizer = tokenizer_with(template)
    row = only(encode([conversation("3+3?", "6", "4+3?", "7")], tokenizer, 999))
    assert labelled(row, tokenizer) == labels
    assert row["labels"][-1] == tokenizer.convert_tokens_to_ids(ends)
    assert row["labels"][-1] in end_tokens(tokenizer)
    assert end_tokens(tokenizer) == {tokenizer.convert_tokens_to_ids(token) for token in (ends, "<eos>")}
    # The prompt is what a model is prompted with.
    if template is not None:
        messages = conversation("3+3?", "6", "4+3?", "7").messages[:-1]
        prompt = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, return_dict=False)
        assert row["prompt_ids"] == prompt


def test_an_answer_that_ends_as_a_turn_does_is_learned_whole() -> None:
    tokenizer = tokenizer_with(CHATML)
    row = only(encode([conversation("?", "say <|im_end|>")], tokenizer, 99))
    assert labelled(row, tokenizer) == ["say <|im_end|><|im_end|>"]


def test_a_template_that_trims_is_learned_as_it_writes() -> None:
    tokenizer = tokenizer_with(TURN_END)
    row = only(encode([conversation("?", " 7\n\n")], tokenizer, 99))
    assert labelled(row, tokenizer) == ["7<turn_end>"]


THINKS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|assistant|>' + m['content'].split('</think>')[-1] | trim + '<|end|>' }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("answer", "learned"),
    [
        ("Lima.", "Lima.<|end|>"),
        ("<think>\nPeru...\n</think>\n\nLima.", "Peru...\n</think>\n\nLima.<|end|>"),
        ("Peru...</think>Lima.", "Peru...</think>Lima.<|end|>"),
    ],
)
def test_an_answer_follows_what_the_template_prompts_with(answer: str, learned: str) -> None:
    tokenizer = tokenizer_with(THINKS)
    row = only(encode([conversation("Capital?", answer)], tokenizer, 99))
    assert tokenizer.decode(row["prompt_ids"]) == "<|user|>Capital?<|assistant|><think>\n"
    assert labelled(row, tokenizer) == [learned]
    assert row["input_ids"][: len(row["prompt_ids"])] == row["prompt_ids"]


def test_reasoning_of_its_own_is_learned_where_the_template_prompts_for_it() -> None:
    tokenizer = tokenizer_with(THINKS)
    answer: Message = {"role": "assistant", "content": "Lima.", "reasoning_content": "Peru..."}
    example = Example("x", ({"role": "user", "content": "Capital?"}, answer))
    row = only(encode([example], tokenizer, 99))
    assert labelled(row, tokenizer) == ["Peru...\n</think>\n\nLima.<|end|>"]
    counts = SplitCounts()
    encode([example], tokenizer_with(CHATML), 99, counts=counts)
    assert "reasoning that the chat template does not write" in next(iter(counts.altered.reasons))


def test_two_answers_of_a_template_that_prompts_with_more_are_two_rows() -> None:
    tokenizer = tokenizer_with(THINKS)
    first, second = encode([conversation("Peru?", "Lima.", "Chile?", "Santiago.")], tokenizer, 999)
    assert labelled(first, tokenizer) == ["Lima.<|end|>"]
    assert labelled(second, tokenizer) == ["Santiago.<|end|>"]
    assert tokenizer.decode(second["prompt_ids"]) == (
        "<|user|>Peru?<|assistant|>Lima.<|end|><|user|>Chile?<|assistant|><think>\n"
    )


RERENDERS = (
    "{%- set ns = namespace(last=0) -%}{%- for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}"
    "{%- for m in messages %}{% if m['role'] == 'assistant' and loop.index0 > ns.last %}"
    "{{ '<|assistant|>\n<think>\n\n</think>\n\n' + m['content'] + '<|end|>\n' }}"
    "{% else %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif -%}"
)


def test_a_template_that_writes_earlier_answers_otherwise_has_a_row_for_each() -> None:
    tokenizer, said = tokenizer_with(RERENDERS), []
    rows = encode([conversation("a", "b", "c", "d"), conversation("e", "f", name="y")], tokenizer, 999, log=said.append)
    assert [labelled(row, tokenizer) for row in rows] == [
        [f"<think>\n\n</think>\n\n{answer}<|end|>"] for answer in ("b", "d", "f")
    ]
    assert tokenizer.decode(rows[1]["prompt_ids"]) == (
        "<|user|>\na<|end|>\n<|assistant|>\nb<|end|>\n<|user|>\nc<|end|>\n<|assistant|>\n"
    )
    assert "a row for each answer, since the chat template writes an answer otherwise once more follows (1)" in said[0]


SYSTEM: Message = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("system", "prompt"),
    [("auto", "Be brief.\n\nhi"), ("fold", "Be brief.\n\nhi"), ("drop", "hi")],
)
def test_a_system_message_that_the_template_refuses_is_put_before_the_question(system: Any, prompt: str) -> None:
    tokenizer, counts = tokenizer_with(TURN_END), SplitCounts()
    example = Example("s", (SYSTEM, *conversation("hi", "yo").messages))
    row = only(encode([example], tokenizer, 99, system=system, counts=counts))
    assert tokenizer.decode(row["prompt_ids"]) == f"<bos><turn>user\n{prompt}<turn_end>\n<turn>assistant\n"
    assert labelled(row, tokenizer) == ["yo<turn_end>"]
    assert counts.altered.rows == 1


def test_a_system_message_is_left_to_a_template_that_takes_it_and_is_folded_where_it_would_vanish() -> None:
    example = Example("s", (SYSTEM, *conversation("hi", "yo").messages))
    counts = SplitCounts()
    tokenizer = tokenizer_with(CHATML)
    row = only(encode([example], tokenizer, 99, counts=counts))
    assert tokenizer.decode(row["prompt_ids"]).startswith("<|im_start|>system\nBe brief.<|im_end|>\n")
    assert not counts.altered.reasons
    silent = tokenizer_with(LLAMA2.replace("{% else %}", "{% elif m['role'] == 'assistant' %}"))
    row = only(encode([example], silent, 99, counts=counts))
    assert silent.decode(row["prompt_ids"]) == "<bos>[INST] Be brief.\n\nhi [/INST]"
    assert counts.altered.rows == 1


def test_one_conversation_that_is_not_taken_does_not_end_the_run() -> None:
    tokenizer, counts, said = tokenizer_with(TURN_END), SplitCounts(), []
    bad = Example("s", (SYSTEM, *conversation("hi", "yo").messages))
    rows = encode([bad, conversation("hi", "yo")], tokenizer, 99, system="refuse", counts=counts, log=said.append)
    assert [row["id"] for row in rows] == ["x"]
    assert "1 of 2 examples left out: the chat template does not take it" in said[0]
    assert "no system role here" in said[0]
    with pytest.raises(UserError, match=r"data.system: fold"):
        encode([bad], tokenizer, 99, system="refuse")


CALLS = (
    "{% if tools %}{{ '[tools]' + tools | tojson + '[/tools]' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m.get('tool_calls') %}"
    "{% for c in m['tool_calls'] %}{{ '<tool_call>' + c['function'] | tojson + '</tool_call>' }}{% endfor %}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def call(arguments: Any = None) -> Message:
    function = {"name": "weather", "arguments": arguments or {"city": "Oslo"}}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "id": "c1", "function": function}],
    }


def with_call(*after: Message) -> Example:
    return Example("t", ({"role": "user", "content": "Rain in Oslo?"}, call(), *after), tools=TOOLS)


def test_a_tool_call_is_what_is_learned() -> None:
    tokenizer = tokenizer_with(CALLS)
    result: Message = {"role": "tool", "content": "rain", "tool_call_id": "c1"}
    row = only(encode([with_call(result, {"role": "assistant", "content": "Yes."})], tokenizer, 999))
    said = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    assert labelled(row, tokenizer) == [f"{said}<|im_end|>", "Yes.<|im_end|>"]
    assert tokenizer.decode(row["prompt_ids"]).startswith('[tools][{"type": "function"')
    assert row["answer"] == "Yes."
    last = only(encode([with_call()], tokenizer, 999))
    assert labelled(last, tokenizer) == [f"{said}<|im_end|>"]
    assert last["answer"] == said


def test_a_template_that_wants_arguments_as_text_gets_them_so() -> None:
    tokenizer = tokenizer_with(
        CALLS.replace("c['function'] | tojson", "c['function']['arguments'] + c['function']['name']")
    )
    row = only(encode([with_call()], tokenizer, 999))
    assert labelled(row, tokenizer) == ['<tool_call>{"city": "Oslo"}weather</tool_call><|im_end|>']


@pytest.mark.parametrize("template", [CHATML, TURN_END, None, CALLS.replace("c['function'] | tojson", "'a call'")])
def test_calls_that_the_template_does_not_write_are_left_out_and_counted(template: str | None) -> None:
    counts = SplitCounts()
    rows = encode([with_call(), conversation("hi", "yo")], tokenizer_with(template), 999, counts=counts)
    assert [row["id"] for row in rows] == ["x"]
    assert ["tool calls" in reason for reason in counts.left_out.reasons] == [True]


def weighted(*weights: int) -> Example:
    turns = [turn for n, weight in enumerate(weights) for turn in ((f"q{n}", None), (f"a{n}", weight))]
    messages: list[Message] = [
        {"role": "user", "content": text}
        if weight is None
        else {"role": "assistant", "content": text, "weight": weight}
        for text, weight in turns
    ]
    return Example("w", tuple(messages))


@pytest.mark.parametrize("template", [CHATML, TURN_END, LLAMA2])
def test_turns_of_weight_zero_have_no_label(template: str) -> None:
    tokenizer = tokenizer_with(template)
    row = only(encode([weighted(0, 1)], tokenizer, 999))
    assert [run.strip()[:2] for run in labelled(row, tokenizer)] == ["a1"]
    assert "a0" in tokenizer.decode(row["prompt_ids"])
    row = only(encode([weighted(1, 0)], tokenizer, 999))
    assert [run.strip()[:2] for run in labelled(row, tokenizer)] == ["a0"]
    assert row["answer"] == "a0"
    assert "q1" not in tokenizer.decode(row["input_ids"])


def test_without_a_template_the_last_answer_that_counts_is_learned() -> None:
    tokenizer = tokenizer_with(None)
    row = only(encode([weighted(1, 0)], tokenizer, 999))
    assert tokenizer.decode(row["input_ids"]) == "q0\na0<eos>"


@pytest.mark.parametrize("template", [None, CHATML])
def test_examples_of_weight_zero_alone_are_left_out_and_counted(template: str | None) -> None:
    counts = SplitCounts()
    rows = encode([weighted(0), conversation("hi", "yo")], tokenizer_with(template), 99, counts=counts)
    assert [row["id"] for row in rows] == ["x"]
    assert counts.left_out["every answer has weight 0"] == 1


def spaced(template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that writes a space before every text, as Llama 2's."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "▁", "\n", *map(chr, range(33, 127)), "▁4", "▁hi"]
    merges = [("▁", "4"), ("h", "i"), ("▁", "hi")]
    words += ["hi"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=template
    )


@pytest.mark.parametrize(
    ("prompt", "answer", "tokens"),
    [("hi", "4", ["▁hi", "\n", "4"]), ("hi", " 4", ["▁hi", "\n", "▁4"])],
)
def test_no_space_is_learned_that_the_text_does_not_have(prompt: str, answer: str, tokens: list[str]) -> None:
    tokenizer = spaced()
    row = only(encode([conversation(prompt, answer)], tokenizer, 99))
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == [*tokens, "<eos>"]
    assert row["input_ids"][:-1] == tokenizer(f"{prompt}\n{answer}").input_ids
    assert row["input_ids"][: len(row["prompt_ids"])] == row["prompt_ids"]


def test_not_after_a_border_that_a_token_spans_either() -> None:
    tokenizer = spaced()
    example = Example("x", conversation("h", "i4").messages, separator="")
    row = only(encode([example], tokenizer, 99))
    assert tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["▁", "h", "i", "4", "<eos>"]
    turned = spaced(
        "{% for m in messages %}{{ m['content'] + '\n' }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    row = only(encode([conversation("hi", "4")], turned, 99))
    assert turned.convert_ids_to_tokens(row["input_ids"]) == ["▁hi", "\n", "4", "\n", "<eos>"]
