from __future__ import annotations

import glob
from pathlib import Path

import pytest

from mft_ray.training.checkpoint import _plainly_named


@pytest.mark.parametrize("name", ["my[v2]", "a*b", "what?", "a%20b", "plain"])
def test_a_checkpoint_is_found_by_pattern_whatever_its_folders_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "mp_rank_00_model_states.pt").touch()
    with _plainly_named(str(folder)) as given:
        # As DeepSpeed looks for it.
        assert [Path(found).name for found in glob.glob(f"{given}/mp_rank_*_model_states.pt")] == [
            "mp_rank_00_model_states.pt"
        ]
    assert (folder / "mp_rank_00_model_states.pt").exists()
    assert Path(given).exists() == (glob.escape(name) == name)
