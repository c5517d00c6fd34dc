"""The Hugging Face hub: what is an id there, masks and adapters from it, and what to tell where it does not give."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, errors, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from mft_ray.errors import UserError
from mft_ray.models.names import MASK

# What the hub's client raises where there is no answer: an error of the library that speaks HTTP for it.
NoAnswer: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]

# What there is to load of a mask's or an adapter's repository; a model beside it is not fetched.
_FILES = [MASK, "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "backbone.json"]
_UNAUTHORIZED, _FORBIDDEN = 401, 403


def is_hub_id(path: str, owned: bool = False) -> bool:
    """Say whether a path can be a model's id on the hub: nothing here is called so, and the hub allows the name.

    Args:
        path: folder, file or hub id, which may end in ``@revision``.
        owned: whether it must have an owner, as all but a few old models have.
    """
    name = split_revision(path)[0]
    if not name or name.startswith((".", "~")) or os.path.exists(os.path.expanduser(path)):
        return False
    if os.path.isdir(name.split("/")[0]) and "/" in name:  # a mistyped path: an owner is rarely a folder here
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not owned or "/" in name


def split_revision(path: str) -> tuple[str, str | None]:
    """Return the two parts of ``owner/name@revision``; a path of something that is here has no revision.

    Args:
        path: folder, file or hub id.
    """
    if path.startswith((os.sep, ".", "~")) or os.path.exists(path):
        return path, None
    name, _, revision = path.partition("@")
    return name, revision or None


def origin_of(path: str) -> str:
    """Return which commit of which repository a model is, as ``owner/name@commit``; empty for a folder's.

    It is asked of the hub's cache, right after the model was loaded: transformers' config does not always say it.

    Args:
        path: where the model was loaded from.
    """
    if not is_hub_id(path):
        return ""
    name, revision = split_revision(path)
    found = try_to_load_from_cache(name, "config.json", revision=revision)
    # .../snapshots/COMMIT/config.json
    return f"{name}@{Path(found).parent.name}" if isinstance(found, str) else ""


def local_artifact(given: str) -> str:
    """Return where a mask or an adapter lies on this machine; one on the hub is fetched, or taken from its cache.

    Args:
        given: mask file, adapter folder, or hub id, which may end in ``@revision``.

    Raises:
        UserError: the hub does not give it, or it is neither a mask nor an adapter.
    """
    if given.endswith(".safetensors") or not is_hub_id(given, owned=True):
        return given
    name, revision = split_revision(given)
    with told(f"a mask or an adapter {given}, which is nothing on this machine,", name, revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    if (folder / MASK).is_file():
        return str(folder / MASK)
    if (folder / "adapter_config.json").is_file():
        return str(folder)
    raise UserError(
        f"{given} on the hub holds neither {MASK} nor adapter_config.json: it is no mask and no adapter. Give one that "
        "mft-ray push made, or a LoRA adapter; a whole model is given as the model."
    )


@contextmanager
def told(what: str, name: str, revision: str | None = None) -> Iterator[None]:
    """Tell in a line why the hub does not give something.

    Args:
        what: what is asked for, in words.
        name: id of the repository.
        revision: revision that is asked for, if one is.
    """
    host = constants.ENDPOINT
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"Cannot have {what} from {host}: {name} is gated. Accept its terms there, and give the token of that "
            "account in HF_TOKEN or by hf auth login."
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"Cannot have {what} from {host}: {name} has no revision {revision}. Give a branch, a tag or a whole "
            "commit hash of it."
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"Cannot have {what} from {host}: there is no {name}, or it is private. If it is private, give a token "
            "that may read it in HF_TOKEN or by hf auth login."
        ) from None
    except HfHubHTTPError as error:
        raise UserError(f"Cannot have {what} from {host}: {refusal(error)}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, NoAnswer, ConnectionError) as error:
        raise UserError(
            f"Cannot have {what} from {host}: {no_network(error)} What was fetched before is found without a network; "
            "or give a file or a folder."
        ) from None


def refusal(error: HfHubHTTPError) -> str:
    """Return what the hub's answer means and what to do.

    Args:
        error: the answer.
    """
    status = error.response.status_code
    said = (error.server_message or str(error)).strip().splitlines()[0]
    if status == _UNAUTHORIZED:
        return (
            f"the hub does not accept the token ({said}). Make a new one, and give it by hf auth login or in HF_TOKEN."
        )
    if status == _FORBIDDEN:
        return (
            f"the hub refuses it ({said}). Give a token that may do this, in HF_TOKEN or by hf auth login, or the name "
            "of a repository that is yours."
        )
    return f"the hub answers {status} ({said}). Try again later; https://status.huggingface.co says whether it is down."


def no_network(error: Exception) -> str:
    """Return why the hub cannot be reached.

    Args:
        error: what its client raised.
    """
    if constants.HF_HUB_OFFLINE or isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that nothing is asked of the network; unset it."
    cause = error.__cause__ or error
    said = str(cause).strip().splitlines() or [type(cause).__name__]
    return f"it cannot be reached ({said[0]}). Check the network, proxies (HTTPS_PROXY) and HF_ENDPOINT."
