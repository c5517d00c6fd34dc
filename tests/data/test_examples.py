import pytest

from mft_ray.data.examples import Example, Message


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def test_answer_is_the_last_assistant_message() -> None:
    example = Example("a", (user("1?"), assistant("one"), user("2?"), assistant("two")))
    assert example.answer == "two"


def test_prompts_that_differ_in_spacing_case_or_unicode_form_are_the_same() -> None:
    keys = {
        Example("a", (user(prompt), assistant(answer))).prompt_key
        for prompt, answer in [("How many?", "3"), (" how\n MANY? ", "4"), ("How many？", "5")]
    }
    assert len(keys) == 1


def test_other_words_roles_or_earlier_turns_are_another_prompt() -> None:
    examples = [
        Example("a", (user("x"), assistant("1"))),
        Example("b", (user("y"), assistant("1"))),
        Example("c", ({"role": "system", "content": "x"}, assistant("1"))),
        Example("d", (user("x"), assistant("1"), user("x"), assistant("1"))),
    ]
    assert len({example.prompt_key for example in examples}) == 4


@pytest.mark.parametrize("messages", [(), (assistant("a"),), (user("a"), user("b"))])
def test_nothing_to_learn_is_refused(messages: tuple[Message, ...]) -> None:
    with pytest.raises(ValueError, match="needs a prompt"):
        Example("a", messages)


def test_tools_and_calls_are_part_of_the_prompt() -> None:
    call: Message = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    other: Message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "g", "arguments": {}}}],
    }
    told: Message = {"role": "tool", "content": "1"}
    tools = [{"type": "function", "function": {"name": "f"}}]
    examples = [
        Example("a", (user("x"), assistant("1"))),
        Example("b", (user("x"), assistant("1")), tools=tools),
        Example("c", (user("x"), call, told, assistant("1"))),
        Example("d", (user("x"), other, told, assistant("1"))),
    ]
    assert len({example.prompt_key for example in examples}) == 4
    assert Example("e", (user("x"), call)).answer == ""
