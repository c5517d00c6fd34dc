"""The documentation builds without a warning, and says every setting, command and function."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

import mft_ray
from mft_ray.cli.main import NAMES, command
from mft_ray.config import Config

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert built.returncode == 0, built.stderr[-3000:]
    return out


def text_of(page: Path) -> str:
    return unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))


def paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        below = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in below if issubclass(kind, BaseModel)]
        if sections:
            yield from paths(sections[0], f"{above}{name}.")
        else:
            yield above + name


def test_every_setting_is_there(site: Path) -> None:
    text = text_of(site / "settings.html")
    for path in paths(Config):
        shown = f"{path}.ratio" if path == "mask" else path
        assert shown in text, path


def test_every_command_is_there(site: Path) -> None:
    text = text_of(site / "command_line.html")
    for name in NAMES:
        assert f"usage: mft-ray {name} " in text
        assert " ".join(command(name).description.split()) in " ".join(text.split())


def test_every_public_name_is_there(site: Path) -> None:
    text = text_of(site / "api.html")
    for name in mft_ray.__all__:
        if name not in ("Config", "__version__"):  # Config is the page of settings
            assert re.search(rf"\b{name}\b", text), name


def test_every_page_is_in_the_navigation(site: Path) -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in text, page.name


def test_nothing_comes_from_another_host(site: Path) -> None:
    asked = re.compile(
        r"<(?:script|img|iframe)[^>]*src=[\"']?(https?://[^\"'> ]+)|<link[^>]*href=[\"']?(https?://[^\"'> ]+)"
    )
    for page in site.rglob("*.html"):
        assert asked.findall(page.read_text(encoding="utf-8")) == [], page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\([\"']?https?:", style.read_text(encoding="utf-8")), style.name


def test_results_are_pages_too(site: Path) -> None:
    assert (site / "results" / "quickstart.html").exists()
    assert 'href="results/quickstart.html"' in (site / "quickstart.html").read_text()
