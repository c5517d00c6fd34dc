import pytest
from hypothesis import given
from hypothesis import strategies as st

from mft_ray.evaluation.answers import match


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 7, so 7 * 10 = 70\n#### 70",
        "#### $70.",
        "#### 70.00",
        "####70 apples",
        "#### 70\n\nQuestion: how many?\n#### 12",  # ran on into another question
        "She has 10 and then 70.",
        "It is 30 - 100 = 70",
        "the answer is **70**",
        "80-10=70",
        "about USD 70!",
    ],
)
def test_the_same_number(text: str) -> None:
    assert match(text, "10 * 7 = <<10*7=70>>70\n#### 70")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no idea",
        "#### 71",
        "#### -70",
        "#### seventy",
        "70 #### ",
        "70 is less than 80",
        "#### 7,0",
        "700",
        "0.70",
    ],
)
def test_another_number_or_none(text: str) -> None:
    assert not match(text, "... #### 70")


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        ("#### 1200", "#### 1,200"),
        ("it costs $1,234,567.50.", "#### 1234567.5"),
        ("he lost -$5", "#### -5"),
        ("he lost $-5", "#### -5"),
        ("down to −5 degrees", "#### -5"),
        ("10-3", "#### 3"),
        ("10 - 3", "#### 3"),
        ("(2+1)-3", "#### 3"),
        ("COVID-19", "#### 19"),
        ("=-4", "#### -4"),
        ("#### .5", "#### 0.50"),
        ("1, 2, 3", "#### 3"),
        ("1,2345", "#### 2345"),
        ("007", "#### 7"),
    ],
)
def test_how_numbers_are_written(text: str, reference: str) -> None:
    assert match(text, reference)


def test_without_a_marker_text_is_compared() -> None:
    assert match("  Paris\n", "paris")
    assert match("in  New\tYork", "In New York")
    assert not match("The answer is Paris", "Paris")
    assert not match("46.0", "46")  # plain answers are text, as in arithmetic
    assert not match("", "Paris")


def test_a_final_answer_that_is_not_a_number_is_compared_as_text() -> None:
    assert match("thinking...\n#### Yes", "because\n#### yes")
    assert match("YES", "#### yes")
    assert not match("#### no", "#### yes")


@given(
    value=st.integers(-(10**12), 10**12),
    before=st.sampled_from(["", "so ", "12 + 3 = ", "#### ", "well, 9.\n#### "]),
    commas=st.booleans(),
    currency=st.booleans(),
    decimals=st.sampled_from(["", ".0", ".00"]),
    stop=st.sampled_from(["", ".", "!", " dollars", ".\n"]),
)
def test_formatting_never_matters(
    value: int, before: str, commas: bool, currency: bool, decimals: str, stop: str
) -> None:
    digits = f"{abs(value):,}" if commas else str(abs(value))
    text = before + ("-" if value < 0 else "") + ("$" if currency else "") + digits + decimals + stop
    assert match(text, f"#### {value}")
    assert not match(text, f"#### {value + 1}")


@given(text=st.text(), reference=st.text())
def test_never_fails_and_agrees_with_itself(text: str, reference: str) -> None:
    assert match(text, reference) in (True, False)
    if "####" not in reference:
        assert match(reference, reference)
