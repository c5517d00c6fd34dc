"""Files as people write them: encodings, line ends, separators, compression, numbers, broken ones."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mft_ray.data.rows import files
from mft_ray.data.rows.files import format_of, rows, text_lines
from mft_ray.data.rows.values import LeftOut, Number, as_json, as_text


def read(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in rows(path) if isinstance(row, dict)]


def why(path: Path) -> list[tuple[int, str]]:
    return [(line, row.reason) for line, row in rows(path) if isinstance(row, LeftOut)]


@pytest.fixture(params=["lines.jsonl", "lines.ndjson", "list.json", "lines.json", "spread.json", "list.jsonl"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The rows of `ROWS`, in each way to write JSON."""
    name: str = request.param
    path = tmp_path / name
    if name.startswith("lines"):
        path.write_text("\n".join(json.dumps(row) for row in ROWS))
    elif name.startswith("list"):
        path.write_text(json.dumps(ROWS, indent=2))
    else:
        path.write_text("\n".join(json.dumps(row, indent=1) for row in ROWS))
    return path


ROWS = [{"a": "x", "b": [1, {"c": None}]}, {"a": 'ü,]}[{\n"', "b": True}, {"a": "", "d": 2}]


def test_every_way_to_write_json_gives_the_same_rows(file: Path) -> None:
    assert as_json(read(file), "rows") == ROWS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 16])
def test_values_that_span_what_is_read_at_once(file: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_CHUNK", size)
    assert as_json(read(file), "rows") == ROWS


def test_the_line_of_each_row_is_known(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n  \n{"a": 2}\n')
    assert [line for line, _ in rows(tmp_path / "a.jsonl")] == [1, 4]
    (tmp_path / "a.json").write_text('[\n {"a":\n 1},\n\n {"a": 2}, {"a": 3}]\n')
    assert [line for line, _ in rows(tmp_path / "a.json")] == [2, 5, 5]
    (tmp_path / "a.csv").write_text('a,b\n1,"two\nlines"\n\n3,4\n')
    assert [line for line, _ in rows(tmp_path / "a.csv")] == [2, 5]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_byte_order_marks_and_line_ends_are_no_part_of_rows(tmp_path: Path, encoding: str, end: str) -> None:
    expected = [{"p": "é", "q": "x"}, {"p": "b", "q": "y"}]
    lines = [json.dumps(row, ensure_ascii=False) for row in expected]
    for name, text in {
        "a.jsonl": end.join([*lines, ""]),
        "a.json": f"[{end}{f',{end}'.join(lines)}{end}]",
        "a.csv": end.join(["p,q", "é,x", "b,y", ""]),
        "a.tsv": end.join(["p\tq", "é\tx", "b\ty", ""]),
    }.items():
        (tmp_path / name).write_bytes(text.encode(encoding))
        assert read(tmp_path / name) == expected, name


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e"])
def test_lines_end_at_newlines_only(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"p": "one{separator}two"}}\n{{"p": "b"}}\n', encoding="utf-8")
    assert read(path) == [{"p": f"one{separator}two"}, {"p": "b"}]
    assert [number for number, _ in text_lines(path)] == [1, 2]
    (tmp_path / "a.csv").write_text(f"p,q\none{separator}two,x\n", encoding="utf-8")
    assert read(tmp_path / "a.csv") == [{"p": f"one{separator}two", "q": "x"}]


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_text_may_be_compressed(tmp_path: Path, suffix: str, pack: Any) -> None:
    for name, text in {"a.jsonl": '{"a": "x"}\n', "a.json": '[{"a": "x"}]', "a.csv": "a\nx\n"}.items():
        path = tmp_path / (name + suffix)
        path.write_bytes(pack(text.encode()))
        assert read(path) == [{"a": "x"}]
        path.write_bytes(pack(text.encode())[:-4])
        with pytest.raises((ValueError, OSError, EOFError)):
            read(path)
        path.write_bytes(b"not packed")
        with pytest.raises((ValueError, OSError)):
            read(path)


@pytest.mark.parametrize("text", ["12345678901234567890123", "1.50", "1e3", "-0", "1E400", "9" * 5000])
def test_numbers_are_what_was_written(tmp_path: Path, text: str) -> None:
    for name, content in {"a.jsonl": f'{{"a": {text}}}', "a.json": f'[{{"a": {text}}}]'}.items():
        (tmp_path / name).write_text(content)
        [row] = read(tmp_path / name)
        assert isinstance(row["a"], Number)
        assert as_text(row["a"], "a") == text
        json.dumps(as_json(row, "a"))
    (tmp_path / "a.csv").write_text(f"a,b\n{text},2024-01-17\n")
    assert read(tmp_path / "a.csv") == [{"a": text, "b": "2024-01-17"}]


def test_csv_cells_are_text_and_columns_are_named_by_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt, answer,\n"one, ""two""",007,x\nshort\n1,2,3,4\nlast,NA,\n')
    assert read(path) == [
        {"prompt": 'one, "two"', "answer": "007", "": "x"},
        {"prompt": "short"},
        {"prompt": "last", "answer": "NA", "": ""},
    ]
    assert why(path) == [(4, "it has more cells than the first line has columns")]
    path.write_text("prompt;answer\na;b,c\n")
    assert read(path) == [{"prompt": "a", "answer": "b,c"}]
    path.write_text("long\n" + "x" * 300_000 + "\n")
    assert len(read(path)[0]["long"]) == 300_000
    path.write_text("")
    assert read(path) == []


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": 1, "b"\n', "line 2 is not JSON"),
        ("a.jsonl", '{"a": 1}\nhello\n', "line 2 is not JSON"),
        ("a.jsonl", '{"a": 1} {"a": 2}\n', "line 1 is not JSON: Extra data"),
        ("a.jsonl", '{"a": ' + "[" * 100_000, "line 1 is not JSON: nested too deeply"),
        ("a.json", '[{"a": 1},\n{"a": 1', "line 2 is not JSON"),
        ("a.json", '[{"a": 1}\n{"a": 2}]', "line 2 is not JSON: , or ] is missing"),
        ("a.json", '[{"a": 1},\n]', "line 2 is not JSON: nothing follows a comma"),
        ("a.json", '[{"a": 1}]\n\nmore', "line 3 is not JSON: something follows the list"),
        ("a.json", '[{"a": 1}', "line 1 is not JSON"),
        ("a.json", "[" + "[" * 100_000, "line 1 is not JSON: nested too deeply"),
        ("a.json", "<html>", "line 1 is not JSON"),
        ("a.csv", 'a,b\n1,2\n3,"open\n', "line 3 is not CSV|line 4 is not CSV"),
        ("a.tsv", 'a\tb\n"x"y\tz\n', "line 2 is not TSV"),
        ("a.csv", "a,b,a\n1,2,3\n", "line 1 names a column twice: a"),
        ("a.parquet", "not parquet", "Parquet"),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=reason):
        list(rows(tmp_path / name))


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv"])
def test_text_of_another_encoding_is_told_with_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"a": "x"}\n{"a": "caf\xe9"}\n')
    with pytest.raises(ValueError, match="line 2 is not UTF-8 text"):
        list(rows(tmp_path / name))


