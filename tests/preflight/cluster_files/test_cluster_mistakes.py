"""Each kind of mistake in a cluster's file is found, where it is and with what to do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from mft_ray.cli.main import main
from mft_ray.config import Config, parse_config
from mft_ray.errors import UserError
from mft_ray.preflight.cluster_files.look import look_at_file
from mft_ray.preflight.finding import Finding

ROOT = Path(__file__).parents[3]
FILLED_IN = {"YOUR_SHARED_FOLDER": "/mnt/runs", "YOUR_CONFIG": "quickstart", "YOUR_VENV": "/opt/venv"}
AWS, GCP, AZURE, HOSTS = "aws.yaml", "gcp.yaml", "azure.yaml", "hosts.yaml"
RAYJOB, SLURM, DOCKER = "kuberay-rayjob.yaml", "slurm.sbatch", "Dockerfile"


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token is there, and the files are looked at from the top of the repository."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)


def text_of(name: str) -> str:
    text = (ROOT / "cluster" / name).read_text()
    return re.sub(r"YOUR_[A-Z_]*[A-Z]", lambda match: FILLED_IN.get(match[0], match[0].lower().replace("_", "-")), text)


def wrong(path: Path, text: str, config: Config | None = None) -> list[Finding]:
    path.write_text(text)
    return [finding for finding in look_at_file(path, config) if finding.status == "wrong"]


MISTAKES = [
    (AWS, "max_workers: 8\nupscaling", "max_workers: [8\nupscaling", r"line \d+", "is not YAML"),
    (AWS, "max_workers: 8\nupscaling", "max_worker: 8\nupscaling", "schema", "max_worker"),
    (AWS, "head_node_type: head", "head_node_type: boss", "schema", "head_node_type"),
    (AWS, "ray:2.60.0-py311", "ray:2.44.1-py311", r"line \d+: Ray", "2.44.1, and here is "),
    (AWS, "-py311-gpu", "-py39-gpu", r"line \d+: Python", "3.9"),
    (AWS, "ImageId: your-ami-id", "ImageId: YOUR_AMI_ID", r"line \d+", "YOUR_AMI_ID is left to fill in"),
    (AWS, "    - -v /mnt/runs:/mnt/runs\n", "", "run folder", "Add -v /mnt/runs:/mnt/runs"),
    (AWS, "mountpoint -q /mnt/runs || sudo mount", "true || sudo umount", "run folder", "mount nothing at /mnt/runs"),
    (AWS, "; RAY_AUTH_MODE=token ray start", "; ray start", "worker_start_ray_commands", "RAY_AUTH_MODE=token"),
    (AWS, "RAY_AUTH_MODE=token RAY_USAGE", "RAY_USAGE", "head_start_ray_commands", "RAY_AUTH_MODE=token"),
    (AWS, "  ~/.ray/auth_token: ~/.ray/auth_token\n", "", "token", "file_mounts"),
    (AWS, "  ~/mft_ray/mft_ray: mft_ray\n", "  ~/mft_ray/mft_ray: nowhere\n", "file_mounts: nowhere", "top of the"),
    (AWS, "    max_workers: 8\n", "    max_workers: 0\n", "max_workers", "no worker can ever come"),
    (AWS, "idle_timeout_minutes: 10", "idle_timeout_minutes: 0", "idle_timeout_minutes", "is 0"),
    (GCP, "machineType: n2-standard-4\n", "scheduling: [{preemptible: true}]\n", "head: spot", "on-demand"),
    (AZURE, "vmSize: Standard_D4s_v5\n", "vmSize: x\n        priority: Spot\n", "head: spot", "on-demand"),
    (HOSTS, "[your-worker-a, your-worker-b]", "[your-head, your-worker-b]", "worker_ips", "named twice"),
    (HOSTS, "  head_ip: your-head\n", "", "schema", "head_ip"),
    (HOSTS, "mountpoint -q /mnt/runs", "true", "run folder", "mount nothing"),
    (RAYJOB, "kind: RayJob\n", "kind: RayJob\n  indented: too far\n", r"line \d+", "is not YAML"),
    (RAYJOB, "maxReplicas: 8", "maxReplicas: eight", r"spec\..*maxReplicas", "not of type 'integer'"),
    (RAYJOB, "  entrypoint: >-", "  entry_point: >-", "spec", "'entrypoint' is a required property"),
    (RAYJOB, "apiVersion: ray.io/v1\n", "apiVersion: ray.io/v1alpha1\n", "apiVersion", "ray.io/v1"),
    (RAYJOB, 'rayVersion: "2.60.0"', 'rayVersion: "2.46.0"', r"line \d+: Ray", "2.46.0"),
    (RAYJOB, "    authOptions: {mode: token}", "    authOptions: {mode: disabled}", "authOptions", "mode: token"),
    (RAYJOB, "accessModes: [ReadWriteMany]", "accessModes: [ReadWriteOnce]", "mft-runs: accessModes", "ReadWriteMany"),
    (RAYJOB, "{claimName: mft-runs}", "{}", "spec|.*run folder", ""),
    (RAYJOB, "mountPath: /mnt/runs", "mountPath: /runs", "head: run folder", "lies on no claim"),
    (RAYJOB, "run.dir=/mnt/runs/mft-search", "run.dir=/tmp/mft-search", "entrypoint", "run.dir is /tmp"),
    (RAYJOB, "{CPU: 48, GPU: 8}", "{CPU: 48, GPU: 16}", "scaling.cluster_grows_to", "GPU: 8"),
    (RAYJOB, "maxReplicas: 8", "maxReplicas: 0", "maxReplicas", "no worker can ever come"),
    (RAYJOB, "minReplicas: 0", "minReplicas: 9", "gpu: replicas", "contradict"),
    (RAYJOB, "idleTimeoutSeconds: 300", "idleTimeoutSeconds: 5", "idleTimeoutSeconds", "is 5"),
    (SLURM, "#!/bin/bash\n", "", "line 1", "#!/bin/bash"),
    (SLURM, "if [ -e", "if [[ -e", "bash", "syntax error"),
    (SLURM, "#SBATCH --nodes=2", "#SBATCH --nodes=2-4", "--nodes", "one number"),
    (SLURM, "#SBATCH --ntasks-per-node=1", "#SBATCH --ntasks-per-node=4", "--ntasks-per-node", "must be 1"),
    (SLURM, "#SBATCH --cpus-per-task=16\n", "", "--cpus-per-task", "not given"),
    (SLURM, "--gpus-per-node=4", "--gpus-per-node=all", "--gpus-per-node", "give a number"),
    (SLURM, "--time=04:00:00", "--time=4h", "--time", "HH:MM:SS"),
    (SLURM, "#SBATCH --signal=B:USR1@300\n", "", "--signal", "time limit would kill"),
    (SLURM, "--signal=B:USR1@300", "--signal=USR1@300", "--signal", "without B:"),
    (SLURM, "--signal=B:USR1@300", "--signal=B:TERM@300", "--signal", "TERM"),
    (SLURM, "--signal=B:USR1@300", "--signal=B:USR1@10", "--signal", "too late"),
    (SLURM, "trap end_in_order USR1\n", "", "trap", "ends it at once"),
    (SLURM, "#SBATCH --requeue\n", "", "--requeue", "scontrol requeue"),
    (SLURM, "#SBATCH --requeue\n", "#SBATCH --requeue  # again\n", r"line \d+", "without a comment"),
    (SLURM, "set -euo pipefail\n", "set -euo pipefail\n#SBATCH --mem=64G\n", r"line \d+", "after a command"),
    (SLURM, "#SBATCH --requeue\n", "#SBATCH --requeue\n#SBATCH --requeue\n", r"line \d+", "given twice"),
    (SLURM, ' -- \\\n', ' \\\n', "ray symmetric-run", "--min-nodes, and --"),
    (SLURM, "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN\n", "", "token", "RAY_AUTH_MODE=token"),
    (SLURM, "RUNS=/mnt/runs", "RUNS=/tmp/runs", "run folder", "all nodes share"),
    (SLURM, "RUNS=/mnt/runs", "RUNS=runs", "run folder", "absolute path"),
    (DOCKER, "FROM rayproject/ray:2.60.0", "FROM rayproject/ray:2.59.0", r"line \d+: Ray", "2.59.0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "before", "after", "where", "what"), MISTAKES)
def test_a_mistake_is_found(name: str, before: str, after: str, where: str, what: str, tmp_path: Path) -> None:
    text = text_of(name)
    assert before in text

    found = wrong(tmp_path / name, text.replace(before, after))

    assert any(re.fullmatch(f"{where}.*", each.name, re.DOTALL) and what in each.text for each in found), found


@pytest.mark.parametrize("name", [GCP, AZURE, RAYJOB, SLURM])
def test_a_search_that_has_no_room_is_told(name: str, tmp_path: Path, tiny: dict[str, Any]) -> None:
    fits = tiny | {"scaling": {"workers": 8, "gpus_per_worker": 1}}
    too_large = tiny | {"scaling": {"workers": 9, "gpus_per_worker": 1}}

    assert wrong(tmp_path / name, text_of(name), parse_config(fits)) == []
    [found] = wrong(tmp_path / name, text_of(name), parse_config(too_large))
    assert found.name == "room"
    assert "9 x (1 CPU, 1 GPU)" in found.text
    assert "8 such workers fit" in found.text


def test_a_search_for_gpus_where_no_node_has_one_is_told(tmp_path: Path, tiny: dict[str, Any]) -> None:
    config = parse_config(tiny | {"scaling": {"gpus_per_worker": 1}})
    without = {AWS: ("g5.2xlarge", "m6i.xlarge"), GCP: (', "GPU": 1', ""), RAYJOB: (', nvidia.com/gpu: "1"', "")}
    for name, (before, after) in without.items():
        found = wrong(tmp_path / name, text_of(name).replace(before, after), config)
        assert any(each.name == "GPU" and "the search asks for GPUs" in each.text for each in found), name


def test_a_token_that_is_not_made_yet_is_told(tmp_path: Path) -> None:
    (tmp_path / ".ray" / "auth_token").unlink()

    [found] = wrong(tmp_path / AWS, text_of(AWS))

    assert found.name == "file_mounts: ~/.ray/auth_token"
    assert "ray get-auth-token --generate" in found.text


def test_the_count_and_the_status_say_how_many_are_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--cluster", str(ROOT / "cluster" / AWS)]) == 1

    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1].endswith(" 3 wrong")
    assert printed.err == "failed: 3 things are wrong, marked WRONG above.\n"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--cluster", "nowhere.yaml"], "nowhere.yaml is not a file"),
        (["--cluster", "mkdocs.yml"], "is of no kind that is known"),
        (["--cluster", "docs/watch.png"], "is not text"),
        (["--cluster", "cluster/aws.yaml", "--address", "auto"], "Give one of them"),
        (["--cluster", "cluster/aws.yaml", "--set", "search.trials=2"], "Give --config FILE too"),
        (["--config", "quickstart"], "Give --cluster FILE too"),
    ],
)
def test_what_cannot_be_looked_at_is_a_users_mistake(
    given: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *given]) == 2
    assert said in capsys.readouterr().err


def test_another_run_folder_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / AWS).write_text(text_of(AWS))

    with_data = [each for each in look_at_file(tmp_path / AWS, None, Path("/data")) if each.status == "wrong"]

    assert {each.name.partition(" (")[0] for each in with_data} == {"run folder"}


def test_nothing_of_no_kind_is_guessed(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")

    with pytest.raises(UserError, match="of no kind that is known"):
        list(look_at_file(tmp_path / "empty.yaml"))
