"""The cluster files, as far as they can be checked without a cloud: against Ray's own schema and rules."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from mft_ray.cli.main import main

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
VM_FILES = ("aws.yaml", "gcp.yaml", "azure.yaml")
PLACEHOLDER = re.compile(r"YOUR_[A-Z_]+")


@pytest.fixture(params=VM_FILES)
def vm_config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return load(request.param)[0]


@pytest.fixture
def claim_and_job() -> tuple[dict[str, Any], dict[str, Any]]:
    claim, job = load("kuberay-rayjob.yaml")
    return claim, job


def load(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def supported_ray() -> Requirement:
    """The ray that pyproject.toml asks for."""
    found = re.search(r'"(ray\[[^"]*)"', (ROOT / "pyproject.toml").read_text())
    assert found
    return Requirement(found.group(1))


def test_vm_file_fits_rays_schema(vm_config: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())

    jsonschema.validate(vm_config, schema)


def test_vm_file_passes_the_checks_of_ray_up(vm_config: dict[str, Any]) -> None:
    prepared = prepare_config(vm_config)
    validate_config(prepared)

    # prepare_config fills in what a node type lacks: these are the limits that will hold
    gpu = prepared["available_node_types"]["gpu"]
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, 8)
    assert prepared["available_node_types"]["head"]["max_workers"] == 0


def test_vm_workers_are_spot_and_the_head_is_not(vm_config: dict[str, Any]) -> None:
    def is_spot(node_type: str) -> bool:
        node = vm_config["available_node_types"][node_type]["node_config"]
        on_aws = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
        on_azure = node.get("azure_arm_parameters", {}).get("priority") == "Spot"
        return on_aws or on_azure or any(item.get("preemptible") for item in node.get("scheduling", []))

    assert is_spot("gpu")
    assert not is_spot("head")


def test_vm_file_mounts_are_what_the_package_needs(vm_config: dict[str, Any]) -> None:
    mounts = vm_config["file_mounts"]

    token = mounts.pop("~/.ray/auth_token")
    assert token == "~/.ray/auth_token"
    assert set(mounts.values()) == {"mft_ray", "pyproject.toml", "README.md", "LICENSE", "tune_spaces", "cluster"}
    assert all(remote == f"~/mft_ray/{local}" for remote, local in mounts.items())
    assert "pip install ~/mft_ray" in vm_config["setup_commands"]


def test_vm_nodes_ask_for_a_token(vm_config: dict[str, Any]) -> None:
    started = [*vm_config["head_start_ray_commands"], *vm_config["worker_start_ray_commands"]]
    starts = [command for command in started if "ray start" in command]

    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command.partition("ray start")[0] for command in starts)


def test_rayjob_asks_for_a_token(claim_and_job: tuple[dict[str, Any], dict[str, Any]]) -> None:
    assert claim_and_job[1]["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_vm_runs_are_mounted_on_the_host_and_in_the_container(vm_config: dict[str, Any]) -> None:
    assert any("mount -t nfs" in command for command in vm_config["initialization_commands"])
    assert "-v /mnt/runs:/mnt/runs" in vm_config["docker"]["run_options"]


@pytest.mark.parametrize("name", [*VM_FILES, "hosts.yaml", "kuberay-rayjob.yaml", "Dockerfile", "../docs/clusters.md"])
def test_ray_versions_are_the_ones_we_support(name: str) -> None:
    text = (CLUSTER / name).read_text()
    versions = re.findall(r"(?:ray[:-](?:ray-)?|rayVersion: \")(\d+\.\d+\.\d+)", text)

    assert versions
    assert all(version in supported_ray().specifier for version in versions), versions


def test_rayjob_structure(claim_and_job: tuple[dict[str, Any], dict[str, Any]]) -> None:
    _, job = claim_and_job
    cluster = job["spec"]["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]

    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["entrypoint"].startswith("python -m mft_ray.tune --config ")
    assert "\n" not in job["spec"]["entrypoint"]
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (0, 0, 8)
    assert cluster["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "0.0.0.0"


def test_the_search_is_told_how_far_the_rayjobs_cluster_grows(
    claim_and_job: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    spec = claim_and_job[1]["spec"]
    [workers] = spec["rayClusterSpec"]["workerGroupSpecs"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    each = {"CPU": int(limits["cpu"]), "GPU": int(limits["nvidia.com/gpu"])}
    overrides = shlex.split(spec["entrypoint"])

    told = next(text for text in overrides if text.startswith("scaling.cluster_grows_to="))
    assert yaml.safe_load(told.partition("=")[2]) == {
        name: count * workers["maxReplicas"] for name, count in each.items()
    }


def test_rayjob_pods_share_the_image_and_the_runs(
    claim_and_job: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    claim, job = claim_and_job
    cluster = job["spec"]["rayClusterSpec"]
    pods = [cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]]
    specs = [pod["template"]["spec"] for pod in pods]
    containers = [spec["containers"][0] for spec in specs]

    assert (claim["apiVersion"], claim["kind"]) == ("v1", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert containers[0]["image"] == containers[1]["image"]
    for spec, container in zip(specs, containers, strict=True):
        assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in spec["volumes"]}
        assert spec["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    assert "nvidia.com/gpu" in containers[1]["resources"]["limits"]
    assert "nvidia.com/gpu" not in containers[0]["resources"]["limits"]


@pytest.mark.parametrize(
    ("name", "placeholders"),
    [
        ("aws.yaml", {"YOUR_AMI_ID", "YOUR_EFS_ID"}),
        ("gcp.yaml", {"YOUR_PROJECT_ID", "YOUR_FILESTORE_IP", "YOUR_FILESTORE_SHARE"}),
        ("azure.yaml", {"YOUR_RESOURCE_GROUP", "YOUR_SUBSCRIPTION_ID", "YOUR_STORAGE_ACCOUNT", "YOUR_SHARE"}),
        ("hosts.yaml", {"YOUR_HEAD", "YOUR_WORKER_A", "YOUR_WORKER_B", "YOUR_USER", "YOUR_KEY"}),
        ("kuberay-rayjob.yaml", {"YOUR_REGISTRY", "YOUR_SHARED_STORAGE_CLASS"}),
    ],
)
def test_what_is_left_to_fill_in(name: str, placeholders: set[str]) -> None:
    code = "\n".join(re.split(r"(?:^|\s)# ", line)[0] for line in (CLUSTER / name).read_text().splitlines())

    assert set(PLACEHOLDER.findall(code)) == placeholders


def test_config_that_a_rayjob_names_is_in_the_repository(
    claim_and_job: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    config = re.search(r"--config /opt/mft_ray/(\S+)", claim_and_job[1]["spec"]["entrypoint"])

    assert config
    assert (ROOT / config.group(1)).is_file()


@pytest.mark.parametrize("name", [*VM_FILES, "hosts.yaml", "kuberay-rayjob.yaml", "slurm.sbatch", "Dockerfile"])
def test_the_doctor_finds_nothing_wrong_once_placeholders_are_filled_in(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("token")
    (tmp_path / name).write_text(filled_in((CLUSTER / name).read_text()))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(ROOT)

    assert main(["doctor", "--cluster", str(tmp_path / name)]) == 0
    printed = capsys.readouterr()
    assert "WRONG" not in printed.out
    assert printed.out.endswith(" 0 wrong\n")
    assert printed.err == ""


def filled_in(text: str) -> str:
    values = {"YOUR_SHARED_FOLDER": "/mnt/runs", "YOUR_CONFIG": "quickstart", "YOUR_VENV": "/opt/venv"}
    return PLACEHOLDER.sub(lambda match: values.get(match[0], match[0].lower().replace("_", "-")), text)


def test_dockerfile_copies_what_the_package_needs() -> None:
    copied = re.findall(r"^COPY --chown=ray:users (.*) \S+$", (CLUSTER / "Dockerfile").read_text(), re.MULTILINE)

    sources = {source for line in copied for source in line.split()}
    assert sources == {"mft_ray", "pyproject.toml", "README.md", "LICENSE", "tune_spaces", "cluster"}
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize(("tool", "options", "name"), [
    ("shellcheck", ["--severity=warning"], "slurm.sbatch"),
    ("hadolint", [], "Dockerfile"),
])  # fmt: skip
def test_linters_find_nothing(tool: str, options: list[str], name: str) -> None:
    found = shutil.which(tool, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{tool} is not installed (pip install {tool}-{'py' if tool == 'shellcheck' else 'bin'})")

    ended = subprocess.run([found, *options, str(CLUSTER / name)], capture_output=True, text=True)

    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
