"""When a generated text gives the reference answer."""

from __future__ import annotations

import re
from decimal import Decimal

MARKER = "####"

# A sign only counts where it cannot be a subtraction or a hyphen: not right after a digit, word or bracket.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)\]])[-+])?[$€£]?(?P<inner>(?<=[$€£])-)?"
    r"(?P<digits>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+|(?<![\w.])(?=\.[0-9]))(?P<fraction>\.[0-9]+)?"
)


def match(text: str, reference: str) -> bool:
    """Whether ``text`` answers as ``reference`` does.

    A GSM8K-style reference holds its final answer after ``####``. The text's own answer is then the
    first number after its first ``####`` (whatever follows later is another question's), or the last number
    anywhere when it has no ``####``. Numbers are compared by value: ``$1,200.`` is ``1200.00``. A final
    answer that is not a number, and a reference without ``####``, are compared as text, ignoring case and
    differences in white space.

    Args:
        text: what the model generated.
        reference: the right answer.
    """
    if MARKER not in reference:
        return _normalised(text) == _normalised(reference)
    expected = _after_marker(reference)
    wanted = _numbers(expected)
    if not wanted:
        return _normalised(_after_marker(text) if MARKER in text else text) == _normalised(expected)
    if MARKER in text:
        # A marker without a number is no answer; looking further up would be guessing.
        return _numbers(_after_marker(text))[:1] == wanted[:1]
    return _numbers(text)[-1:] == wanted[:1]


def _after_marker(text: str) -> str:
    """The rest of the line after the first marker."""
    rest = text.split(MARKER, 1)[1].strip()
    return rest.splitlines()[0] if rest else ""


def _numbers(text: str) -> list[Decimal]:
    """Every number in the text, in order."""
    found = []
    for number in _NUMBER.finditer(text.replace("−", "-")):
        negative = "-" in (number["sign"] or "") or number["inner"]
        digits = number["digits"].replace(",", "") + (number["fraction"] or "")
        found.append(Decimal(f"-{digits}" if negative else digits))
    return found


def _normalised(text: str) -> str:
    return " ".join(text.split()).casefold()
