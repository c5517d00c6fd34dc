"""What the tests of starting a Ray share."""

import importlib.util
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def private_ray() -> ModuleType:
    spec = importlib.util.spec_from_file_location("private_ray", ROOT / "cluster" / "private_ray.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["private_ray"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """Like tmp_path, but short enough for Ray's socket paths."""
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
