"""To the hub and back: the server is ours (`stand_in_hub`, on this machine), the client is the real huggingface_hub.

What these tests show is that our calls and the client's requests are right, as far as our server is like the real hub.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from finished_run import finished_run
from small_models import save_tiny
from stand_in_hub import READER, WRITER, StandInHub, stand_in_hub

from mft_ray.masking import load_mask
from mft_ray.models.adapter import backbone_of
from mft_ray.models.loading import load_model
from mft_ray.runs.folder import RunFolder

HELPERS = Path(__file__).parents[1] / "helpers"


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with stand_in_hub() as served:
        yield served


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return finished_run(tmp_path / "run")


def python(
    hub: StandInHub | str, home: Path, code: str, token: str | None = WRITER
) -> subprocess.CompletedProcess[str]:
    """Run a program whose client speaks to our hub: it reads where that is when it is imported."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING_FACE"))}
    settings = {
        "HF_ENDPOINT": hub if isinstance(hub, str) else hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": os.pathsep.join([str(HELPERS), kept.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        **({"HF_TOKEN": token} if token else {}),
    }
    command = [sys.executable, "-c", f"from mft_ray.cli.main import main\n{code}"]
    return subprocess.run(command, env={**kept, **settings}, text=True, capture_output=True, timeout=600, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_others_load_what_was_pushed(hub: StandInHub, run: RunFolder, tmp_path: Path) -> None:
    pushed = python(
        hub,
        tmp_path / "mine",
        f"print(main(['push', {str(run.root)!r}, 'me/mask', '--backbone', 'me/fft', '--private']))",
    )
    assert pushed.stdout.endswith("0\n"), pushed.stderr
    assert f"{hub.url}/me/mask" in pushed.stdout
    assert set(hub.repositories) == {"me/mask", "me/fft"}
    mask, backbone = hub.repositories["me/mask"], hub.repositories["me/fft"]
    assert (mask.private, backbone.private) == (True, True)
    assert (len(mask.commits), len(backbone.commits)) == (1, 1)
    assert set(mask.files) == {"README.md", "mask.safetensors"}
    assert f"me/fft@{backbone.head}" in mask.files["README.md"].decode()

    loaded = python(
        hub,
        tmp_path / "theirs",
        f"""
import mft_ray, torch
from mft_ray.masking import apply_masks, load_mask
from mft_ray.models.hub import local_artifact
found = mft_ray.load_masked("me/fft", "me/mask").state_dict()
pinned = mft_ray.load_masked("me/fft@{backbone.head}", "me/mask@{mask.head}").state_dict()
wanted = mft_ray.load_masked({str(run.fft / "best")!r}, {str(run.trial("aa11") / "mask.safetensors")!r}).state_dict()
assert all(torch.equal(found[name], wanted[name]) and torch.equal(pinned[name], wanted[name]) for name in wanted)
assert load_mask(local_artifact("me/mask")).origin == "me/fft@{backbone.head}"
assert main(["inspect", "me/mask", "--json"]) == 0
assert main(["export", "--backbone", "me/fft", "--mask", "me/mask", "--out", {str(tmp_path / "out")!r}]) == 0
""",
    )
    assert loaded.returncode == 0, loaded.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()

    # What was fetched once is found without a network, and what was not is told.
    later = python(
        "http://127.0.0.1:9",
        tmp_path / "theirs",
        """
import mft_ray
mft_ray.load_masked("me/fft", "me/mask")
main(["inspect", "me/other"])
""",
    )
    assert later.returncode == 0, later.stderr
    assert "cannot be reached" in later.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_interrupted_upload_leaves_nothing_half_and_goes_on(hub: StandInHub, run: RunFolder, tmp_path: Path) -> None:
    hub.takes = 1  # the FFT model's weights, not the mask
    push = f"print(main(['push', {str(run.root)!r}, 'me/mask', '--backbone', 'me/fft']))"
    cut = python(hub, tmp_path / "home", push)
    assert cut.stdout.endswith("2\n"), cut.stderr
    assert "Cannot upload to me/mask; nothing in it has changed. Run the same command again to go on" in cut.stderr
    assert hub.repositories["me/mask"].commits == {}
    assert not list(run.work.glob("push-*"))
    hub.takes = 1
    again = python(hub, tmp_path / "home", push)
    assert again.stdout.endswith("0\n"), again.stderr
    assert len(hub.repositories["me/fft"].commits) == 1  # it was there, and has not changed
    assert len([line for line in hub.asked if line.startswith("PUT")]) == 3  # of the mask twice
    assert "mask.safetensors" in hub.repositories["me/mask"].files


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_hub_refuses_is_told(hub: StandInHub, run: RunFolder, tmp_path: Path) -> None:
    hub.add("me/secret", {"mask.safetensors": b""}, private=True)
    hub.add("me/public", {"README.md": b"---\n---\n"})
    hub.add("me/full", {"config.json": b"{}"})
    root = str(run.root)
    given = [
        ["push", root, "other/mask"],
        ["push", root, "me/public", "--private"],
        ["push", root, "me/full"],
        ["inspect", "me/nothing"],
        ["inspect", "me/public"],
        ["inspect", "me/public@v9"],
        ["export", "--backbone", "me/none", "--mask", "me/public", "--out", str(tmp_path / "out")],
    ]
    told = python(hub, tmp_path / "home", f"import json\nprint(json.dumps([main(each) for each in {given!r}]))")
    assert json.loads(told.stdout.splitlines()[-1]) == [2] * len(given), told.stderr
    for line, says in zip(
        [line for line in told.stderr.splitlines() if line.startswith("error: ")],
        [
            "the hub refuses it (You don't have the rights to create a model under the namespace",
            "is there already and is public, and --private was given",
            "holds config.json: with a mask beside it",
            "there is no me/nothing, or it is private",
            "holds neither mask.safetensors nor adapter_config.json",
            "me/public has no revision v9",
            "holds neither mask.safetensors nor adapter_config.json",
        ],
        strict=True,
    ):
        assert says in line
    assert set(hub.repositories) == {"me/secret", "me/public", "me/full"}

    bad = [["push", root, "me/mask"], ["inspect", "me/secret"]]
    code = f"for each in {bad!r}: main(each)"
    assert "the hub does not accept the token" in python(hub, tmp_path / "other", code, token="hf_wrong").stderr
    read_only = python(hub, tmp_path / "other", code, token=READER).stderr
    assert "the hub refuses it" in read_only
    assert "there is no me/secret, or it is private" in read_only
    away = python("http://127.0.0.1:9", tmp_path / "other", f"main({bad[0]!r})").stderr
    assert "cannot be reached" in away


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_mask_names_the_revision_of_its_backbone(hub: StandInHub, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", layers=2)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    first = hub.add("lab/base", files)
    code = f"""
from pathlib import Path
from finished_run import finished_run
run = finished_run(Path({str(tmp_path / "run")!r}), model="lab/base")
print(main(["push", str(run.root), "me/mask"]))
print(main(["push", str(run.root), "me/mask2", "--backbone", "me/fft"]))
print(main(["push", str(run.root), "me/model", "--model"]))
"""
    done = python(hub, tmp_path / "home", code)
    assert [line for line in done.stdout.splitlines() if len(line) == 1] == ["0", "2", "0"], done.stderr
    assert "The backbone is on the hub already, as lab/base" in done.stderr
    card = hub.repositories["me/mask"].files["README.md"].decode()
    assert "base_model: lab/base\n" in card
    assert "base_model_relation: adapter\n" in card
    assert "license: apache-2.0\n" in card
    assert f'load_masked("lab/base@{first}", "me/mask")' in card
    assert "base_model_relation: finetune\n" in hub.repositories["me/model"].files["README.md"].decode()

    model = load_model(folder)
    model.model.norm.weight.data.mul_(2)
    model.save_pretrained(folder)
    hub.add("lab/base", {path.name: path.read_bytes() for path in folder.iterdir()})
    code = f"""
import mft_ray
mft_ray.load_masked("lab/base@{first}", "me/mask")
try:
    mft_ray.load_masked("lab/base", "me/mask")
except mft_ray.UserError as error:
    print(error)
"""
    other = python(hub, tmp_path / "home", code)
    assert f"Give lab/base@{first}; any change" in other.stdout, other.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", ["mft", "lora"])
def test_training_writes_down_which_commit_it_was(hub: StandInHub, tmp_path: Path, method: str) -> None:
    folder = save_tiny(tmp_path / "base", layers=2)
    commit = hub.add("lab/base", {path.name: path.read_bytes() for path in folder.iterdir()})
    rows = [json.dumps({"prompt": f"say {number}", "answer": f"{number}"}) for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    config = {
        "model": {"path": "lab/base"},
        "data": {
            "task": "chat",
            "train": str(tmp_path / "rows.jsonl"),
            "prompt_column": "prompt",
            "answer_column": "answer",
            "n_validation": 4,
            "n_test": 4,
        },
        "train": {"steps": 1, "batch_size": 2},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    given = ["train", "--method", method, "--config", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "out")]
    done = python(hub, tmp_path / "home", f"raise SystemExit(main({given!r}))")
    assert done.returncode == 0, done.stdout + done.stderr
    if method == "mft":
        assert load_mask(tmp_path / "out" / "mask.safetensors").origin == f"lab/base@{commit}"
    else:
        assert (backbone_of(tmp_path / "out" / "adapter") or ("", ""))[1] == f"lab/base@{commit}"
