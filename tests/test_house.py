"""The plan of the package, in numbers: what a stranger has to hold in mind at once stays small."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "mft_ray").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))

FILES_IN_A_FOLDER = 14
LINES_OF_A_FUNCTION = 60
DICTS_PER_THOUSAND_LINES = 2.0


def named(files: list[Path]) -> dict[Path, list[str]]:
    """The files of each folder that have something in them; what only says what a folder is does not count."""
    found: dict[Path, list[str]] = {}
    for file in files:
        if file.name != "__init__.py":
            found.setdefault(file.parent.relative_to(ROOT), []).append(file.name)
    return found


def functions(file: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            first = body[0].lineno if body else node.lineno
            yield f"{file.relative_to(ROOT)}: {node.name}", node.end_lineno - first + 1


def test_no_folder_holds_more_than_one_looks_over_at_once() -> None:
    crowded = {str(folder): len(names) for folder, names in named(PACKAGE).items() if len(names) > FILES_IN_A_FOLDER}
    assert crowded == {}


def test_tests_stand_where_what_they_test_stands() -> None:
    rooms = {folder.relative_to("mft_ray") for folder in named(PACKAGE)}
    elsewhere = {Path("benchmarks"), Path("cluster"), Path("helpers"), Path("hosts"), Path(".")}
    assert {folder.relative_to("tests") for folder in named(TESTS)} - elsewhere <= rooms


def test_no_function_is_longer_than_a_screen() -> None:
    long = {name: lines for file in PACKAGE for name, lines in functions(file) if lines >= LINES_OF_A_FUNCTION}
    assert long == {}


def test_what_crosses_files_has_a_type() -> None:
    text = "".join(file.read_text() for file in PACKAGE)
    found = len(re.findall(r"dict\[str, Any\]", text))
    assert found <= DICTS_PER_THOUSAND_LINES * text.count("\n") / 1000


def test_one_file_writes_and_renames() -> None:
    """A file takes its place whole, or not at all, in one way: `mft_ray.utils.files`."""
    renames = re.compile(r"os\.(rename|replace)\(|\.rename\(")
    assert [file.name for file in PACKAGE if renames.search(file.read_text())] == ["files.py"]


def test_no_test_module_has_the_name_of_another() -> None:
    names = [file.name for file in TESTS if file.name.startswith("test_")]
    assert sorted(names) == sorted(set(names))
