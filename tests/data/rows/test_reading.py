"""What people bring: their files, folders and names of folders."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from mft_ray.config import DataConfig
from mft_ray.data.accounting import Accounting
from mft_ray.data.examples import Example
from mft_ray.data.rows.reading import locate, read
from mft_ray.data.rows.values import LeftOut
from mft_ray.data.splits import load
from mft_ray.errors import UserError

ODD = ("my[v2]", "a%20b", "with space", "a*b", "what?", "a#b?c", "100%", "{x}", "ü", "a::b", "q&x=1;", "!x", "'q'")


def pairs(first: int, last: int) -> list[dict[str, Any]]:
    return [{"prompt": f"p{n}", "response": f"r{n}"} for n in range(first, last)]


def write(path: Path, rows: Sequence[Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        with path.open("wb") as file:
            datasets.Dataset.from_list(list(rows)).to_parquet(file)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(train: str, **more: Any) -> DataConfig:
    columns = {"prompt_column": "prompt", "answer_column": "response"}
    return DataConfig.model_validate({"train": train, "n_validation": 2, "n_test": 2, **columns, **more})


def answers(splits: dict[str, list[Example]]) -> dict[str, str]:
    found = [example for examples in splits.values() for example in examples]
    return {str(example.messages[0]["content"]): example.answer for example in found}


@pytest.mark.parametrize("name", ODD)
def test_names_of_folders_mean_nothing(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a pattern or a URL of that name would find instead.
    for other in ("myv", "my2", "a b", "aXb", "whatx", "a"):
        write(tmp_path / other / "train.jsonl", pairs(100, 200))
    expected = {row["prompt"]: row["response"] for row in pairs(0, 20)}
    for suffix in (".jsonl", ".parquet"):
        file = write(tmp_path / name / f"train{suffix}", pairs(0, 20))
        assert answers(load(config(file))) == expected
    monkeypatch.chdir(tmp_path)
    assert answers(load(config(name))) == expected
    assert answers(load(config(f"{name}/train.jsonl"))) == expected


@pytest.mark.parametrize("filler", [{"note": None}, {}, {"note": 3}, {"note": {"a": 1}}, {"note": []}])
def test_columns_that_are_not_used_do_not_matter(tmp_path: Path, filler: dict[str, Any]) -> None:
    path = tmp_path / "train.jsonl"
    long = "x" * 1000
    with path.open("w") as file:
        for n in range(12_000):
            note = filler if n < 11_500 else {"note": "text, at last"}
            file.write(json.dumps({"prompt": f"p{n} {long}", "response": f"r{n}", **note}) + "\n")
    assert path.stat().st_size > 12_000_000
    splits = load(config(str(path)))
    assert sum(map(len, splits.values())) == 12_000
    assert answers(splits)[f"p11999 {long}"] == "r11999"


def test_dates_and_numbers_stay_as_written(tmp_path: Path) -> None:
    values = ["2024-01-17", "2024-01-17T12:00:00Z", "007", "1.50", "12345678901234567890123", "True", "null", "NaN"]
    raw = ["12345678901234567890123", "2", "1.50", "1e3", "-0.0", "0.1000"]
    path = tmp_path / "train.jsonl"
    lines = [json.dumps({"prompt": f"t{n}", "response": value}) for n, value in enumerate(values)]
    lines += [f'{{"prompt": "n{n}", "response": {value}}}' for n, value in enumerate(raw)]
    lines += [f'{{"prompt": {value}, "response": "x"}}' for value in ("41", "4.20")]
    path.write_text("\n".join(lines))
    expected = {f"t{n}": value for n, value in enumerate(values)} | {f"n{n}": value for n, value in enumerate(raw)}
    assert answers(load(config(str(path)))) == expected | {"41": "x", "4.20": "x"}
    table = tmp_path / "train.csv"
    table.write_text("prompt,response\n" + "".join(f"t{n},{value}\n" for n, value in enumerate(values)))
    assert answers(load(config(str(table)))) == {f"t{n}": value for n, value in enumerate(values)}


def test_a_folder_of_several_formats_and_shards(tmp_path: Path) -> None:
    write(tmp_path / "data" / "train-00000-of-00002.parquet", pairs(0, 10))
    write(tmp_path / "data" / "train-00001-of-00002.jsonl", pairs(10, 20))
    write(tmp_path / "data" / "validation-00000.jsonl", pairs(50, 60))
    write(tmp_path / "test" / "part.jsonl", pairs(20, 30))
    write(tmp_path / ".cache" / "train.jsonl", pairs(60, 70))
    (tmp_path / "notes.txt").write_text("no rows")
    found = answers(load(config(str(tmp_path), test=str(tmp_path), n_test=10)))
    assert set(found) == {f"p{n}" for n in range(30)}
    places = [f"{row.where} {row.number}" for row in read(locate(str(tmp_path), "data.train", "train"), "data.train")]
    assert places[0] == "data/train-00000-of-00002.parquet, row 1"
    assert places[-1] == "data/train-00001-of-00002.jsonl, line 10"


def test_a_folder_whose_files_name_no_split_is_all_for_training(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", pairs(0, 10))
    write(tmp_path / "contest.jsonl", pairs(10, 20))
    assert len(answers(load(config(str(tmp_path))))) == 20
    with pytest.raises(UserError, match=r"data\.test is .* no file of the split test \(of no split: a\.jsonl, contest"):
        load(config(str(tmp_path), test=str(tmp_path)))


def test_a_folder_without_the_split_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file of the split train \(no data file at all\)"):
        load(config(str(tmp_path)))
    write(tmp_path / "dev.jsonl", pairs(0, 10))
    with pytest.raises(UserError, match=r"no file of the split train \(validation: dev\.jsonl\)"):
        load(config(str(tmp_path)))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(UserError, match="save_to_disk"):
        load(config(str(tmp_path)))


def test_a_copied_hub_datasets_own_description_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "x" / "some.jsonl", pairs(0, 10))
    write(tmp_path / "x" / "others.jsonl", pairs(10, 20))
    one = "---\nconfigs:\n- config_name: main\n  data_files:\n"
    one += "  - {split: train, path: x/so*}\n  - {split: test, path: x/oth*}\n"
    (tmp_path / "README.md").write_text(one + "---\n# Data\n")
    assert len(answers(load(config(str(tmp_path))))) == 10
    (tmp_path / "README.md").write_text(one + "- config_name: other\n  data_files: y/*\n---\n# Data\n")
    with pytest.raises(UserError, match=r"several configurations \(main, other\)"):
        load(config(str(tmp_path)))
    (tmp_path / "README.md").write_text("---\n[\n---\n")
    assert len(answers(load(config(str(tmp_path))))) == 20


def test_a_link_to_a_file_without_an_ending(tmp_path: Path) -> None:
    file = Path(write(tmp_path / "blobs" / "0a1b2c", pairs(0, 20)))
    os.symlink(file, tmp_path / "train.jsonl")
    assert len(answers(load(config(str(tmp_path / "train.jsonl"))))) == 20
    os.symlink(file, tmp_path / "again.jsonl")
    one, other = (locate(str(tmp_path / name), "data.train", "train") for name in ("train.jsonl", "again.jsonl"))
    assert one == other


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt": "a", "resp')
    with pytest.raises(UserError, match=r"a\.jsonl, which could not be read \(line 2 is not JSON: Unterminated"):
        load(config(str(tmp_path / "a.jsonl")))
    (tmp_path / "b" / "train.jsonl").parent.mkdir()
    (tmp_path / "b" / "train.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"could not be read \(train\.jsonl: line 1 is not UTF-8 text\)"):
        load(config(str(tmp_path / "b")))


def test_rows_of_the_hub_that_are_no_objects_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: [{"prompt": {"a": None}}, 3])
    first, other = read(locate("owner/name", "data.train", "train"), "data.train")
    assert first.row == {"prompt": {}}
    assert f"{first.where} {first.number}" == "owner/name:train, row 1"
    assert isinstance(other.row, LeftOut)


def test_the_first_rows_are_read_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\nbroken')
    assert len(list(read(locate(str(path), "x", "train"), "x", first=2))) == 2


@pytest.mark.parametrize("column", ["conversations", "conversation"])
def test_chat_reads_conversations_by_any_of_their_names(tmp_path: Path, column: str) -> None:
    rows = [{column: [{"from": "human", "value": f"p{n}"}, {"from": "gpt", "value": "x"}]} for n in range(9)]
    splits = load(DataConfig(train=write(tmp_path / "a.jsonl", rows), n_validation=2, n_test=2))
    assert set(answers(splits)) == {f"p{n}" for n in range(9)}


def test_columns_of_another_form_are_suggested(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "output": "b", "id": 1}]
    with pytest.raises(UserError, match=r"no column 'messages'.*prompt_column instruction and answer_column output"):
        load(DataConfig(train=write(tmp_path / "a.jsonl", rows)))


def test_columns_that_look_like_part_of_a_conversation_are_told(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "response": "r", "rejected": "x", "system": "s", "id": n} for n in range(9)]
    path, said, accounting = write(tmp_path / "a.jsonl", rows), list[str](), Accounting()
    splits = load(config(path), said.append, accounting)
    assert splits["test"][0].messages[0] == {"role": "system", "content": "s"}
    assert said == [
        "a.jsonl: part of the prompt besides prompt, response: system",
        "a.jsonl: the columns rejected look like part of a conversation and are not used",
    ]
    [counts] = accounting.sources
    assert (counts.columns, counts.also_used, counts.not_used) == (["prompt", "response"], ["system"], ["rejected"])
    said.clear()
    splits = load(config(path, ignore_columns=["system", "rejected"]), said.append)
    assert len(splits["test"][0].messages) == 2
    assert said == []
    mixture = [{"path": path, "ignore_columns": ["system", "rejected"]}]
    assert load(DataConfig(mixture=mixture, n_validation=2, n_test=2), said.append)  # type: ignore[arg-type]
    assert said == []


def turns(example: Example) -> list[tuple[str, str | None]]:
    return [(message["role"], message["content"]) for message in example.messages]


def test_a_conversations_columns_reach_its_example(tmp_path: Path) -> None:
    called = {"type": "function", "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
    schema = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "required": []}}}
    rows = [
        {
            "system": f"Answer {n} times.",
            "messages": [
                {"role": "user", "content": "Is it raining in Oslo?"},
                {"role": "assistant", "content": None, "tool_calls": [called]},
                {"role": "tool", "tool_call_id": "c1", "content": "rain, 4 degrees"},
                {"role": "assistant", "content": "No.", "weight": 0},
                {"role": "user", "content": "Sure?"},
                {"role": "Assistant", "content": "Yes.", "weight": 1},
            ],
            "tools": [schema] if n % 2 else None,
        }
        for n in range(8)
    ]
    said: list[str] = []
    path = write(tmp_path / "a.jsonl", rows)
    splits = load(DataConfig(train=path, n_validation=2, n_test=2), said.append)
    for example in (example for examples in splits.values() for example in examples):
        number = int(example.id.split(":")[1])
        assert example.tools == ([schema] if number % 2 else None)
        assert turns(example) == [
            ("system", f"Answer {number} times."),
            ("user", "Is it raining in Oslo?"),
            ("assistant", None),
            ("tool", "rain, 4 degrees"),
            ("assistant", "No."),
            ("user", "Sure?"),
            ("assistant", "Yes."),
        ]
        [call] = example.messages[2]["tool_calls"]
        assert call == {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
        assert example.messages[3]["tool_call_id"] == "c1"
        assert [message.get("weight") for message in example.messages] == [None, None, None, None, 0, None, None]
    assert said == [
        "Rows of a.jsonl that are read otherwise than they stand there: arguments of tool calls that are JSON text are "
        "read as objects (8: a.jsonl, line 1, 2, 3, 4, 5, ...)",
        "a.jsonl: part of the prompt besides messages: system, tools",
    ]


def test_alpacas_columns_reach_the_example(tmp_path: Path) -> None:
    before = [["What is the capital of France?", "Paris."]]
    rows = [
        {"system": "Be brief.", "instruction": f"And of Peru {n}?", "input": "", "output": "Lima.", "history": before}
        for n in range(8)
    ]
    columns = {"prompt_column": "instruction", "answer_column": "output"}
    path = write(tmp_path / "a.jsonl", rows)
    splits = load(DataConfig(train=path, n_validation=2, n_test=2, **columns))  # type: ignore[arg-type]
    [first, *_] = splits["train"]
    assert turns(first)[:3] == [("system", "Be brief."), ("user", before[0][0]), ("assistant", "Paris.")]
    assert turns(first)[4] == ("assistant", "Lima.")
    assert first.messages[2]["weight"] == 0
