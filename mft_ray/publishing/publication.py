"""What is to be published of a run, and which model it belongs to: refused before anything is made or asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from mft_ray.errors import UserError
from mft_ray.masking import MaskFile, load_mask
from mft_ray.models.adapter import backbone_of
from mft_ray.models.hub import is_hub_id, split_revision
from mft_ray.models.names import ADAPTER, MASK, MODEL
from mft_ray.runs.fft_model import FftModel
from mft_ray.runs.folder import RunFolder
from mft_ray.runs.picked import Picked, picked
from mft_ray.runs.reading import Run, read
from mft_ray.training.job import StopReason

Kind = Literal["mask", "adapter", "model"]
_KINDS: dict[str, Kind] = {MASK: "mask", ADAPTER: "adapter", MODEL: "model"}


@dataclass(frozen=True)
class Publication:
    """What is published of a run.

    Attributes:
        run: the whole run, for the card.
        found: the trial, and what it has left.
        fft: the model that it was learned on.
        kind: what the repository will hold.
        repo: id of the repository.
        backbone_repo: id of the repository that the FFT model goes to; None where it is not published with it.
        mask: content of the mask file; None where it is no mask.
        origin: where the backbone is on the hub, as ``owner/name@commit`` or ``owner/name``; empty where it is not.
    """

    run: Run
    found: Picked
    fft: FftModel
    kind: Kind
    repo: str
    backbone_repo: str | None
    mask: MaskFile | None
    origin: str

    @property
    def made(self) -> Kind:
        """What the trial has left, whatever of it is published."""
        return _KINDS[self.found.artifact.name]

    @property
    def trained_here(self) -> bool:
        """Whether the run trained its FFT model itself."""
        return self.run.baseline.stopped != StopReason.GIVEN

    @property
    def start_model(self) -> str | None:
        """Hub id of the model that FFT started from, or was given; None where it is none of the hub's."""
        section = self.run.config.get("model")
        path = section.get("path") if isinstance(section, dict) else None
        return split_revision(path)[0] if isinstance(path, str) and is_hub_id(path) else None

    @property
    def base_model(self) -> str | None:
        """Hub id of the nearest model on the hub that it comes from."""
        return (split_revision(self.origin)[0] if self.origin else None) or self.start_model


def publication(
    root: Path, repo: str, kind: Kind | None = None, trial_id: str | None = None, backbone: str | None = None
) -> Publication:
    """Find what is to be published.

    Args:
        root: run folder.
        repo: id of the repository.
        kind: ``mask`` or ``model``; None takes what the trial has left.
        trial_id: id of a trial, or its first letters; None takes the one that was judged.
        backbone: id of the repository that the FFT model goes to.

    Raises:
        UserError: a name is none of the hub's, or there is nothing to publish so.
    """
    check_repo(repo, "The repository")
    if backbone is not None:
        check_repo(backbone, "--backbone")
        if backbone == repo:
            raise UserError(f"--backbone is {backbone}, where the rest goes too. Give each a repository of its own.")
    run = read(root)
    if run.verdict is None and trial_id is None:
        raise UserError(
            f"{root} has no verdict yet, so there is nothing to say about what its best trial is worth. Wait for it, "
            "or go on with mft-ray tune --resume. --trial ID publishes one that was not judged, which its card says."
        )
    found, fft = picked(root, trial_id, whole=True), FftModel.load(RunFolder(root).fft_model)
    made = _KINDS[found.artifact.name]
    if kind == "mask" and made != "mask":
        raise UserError(f"Trials of {root} make no mask but {_article(made)}, which is published without --mask.")
    kind = kind or made
    if backbone is not None:
        _check_backbone(kind, fft, backbone)
    mask = load_mask(found.artifact) if made == "mask" else None
    known = (mask.backbone, mask.origin) if mask is not None else None
    if made == "adapter":
        known = backbone_of(found.artifact)
    if known is not None and known[0] != fft.fingerprint:
        raise UserError(
            f"{found.artifact} was learned on the model {known[0][:12]}..., and the FFT model of {root} is "
            f"{fft.fingerprint[:12]}...: one of them is not this run's. Copy the run folder again."
        )
    origin = backbone or (known[1] if known else "") or (fft.model if is_hub_id(fft.model) else "")
    return Publication(run, found, fft, kind, repo, backbone, mask, origin)


def check_repo(name: str, what: str) -> None:
    """Refuse what cannot be a repository's id.

    Args:
        name: id as it was given.
        what: what was given, in words.

    Raises:
        UserError: saying what the hub allows.
    """
    try:
        validate_repo_id(name)
        why = "" if name.count("/") == 1 else "it has no owner."
    except HFValidationError as error:
        why = str(error).splitlines()[0]
    if why:
        raise UserError(f"{what} {name!r} is no name of a repository on the hub: {why} Give owner/name.")


def _check_backbone(kind: Kind, fft: FftModel, backbone: str) -> None:
    if kind == "model":
        raise UserError(
            f"--backbone {backbone} publishes the model that a mask or an adapter needs, and a whole model needs none. "
            "Leave out --backbone."
        )
    if is_hub_id(fft.model):
        raise UserError(f"The backbone is on the hub already, as {fft.model}. Leave out --backbone.")
    if not Path(fft.model).is_dir():
        raise UserError(f"The FFT model {fft.model} is not there any more. Put it back, or leave out --backbone.")


def _article(kind: Kind) -> str:
    return f"an {kind}" if kind == "adapter" else f"a {kind}"
