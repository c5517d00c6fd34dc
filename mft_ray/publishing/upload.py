"""Repositories of the Hugging Face hub, by its own client and the user's own token."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RepositoryNotFoundError

from mft_ray.errors import UserError
from mft_ray.models.hub import NoAnswer, no_network, refusal
from mft_ray.models.names import MASK
from mft_ray.publishing.publication import Kind

# The file by which a repository is loaded as one of these.
_LOADED_BY: dict[Kind, str] = {"mask": MASK, "adapter": "adapter_config.json", "model": "config.json"}


class Hub:
    """The hub, as the user of a token sees it.

    Raises:
        UserError: there is no token, the hub does not know it, or cannot be reached.
    """

    def __init__(self) -> None:
        token = get_token()
        if token is None:
            raise UserError(
                "There is no token of the Hugging Face hub on this machine, and to publish needs one that may write. "
                "Make one at https://huggingface.co/settings/tokens, and give it by hf auth login or in HF_TOKEN; "
                "--dry-run FOLDER writes what would be published, without."
            )
        self._api = HfApi(token=token)
        with _told("ask who you are"):
            self._api.whoami()

    def check(self, repo: str, kind: Kind, private: bool) -> None:
        """Refuse a repository that something else is in, or that others can read and should not.

        Args:
            repo: id of the repository, which may not be there yet.
            kind: what it is to hold.
            private: whether only its owner may read it.

        Raises:
            UserError: saying what is in the way.
        """
        with _told(f"look at {repo}"):
            try:
                found = self._api.model_info(repo)
            except RepositoryNotFoundError:
                return
        if private and not found.private:
            raise UserError(
                f"{repo} is there already and is public, and --private was given. Make it private in its settings, or "
                "give another name."
            )
        names = {file.rfilename for file in found.siblings or []}
        if others := [other for other, file in _LOADED_BY.items() if other != kind and file in names]:
            raise UserError(
                f"{repo} is there already and holds {_LOADED_BY[others[0]]}: with a {kind} beside it, it could not be "
                "said which is meant. Give another name."
            )

    def send(self, repo: str, folder: Path, private: bool, message: str) -> tuple[str, str]:
        """Upload a folder in one commit; the repository is made if it is not there.

        Args:
            repo: id of the repository.
            folder: folder with all that goes in.
            private: whether a new repository can be read by its owner alone.
            message: message of the commit.

        Returns:
            Address of the repository, and hash of the commit.

        Raises:
            UserError: the hub refuses, or cannot be reached.
        """
        with _told(f"make {repo}"):
            url = self._api.create_repo(repo, private=private or None, exist_ok=True)
        with _told(f"upload to {repo}", "; nothing in it has changed. Run the same command again to go on"):
            commit = self._api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
        return str(url), commit.oid


@contextmanager
def _told(what: str, state: str = "") -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        raise UserError(f"Cannot {what}{state}: {refusal(error)}") from None
    except (OfflineModeIsEnabled, NoAnswer, ConnectionError) as error:
        raise UserError(f"Cannot {what} at {constants.ENDPOINT}{state}: {no_network(error)}") from None
    except ValueError as error:  # the hub's own check of a card
        raise UserError(f"Cannot {what}{state}: {str(error).strip()}") from None
    except RuntimeError as error:  # the client's, of one file of several
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            why = refusal(cause)
        elif isinstance(cause, NoAnswer | ConnectionError):
            why = no_network(cause)
        else:
            raise
        raise UserError(f"Cannot {what}{state}: {why}") from None