def test_what_is_no_object_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\nnull\n3\n"x"\n[1]\ntrue\n')
    assert [line for line, _ in rows(tmp_path / "a.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert why(tmp_path / "a.jsonl") == [
        (2, "it is null, not an object"),
        (3, "it is a number, not an object"),
        (4, "it is text, not an object"),
        (5, "it is a list, not an object"),
        (6, "it is true or false, not an object"),
    ]


def test_typed_columns_are_text_as_stored(tmp_path: Path) -> None:
    table = pa.table(
        {
            "day": pa.array([date(2024, 1, 17)]),
            "big": pa.array([Decimal("12345678901234567890123")], pa.decimal128(30, 0)),
            "int": [7],
            "calls": [[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}}]],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    [(number, row)] = rows(tmp_path / "a.parquet")
    assert number == 1
    assert not isinstance(row, LeftOut)
    assert [as_text(row[name], name) for name in ("day", "big", "int")] == [
        "2024-01-17",
        "12345678901234567890123",
        "7",
    ]
    # Arrow gives every object the keys of all: what it filled in is taken out again.
    assert row["calls"] == [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {"y": 2}}]
    assert [row for _, row in rows(tmp_path / "a.parquet", {"int"})] == [dict.fromkeys(table.column_names) | {"int": 7}]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.JSONL", ".jsonl"),
        ("a.ndjson.gz", ".jsonl"),
        ("a.b.csv", ".csv"),
        ("a.parquet", ".parquet"),
        ("a.parquet.gz", None),
        ("a.txt", None),
        ("jsonl", None),
        ("a.gz", None),
    ],
)
def test_formats_by_name(name: str, form: str | None) -> None:
    assert format_of(Path(name)) == form


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_file_is_never_held_whole(tmp_path: Path, name: str) -> None:
    row = json.dumps({"a": "x" * 1000})
    with (tmp_path / name).open("w") as file:
        file.write("[" if name == "a.json" else "")
        file.write((",\n" if name == "a.json" else "\n").join([row] * 20_000))
        file.write("]" if name == "a.json" else "")
    tracemalloc.start()
    assert sum(1 for _ in rows(tmp_path / name)) == 20_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000  # of 20 million bytes
