"""What a search asks of trackers is seen to before anything is written, and told as a person can use it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from mft_ray.config import Config, TrackingConfig, load_config, parse_config
from mft_ray.config.stages import stages_of
from mft_ray.errors import UserError
from mft_ray.searches.pipeline import search
from mft_ray.tracking.checks import check_trackers


def tracking(**tree: Any) -> TrackingConfig:
    return parse_config({"model": {"path": "mine"}, "tracking": tree}).tracking


def refused(**tree: Any) -> str:
    with pytest.raises(UserError) as caught:
        tracking(**tree)
    return str(caught.value)


def test_nothing_is_sent_by_default() -> None:
    its = tracking()
    assert (its.tensorboard, its.wandb, its.mlflow, its.services) == (True, None, None, [])


def test_a_setting_makes_the_section(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {path: mine}\n")
    config = load_config(path, ["tracking.mlflow.uri=http://127.0.0.1:5000", "tracking.wandb.project=masks"])
    assert config.tracking.services == ["tracking.wandb", "tracking.mlflow"]


def test_where_results_are_shown_may_change_at_any_time() -> None:
    assert stages_of("tracking.wandb") == stages_of("tracking.mlflow.uri") == ()


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"wandb": {}}, "no tracking.wandb.project"),
        ({"wandb": {"project": ""}}, "tracking.wandb.project"),
        ({"wandb": {"project": "p", "api_key": "k"}}, "unknown key tracking.wandb.api_key"),
        ({"wandb": {"project": "p", "artifacts": ["model"]}}, "'config', 'mask' or 'report'"),
        ({"mlflow": {"uri": "mlruns"}}, "http://127.0.0.1:5000"),
        ({"mlflow": {"uri": "sqlite:///mlflow.db"}}, "mlflow server --backend-store-uri sqlite:///mlflow.db"),
        ({"comet": {}}, "unknown key tracking.comet"),
    ],
)
def test_what_cannot_be_is_refused(tree: dict[str, Any], said: str) -> None:
    assert said in refused(**tree)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    said = refused(mlflow={"uri": "https://me:hunter2@tracking.example.org"})
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert "hunter2" not in said


def without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a library is not installed, which it may be here."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda which, *rest: None if which == name else found(which))


@pytest.mark.parametrize(("name", "tree"), [("wandb", {"project": "p"}), ("mlflow", {"uri": "http://127.0.0.1:5000"})])
def test_a_missing_library_is_named(name: str, tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    without(name, monkeypatch)
    with pytest.raises(UserError, match=r"pip install 'mft_ray\[tracking\]'"):
        check_trackers(tracking(**{name: tree}))


def test_it_is_told_before_anything_is_written(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without("wandb", monkeypatch)
    tree = tiny_config.model_dump()
    tree["run"]["dir"], tree["tracking"] = str(tmp_path / "run"), {"wandb": {"project": "p"}}
    with pytest.raises(UserError, match="needs wandb, which is not installed"):
        search(parse_config(tree))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow  # with what `make test-all` installs
class TestWithTheLibraries:
    def test_a_missing_key(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE"):
            monkeypatch.delenv(name, raising=False)
        with pytest.raises(UserError, match=r"Set WANDB_API_KEY in the environment; or WANDB_MODE=offline"):
            check_trackers(tracking(wandb={"project": "p"}))

    def test_a_server_of_weights_and_biases_that_is_away(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("wandb")
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        with pytest.raises(UserError, match="or does not answer") as caught:
            check_trackers(tracking(wandb={"project": "p"}))
        assert "0123456789" not in str(caught.value)

    def test_a_server_of_mlflow_that_is_away(self) -> None:
        pytest.importorskip("mlflow")
        with pytest.raises(UserError, match=r"tracking.mlflow.uri is http://127.0.0.1:1, and no MLflow server answers"):
            check_trackers(tracking(mlflow={"uri": "http://127.0.0.1:1"}))
