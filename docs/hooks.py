"""What of the documentation is made when it is built: settings, commands, results, and pages that stand elsewhere."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mft_ray.cli.main import NAMES, parser
from mft_ray.config import Config
from mft_ray.masking.settings import MaskSettings

ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?!https?:|#|mailto:)[^)#\s]+)(#[^)]*)?\)")
# Pages that stand where people look for them in a repository.
_ELSEWHERE = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made or copied."""
    made = {"settings.md": settings(), "command_line.md": command_line()}
    made |= {page: (ROOT / source).read_text(encoding="utf-8") for page, source in _ELSEWHERE.items()}
    for result in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        made[f"results/{result.name}"] = result.read_text(encoding="utf-8")
    for page, text in made.items():
        if (there := files.get_file_from_path(page)) is not None:
            files.remove(there)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to where their targets are on the site; name the file where it is only in the repository."""
    here = ROOT / _ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if page.file.src_uri.startswith("results/"):
        here = ROOT / "benchmarks" / page.file.src_uri

    def lead(link: re.Match[str]) -> str:
        text, path, anchor = link[1], link[2], link[3] or ""
        target = (here.parent / path).resolve()
        if not target.is_relative_to(ROOT):
            return link[0]
        inside = target.relative_to(ROOT).as_posix()
        on_site = {source: name for name, source in _ELSEWHERE.items()}.get(inside)
        if on_site is None and inside.startswith("docs/"):
            on_site = inside.removeprefix("docs/")
        if on_site is None and inside.startswith("benchmarks/results/") and inside.endswith(".md"):
            on_site = inside.removeprefix("benchmarks/")
        if on_site is None:
            shown = text.strip("`")
            return f"`{inside}`" if shown in (inside, path) else f"{text} (`{inside}`)"
        up = "../" * page.file.src_uri.count("/")
        return f"[{text}]({up}{on_site}{anchor})"

    parts = re.split(r"(```.*?```|`[^`\n]*`(?!\]))", markdown, flags=re.DOTALL)
    return "".join(part if part.startswith("`") else _LINK.sub(lead, part) for part in _joined(parts))


def _joined(parts: list[str]) -> list[str]:
    """Return text with links whose text is code in one piece."""
    whole: list[str] = []
    for part in parts:
        if whole and not part.startswith("```") and not whole[-1].startswith("```") and _open(whole[-1]):
            whole[-1] += part
        else:
            whole.append(part)
    return whole


def _open(text: str) -> bool:
    return text.rfind("[") > text.rfind("]")


def settings() -> str:
    """Return a page of every setting: path, type, default and description."""
    lines = [
        "# Settings",
        "",
        "A configuration is a YAML file of differences from these defaults. `--set PATH=VALUE` changes one, such as "
        "`--set search.trials=4`. A key that is not here is refused.",
    ]
    for name, field in Config.model_fields.items():
        lines += ["", f"## {name}", "", *_section(name, field.annotation, field)]
    return "\n".join(lines) + "\n"


def _section(path: str, annotation: Any, field: FieldInfo | None = None) -> list[str]:
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    model = next((kind for kind in kinds if issubclass(kind, BaseModel)), None)
    if MaskSettings in kinds:
        return _mask(path)
    if model is None:
        return _table([_row(path, field)]) if field is not None else []
    rows: list[tuple[str, str, str, str]] = []
    deeper: list[str] = []
    for name, each in model.model_fields.items():
        below = [kind for kind in (each.annotation, *get_args(each.annotation)) if isinstance(kind, type)]
        if any(issubclass(kind, BaseModel) or kind is MaskSettings for kind in below):
            said = [each.description, ""] if each.description else []
            deeper += ["", f"### {path}.{name}", "", *said, *_section(f"{path}.{name}", each.annotation)]
        else:
            rows.append(_row(f"{path}.{name}", each))
    return [*((model.__doc__ or "").strip().splitlines()[:1]), "", *_table(rows), *deeper]


def _mask(path: str) -> list[str]:
    said = dict(re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", MaskSettings.__doc__ or "", re.MULTILINE))
    rows = [
        (f"{path}.{each.name}", str(each.type), str(each.default), " ".join(said.get(each.name, "").split()))
        for each in dataclasses.fields(MaskSettings)
    ]
    return _table(rows)


def _row(path: str, field: FieldInfo) -> tuple[str, str, str, str]:
    default = field.get_default(call_default_factory=True, validated_data={})
    shown = "required" if default is PydanticUndefined else _value(default)
    return path, _kind(field.annotation), shown, field.description or ""


def _value(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _kind(annotation: Any) -> str:
    text = annotation.__name__ if isinstance(annotation, type) and not get_args(annotation) else str(annotation)
    text = re.sub(r"typing\.|mft_ray(\.\w+)*\.|Annotated\[(\w+), .*\]$", lambda match: match[2] or "", text)
    return re.sub(r"Literal\[(.*?)\]", lambda match: match[1].replace("'", "").replace(", ", " or "), text)


def _table(rows: list[tuple[str, str, str, str]]) -> list[str]:
    def cell(text: str) -> str:
        return text.replace("|", r"\|").replace("\n", " ")

    head = ["| setting | type | default | |", "| --- | --- | --- | --- |"]
    return [*head, *(f"| `{row[0]}` | {cell(row[1])} | `{cell(row[2])}` | {cell(row[3])} |" for row in rows)]


def command_line() -> str:
    """Return a page with the help of every sub-command."""
    whole = parser()
    [each] = [action for action in whole._actions if isinstance(action, argparse._SubParsersAction)]
    lines = [
        "# Command line",
        "",
        "`mft-ray COMMAND` and `python -m mft_ray COMMAND` are the same. Completion in a shell: [Install](install.md).",
    ]
    for name in NAMES:
        lines += ["", f"## {name}", "", "```text", each.choices[name].format_help().rstrip(), "```"]
    return "\n".join(lines) + "\n"
