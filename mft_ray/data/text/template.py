"""Chat templates: for tokenizers that have none, and what a run holds fixed of any."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from datetime import date, datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from mft_ray.errors import UserError

# As the models of open-instruct and the reference code are prompted: each turn under a line that names its role, an
# end-of-sequence token after each answer.
_TULU = """\
{%- for message in messages -%}
{{ '<|' + message['role'] + '|>\\n' + message['content'] }}
{%- if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}
{%- if message['role'] != 'assistant' or not loop.last %}{{ '\\n' }}{% endif %}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif -%}
"""
TEMPLATES = {"tulu": _TULU}

_FIXED = "{# mft_ray: fixed for this run"
_NOW = "strftime_now"
# All that a date's format may hold; first, so that it is not taken for the beginning of another, the percent sign.
_DIRECTIVES = [*(f"%-{letter}" for letter in "demHIjyMSklUWw"), *(f"%{letter}" for letter in "aAbBcCdDeFgGhHIjklmM")]
_DIRECTIVES += [f"%{letter}" for letter in "npPrRSTtuUVwWxXyYzZ"]
_PERCENT = "\ue000"


def chat_template(given: str) -> str:
    """Return the Jinja text of a chat template.

    Args:
        given: a name among `TEMPLATES`, a file, or the text itself.

    Raises:
        UserError: it is none of these, or no Jinja as transformers takes it.
    """
    text = TEMPLATES.get(given)
    if text is None:
        path = local_file(given)
        text = given if path is None else _read(path)
    if text == given and not re.search(r"\{[{%]|\n", given):
        raise UserError(
            f"data.chat_template is {given!r}, and there is no such file. Give {', '.join(TEMPLATES)}, a Jinja "
            "file, or its text; null leaves the tokenizer's own."
        )
    try:
        render_jinja_template([[{"role": "user", "content": ""}]], chat_template=text)
    except TemplateSyntaxError as error:
        raise UserError(
            f"data.chat_template {given[:80]!r} is not valid Jinja: line {error.lineno}: {error.message}."
        ) from None
    except Exception:
        pass  # what it does not take is told with the conversation
    return text


def local_file(given: str) -> Path | None:
    """Return the file that a text names, if there is one; a template's text is too long for a name."""
    try:
        path = Path(given).expanduser()
        return path if path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a tokenizer's chat template writes the day on which it is used."""
    return any(_NOW in text and not text.startswith(_FIXED) for text in _texts(tokenizer))


def with_fixed(
    tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any], day: str | None
) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose chat template always has the same options and writes the same date.

    They are written into the template, so that whoever loads the tokenizer prompts alike. What was fixed before stays.

    Args:
        tokenizer: may have no chat template.
        options: variables of the template, such as ``enable_thinking``.
        day: such as 2026-01-31, for templates that write today's; None is today.

    Raises:
        UserError: there is no template, or it does not read an option.
    """
    texts = _texts(tokenizer)
    if options and not texts:
        raise UserError(
            f"data.template_options gives {', '.join(options)}, and the tokenizer has no chat template that could read "
            "them. Leave them out, or give data.chat_template."
        )
    for name in options:
        if not any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts):
            raise UserError(
                f"data.template_options gives {name}, which the chat template does not read. Give one that it does "
                "(enable_thinking, of many models that think), or leave it out."
            )
    if all(text.startswith(_FIXED) for text in texts) or not (options or writes_date(tokenizer)):
        return tokenizer

    def fixed(text: str) -> str:
        return text if text.startswith(_FIXED) else _fixed(text, options, day)

    given = tokenizer.chat_template
    tokenizer = copy.deepcopy(tokenizer)
    if isinstance(given, dict):
        tokenizer.chat_template = {name: fixed(text) for name, text in given.items()}
    else:
        tokenizer.chat_template = fixed(given)
    return tokenizer


def _texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    given = tokenizer.chat_template
    return list(given.values()) if isinstance(given, dict) else [given] if given else []


def _fixed(text: str, options: Mapping[str, Any], day: str | None) -> str:
    """Put what is fixed before a template: lines that write nothing, even where the template begins with space."""
    lines = [f"{{% set {name} = {_literal(value)} %}}\n" for name, value in options.items()]
    about = "options"
    if _NOW in text:
        moment = datetime.combine(date.fromisoformat(day) if day else date.today(), datetime.min.time())
        about = f"the date {moment.date().isoformat()}" + (" and options" if options else "")
        written = [("%%", _PERCENT), *((each, moment.strftime(each)) for each in _DIRECTIVES), (_PERCENT, "%")]
        filters = "".join(f" | replace({_literal(old)}, {_literal(new)})" for old, new in written)
        lines.append(f"{{% macro {_NOW}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}\n")
    return f"{_FIXED}: {about} #}}\n{''.join(lines)}{text}"


def _literal(value: Any) -> str:
    """Return a value as Jinja writes it."""
    constants: Mapping[Any, str] = {None: "none", True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return constants[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_literal(str(key))}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file {path} of data.chat_template cannot be read: {error}.") from None
