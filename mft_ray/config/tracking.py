"""Where a search is shown beside its run folder: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from mft_ray.config.section import Section

ArtifactName = Literal["config", "mask", "report"]
_ARTIFACTS = (
    "files that go with the verdict: config (config.yaml), mask (best/ without the model), report (report.html)"
)


class WandbConfig(Section):
    """Weights & Biases; the key is read from the environment, ``WANDB_API_KEY``."""

    project: str = Field(min_length=1, description="name of the project")
    entity: str | None = Field(None, min_length=1, description="user or team; null: the key's own")
    artifacts: list[ArtifactName] = Field([], description=_ARTIFACTS)


class MlflowConfig(Section):
    """An MLflow server; what it asks for is read from the environment, such as ``MLFLOW_TRACKING_TOKEN``."""

    uri: str = Field(description="address of the server, such as http://127.0.0.1:5000")
    experiment: str = Field("mft_ray", min_length=1, description="name of the experiment; it is made if there is none")
    artifacts: list[ArtifactName] = Field([], description=_ARTIFACTS)

    @field_validator("uri")
    @classmethod
    def _server(cls, given: str) -> str:
        parts = urlsplit(given)
        if "@" in parts.netloc:
            raise ValueError(
                "a name or a password has no place in it, for config.yaml is saved with the run: set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the environment"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                "it is the address of a server, such as http://127.0.0.1:5000; on this machine one is started with "
                "mlflow server --backend-store-uri sqlite:///mlflow.db"
            )
        return given


class TrackingConfig(Section):
    """Where a search (mft-ray tune) is shown beside its run folder."""

    tensorboard: bool = Field(True, description="write RUN/tensorboard")
    wandb: WandbConfig | None = Field(None, description="Weights & Biases; null is off")
    mlflow: MlflowConfig | None = Field(None, description="an MLflow server; null is off")

    @property
    def services(self) -> list[str]:
        """Settings of what is asked for beyond the run folder."""
        return [f"tracking.{name}" for name in ("wandb", "mlflow") if getattr(self, name) is not None]
