"""What asked-for trackers need, seen to before anything is trained: library, key, server."""

from __future__ import annotations

import importlib.util
import os

from mft_ray.config import MlflowConfig, TrackingConfig
from mft_ray.errors import UserError
from mft_ray.tracking.follow import without_secrets
from mft_ray.tracking.mlflow_server import prepare_environment as prepare_mlflow
from mft_ray.tracking.wandb_runs import offline
from mft_ray.tracking.wandb_runs import prepare_environment as prepare_wandb
from mft_ray.utils.console import log_warning

_WANDB, _TIMEOUT_S = "https://api.wandb.ai", 20
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def check_trackers(tracking: TrackingConfig) -> None:
    """Refuse what a search could not be shown in.

    Args:
        tracking: what is asked for.

    Raises:
        UserError: a library is missing, there is no key or it is refused, or the server does not answer.
    """
    for name in ("wandb", "mlflow"):
        if getattr(tracking, name) is not None and importlib.util.find_spec(name) is None:
            raise UserError(
                f"tracking.{name} needs {name}, which is not installed. Run pip install 'mft_ray[tracking]', or leave "
                f"tracking.{name} out."
            )
    if tracking.wandb is not None:
        _check_wandb()
    if tracking.mlflow is not None:
        _check_mlflow(tracking.mlflow)


def _check_wandb() -> None:
    if offline():
        mode = os.environ["WANDB_MODE"]
        log_warning(
            f"WANDB_MODE is {mode}: nothing is sent to Weights & Biases. wandb sync sends what offline runs have kept"
        )
        return
    if not any(os.environ.get(name) for name in _KEYS):
        raise UserError(
            f"tracking.wandb needs a key, and none of {' and '.join(_KEYS)} is set. Set WANDB_API_KEY in the "
            "environment; or WANDB_MODE=offline, to keep runs on the disk and send them later; or leave tracking.wandb "
            "out."
        )
    prepare_wandb()
    import requests
    import wandb

    try:
        # Of a server that cannot be reached the library itself would say nothing for a long time.
        requests.head(os.environ.get("WANDB_BASE_URL", _WANDB), timeout=_TIMEOUT_S)
        known = wandb.login(prompt=False, verify=True)
    except Exception as error:
        raise UserError(
            f"Weights & Biases does not take the key in the environment, or does not answer "
            f"({without_secrets(error)}). Look at WANDB_API_KEY (and WANDB_BASE_URL, for a server of your own), or set "
            "WANDB_MODE=offline."
        ) from None
    if not known:
        raise UserError("Weights & Biases does not take the key in the environment. Look at WANDB_API_KEY.")


def _check_mlflow(config: MlflowConfig) -> None:
    prepare_mlflow()
    from mlflow import MlflowClient

    try:
        MlflowClient(tracking_uri=config.uri).search_experiments(max_results=1)
    except Exception as error:
        raise UserError(
            f"tracking.mlflow.uri is {config.uri}, and no MLflow server answers there ({without_secrets(error)}). "
            "Start it, or look at the address and at what the server asks for (MLFLOW_TRACKING_TOKEN, or "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment)."
        ) from None
