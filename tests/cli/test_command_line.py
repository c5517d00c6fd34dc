"""The command line as a whole: quick, told of a mistake at once, and the same from a module, a script or an API."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mft_ray
from mft_ray.cli.main import NAMES, command, main, parser
from mft_ray.config import bundled, load_config
from mft_ray.errors import UserError

HEAVY = ("torch", "transformers", "ray", "datasets", "deepspeed", "optuna")


def fresh(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=400)


@pytest.mark.parametrize("given", [[name, "--help"] for name in NAMES] + [["--help"], ["tune", "--confg", "x"]])
def test_help_and_a_mistyped_option_wait_for_nothing(given: list[str]) -> None:
    """What is slow is not imported; half a second is what that takes on a machine that does nothing else."""
    ended = fresh(
        "import sys\nfrom mft_ray.cli.main import main\n"
        f"try:\n    main({given!r})\nexcept SystemExit:\n    pass\n"
        f"print('loaded', *(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    )
    assert ended.stderr.splitlines()[-1] == "loaded", ended.stderr


def test_importing_the_package_waits_for_nothing() -> None:
    ended = fresh(f"import mft_ray, sys; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert ended.stdout.strip() == "[]"


def test_every_command_is_named_with_what_it_does(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    words = " ".join(capsys.readouterr().out.split())
    for name in NAMES:
        assert f"{name} {command(name).summary}" in words


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mft_ray {mft_ray.__version__}\n"


def test_no_command_and_an_unknown_one_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    for given in ([], ["tuen"]):
        with pytest.raises(SystemExit) as ended:
            main(given)
        assert ended.value.code == 2
        assert "usage: mft-ray" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", shell])
    script = capsys.readouterr().out
    assert all(name in script for name in NAMES)
    assert "--look-again" in script


def test_bash_completes_for_real(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--print-completion", "bash"])
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    ask = (
        f"source {script}; COMP_WORDS=(mft-ray exp); COMP_CWORD=1; "
        "$(complete -p mft-ray | sed 's/.*-F \\([^ ]*\\).*/\\1/') ; echo ${COMPREPLY[@]}"
    )
    ended = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, timeout=30)
    assert set(ended.stdout.split()) == {"experiment", "export"}, ended.stderr


def test_options_are_described_in_words() -> None:
    for name in NAMES:
        [subparsers] = [action for action in parser((name,))._actions if action.dest == "command"]
        assert subparsers.choices is not None
        for action in subparsers.choices[name]._actions:  # type: ignore[index]
            if action.dest not in ("split",):
                assert action.help, (name, action.dest)


def test_a_search_space_is_found_by_its_name_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert {"quickstart", "gsm8k_smollm2", "experiments/toy", "paper/llama2-7b-math"} <= set(bundled.names())
    assert load_config("quickstart").run.name == "quickstart"
    (tmp_path / "quickstart").write_text("run: {name: mine}\nmodel: {path: x}\n")
    assert load_config("quickstart").run.name == "mine"  # a file of that name comes first
    with pytest.raises(UserError, match=r"or one of these names: .*quickstart"):
        load_config("quikstart")


def test_the_job_is_the_command(tmp_path: Path) -> None:
    """`ray job submit -- python -m mft_ray.tune` is what people have in their scripts."""
    for entry in (["-m", "mft_ray.tune"], ["-m", "mft_ray", "tune"]):
        ended = subprocess.run(
            [sys.executable, *entry, "--config", "none.yaml"],
            capture_output=True,
            text=True,
            timeout=400,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(mft_ray.__file__).parents[1])])},
        )
        assert ended.returncode == 2
        assert ended.stderr.startswith("error: Cannot read the config none.yaml")


@pytest.mark.parametrize("given", [["--out", "s3://b/x"], ["--out=gs://b/x"], ["--dry-run", "s3://b/x"]])
def test_only_a_run_can_be_in_an_object_store(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", "runs/x", "me/x", *given]) == 2
    said = capsys.readouterr().err
    assert "only a run can be in an object store: run.dir of mft-ray tune, compare and experiment" in said
