from __future__ import annotations

from pathlib import Path

import pytest
from test_encoding import characters, conversation, labelled

from mft_ray.data.encoding import encode
from mft_ray.data.template import chat_template
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


def test_a_file_or_its_text_will_do(tmp_path: Path) -> None:
    text = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "mine.jinja").write_text(text)
    assert chat_template(str(tmp_path / "mine.jinja")) == chat_template(text) == text


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
