from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from test_encoding import characters, conversation, labelled
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mft_ray.data.encoding import encode
from mft_ray.data.text.template import TEMPLATES, chat_template, with_fixed, writes_date
from mft_ray.errors import UserError


def test_tulu_prompts_as_the_reference_code_does() -> None:
    tokenizer = characters(chat_template("tulu"))
    turns = list(conversation("hi", "hello", "2+2?", "4").messages)
    said = "<|user|>\nhi\n<|assistant|>\nhello<eos>\n<|user|>\n2+2?\n<|assistant|>\n"

    def text(upto: int, prompted: bool) -> str:
        shown = tokenizer.apply_chat_template(turns[:upto], tokenize=False, add_generation_prompt=prompted)
        assert isinstance(shown, str)
        return shown

    assert text(4, False) == said + "4<eos>"
    assert text(3, True) == said
    assert text(1, False) == "<|user|>\nhi\n"
    system = {"role": "system", "content": " be brief "}
    shown = tokenizer.apply_chat_template([system, *turns[:1]], tokenize=False, add_generation_prompt=True)
    assert shown == "<|system|>\n be brief \n<|user|>\nhi\n<|assistant|>\n"


def test_only_answers_and_their_ends_are_learnt() -> None:
    tokenizer = characters(chat_template("tulu"))
    (row,) = encode([conversation("hi", " hello\n", "2+2?", "4")], tokenizer, 999)
    assert labelled(row, tokenizer) == [" hello\n<eos>", "4<eos>"]


@pytest.mark.parametrize(
    "text",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        TEMPLATES["tulu"],
        "{# long #}" + "\n{{ messages[0]['content'] }}" * 300,
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
        "{{ raise_exception('no') if messages | length == 1 }}{{ strftime_now('%Y') }}",
        "{% for m in messages %}{% break %}{% endfor %}",
    ],
)
def test_a_file_or_its_text_will_do(tmp_path: Path, text: str) -> None:
    file = tmp_path / "my {{ own }}.jinja"
    file.write_text(text)
    assert chat_template(str(file)) == chat_template(text) == text


def test_a_template_that_marks_what_is_generated_is_used_as_transformers_renders_it() -> None:
    text = (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>\n"
        "{% generation %}{{ m['content'] + eos_token }}{% endgeneration %}\n"
        "{% else %}<|{{ m['role'] }}|>\n{{ m['content'] }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}\n"
    )
    tokenizer = characters(chat_template(text))
    (row,) = encode([conversation("hi", "hello", "2+2?", "4")], tokenizer, 999)
    assert labelled(row, tokenizer) == ["hello<eos>", "4<eos>"]
    assert tokenizer.decode(row["prompt_ids"]).endswith("<|user|>\n2+2?\n<|assistant|>\n")


DATED = (
    "  {% if strftime_now is defined %}"
    "{{ 'Today: ' + strftime_now('%d %b %Y') + strftime_now(format='|%-d.%m.%y %H%%Y') }}"
    "{% endif %}\n{% macro day() %}{{ strftime_now('%B') }}{% endmacro %}"
    "{% for m in messages %}[{{ m['role'] }} {{ day() }}]{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant {{ day() }}]"
    "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}{% endif %}"
)


def shown(tokenizer: PreTrainedTokenizerBase, **options: Any) -> str:
    turns = list(conversation("hi", "hello").messages[:1])
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **options))


def test_a_date_is_fixed_for_good(tmp_path: Path) -> None:
    tokenizer = characters(DATED)
    assert writes_date(tokenizer)
    fixed = with_fixed(tokenizer, {}, "2031-02-03")
    # Where the template begins with space before a block, transformers leaves it out.
    assert shown(fixed) == "Today: 03 Feb 2031|3.02.31 00%Y[user February]hi<eos>[assistant February]"
    assert not writes_date(fixed)
    assert writes_date(tokenizer)
    fixed.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert shown(with_fixed(again, {}, "2040-01-01")) == shown(fixed)
    (row,) = encode([conversation("hi", "hello")], again, 999)
    assert again.decode(row["prompt_ids"]) == shown(fixed)
    assert labelled(row, again) == ["hello<eos>"]


def test_without_a_day_it_is_today() -> None:
    tokenizer = characters(DATED.replace("%H", ""))
    assert shown(with_fixed(tokenizer, {}, None)) == shown(tokenizer)
    assert date.today().strftime("%d %b %Y") in shown(tokenizer)


def test_options_are_fixed_and_what_reads_them_not_is_refused() -> None:
    plain, tokenizer = characters(chat_template("tulu")), characters(DATED.replace("strftime_now", "now"))
    tokenizer.chat_template = (
        str(tokenizer.chat_template).replace("now is defined", "false").replace("{{ now('%B') }}", "")
    )
    fixed = with_fixed(tokenizer, {"enable_thinking": False}, None)
    assert shown(fixed) == shown(tokenizer, enable_thinking=False) != shown(tokenizer)
    assert with_fixed(plain, {}, None) is plain
    with pytest.raises(UserError, match="enable_thinking, which the chat template does not read"):
        with_fixed(plain, {"enable_thinking": False}, None)
    with pytest.raises(UserError, match="no chat template that could read"):
        with_fixed(characters(), {"enable_thinking": False}, None)


@pytest.mark.parametrize("value", [None, True, 3, 2.5, 'a "quoted" {{ text }}\n', ["x", False], {"a": {"b": None}}])
def test_options_may_be_any_value(value: Any) -> None:
    tokenizer = characters("{{ given | tojson }}")
    assert json.loads(shown(with_fixed(tokenizer, {"given": value}, None))) == value


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("tullu", "there is no such file. Give tulu, a Jinja file"),
        ("{% for m in messages %}", "not valid Jinja: line 1"),
    ],
)
def test_what_is_no_template_is_told(given: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        chat_template(given)
