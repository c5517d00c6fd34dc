"""Chat templates for tokenizers that have none, as base models' have not."""

from __future__ import annotations

from pathlib import Path

from jinja2 import TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

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


def chat_template(given: str) -> str:
    """Return the Jinja text of a chat template.

    Args:
        given: a name among `TEMPLATES`, a file, or the text itself.

    Raises:
        UserError: it is none of these, or no Jinja.
    """
    text = TEMPLATES.get(given, given)
    if "{" not in text:
        path = Path(given).expanduser()
        if not path.is_file():
            raise UserError(
                f"data.chat_template is {given!r}, and there is no such file. Give {', '.join(TEMPLATES)}, a Jinja "
                "file, or its text; null leaves the tokenizer's own."
            )
        text = path.read_text(encoding="utf-8")
    try:
        ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except TemplateSyntaxError as error:
        raise UserError(
            f"data.chat_template {given[:80]!r} is not valid Jinja: line {error.lineno}: {error.message}."
        ) from None
    return text
