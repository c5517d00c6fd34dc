"""The wheel holds what a search needs where there is no checkout. `.ci/try-wheel` installs it and searches."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import mft_ray

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    [file] = out.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_it_holds_code_search_spaces_cluster_files_and_licence(installed: Path) -> None:
    for folder in ("mft_ray", "tune_spaces", "cluster"):
        files = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()}
        files = {path for path in files if "__pycache__" not in path.parts}
        there = installed / "mft_ray" / ("" if folder == "mft_ray" else folder)
        assert {path for path in files if not (there / path).is_file()} == set()
    assert (installed / f"mft_ray-{mft_ray.__version__}.dist-info" / "licenses" / "LICENSE").is_file()


def test_nothing_of_the_tests_is_in_it(installed: Path) -> None:
    assert {path.name for path in installed.iterdir()} == {"mft_ray", f"mft_ray-{mft_ray.__version__}.dist-info"}


def test_its_metadata_says_version_licence_and_command(installed: Path) -> None:
    info = installed / f"mft_ray-{mft_ray.__version__}.dist-info"
    said = Parser().parsestr((info / "METADATA").read_text())
    assert said["Version"] == mft_ray.__version__
    assert said["License-Expression"] == "Apache-2.0"
    assert "mft-ray = mft_ray.cli.main:run" in (info / "entry_points.txt").read_text()


def test_a_search_space_is_found_in_it_by_name(installed: Path, tmp_path: Path) -> None:
    code = (
        "import mft_ray, mft_ray.config as c; from mft_ray.config import bundled;"
        "print(mft_ray.__file__); print(bundled.spaces_folder()); print(c.load_config('quickstart').run.name)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )
    assert ended.stdout.splitlines() == [
        str(installed / "mft_ray" / "__init__.py"),
        str(installed / "mft_ray" / "tune_spaces"),
        "quickstart",
    ], ended.stderr
