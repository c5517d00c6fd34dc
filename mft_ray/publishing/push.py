"""A mask, an adapter or a model of a run onto the Hugging Face hub, or into a folder just as it would go there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from mft_ray import __version__
from mft_ray.models.export import check_empty, replace_folder
from mft_ray.publishing.metadata import licence_of
from mft_ray.publishing.publication import Kind, Publication, publication
from mft_ray.publishing.staging import stage, stage_backbone
from mft_ray.publishing.upload import Hub
from mft_ray.runs.folder import RunFolder, check_place
from mft_ray.utils.console import log, log_warning


def push(
    root: Path,
    repo: str,
    *,
    kind: Kind | None = None,
    trial_id: str | None = None,
    backbone: str | None = None,
    private: bool = False,
    dry_run: Path | None = None,
) -> str:
    """Publish what a search has found.

    Args:
        root: run folder.
        repo: id of the repository, ``owner/name``.
        kind: ``mask`` or ``model``; None takes what the trial has left.
        trial_id: id of a trial, or its first letters; None takes the one that was judged.
        backbone: id of the repository that the FFT model goes to; None leaves it here.
        private: whether a new repository can be read by its owner alone.
        dry_run: new or empty folder to write to in place of the hub, which is then not asked for anything.

    Returns:
        Address of the repository, or the folder.

    Raises:
        UserError: there is nothing to publish so, or the hub refuses it.
    """
    what = publication(root, repo, kind, trial_id, backbone)
    if what.kind != "model" and not what.origin:
        log_warning(
            f"the {what.kind} belongs to a model of your own that is not on the hub: others cannot use it without; "
            "--backbone OWNER/NAME publishes that too"
        )
    if dry_run is not None:
        return _into(dry_run.expanduser().absolute(), what)
    hub = Hub()
    hub.check(repo, what.kind, private)
    if backbone is not None:
        hub.check(backbone, "model", private)
    licence = licence_of(what, network=True)
    work = RunFolder(root).work
    check_place(work, "The folder of the run")  # on its disk a model need not be copied
    message = f"{what.kind.capitalize()} of trial {what.found.trial.trial_id}, by mft_ray {__version__}"
    with tempfile.TemporaryDirectory(dir=work, prefix="push-") as scratch:
        folder = Path(scratch) / "repo"
        stage(what, folder, licence)  # before anything is sent: what cannot be made is told first
        if backbone is not None:
            own = Path(scratch) / "backbone"
            stage_backbone(what, own, licence)
            url, commit = hub.send(backbone, own, private, f"FFT model, by mft_ray {__version__}")
            log(f"the FFT model is at {url}, revision {commit}")
            what, folder = replace(what, origin=f"{backbone}@{commit}"), Path(scratch) / "with-revision"
            stage(what, folder, licence)
        url, commit = hub.send(repo, folder, private, message)
    log(f"the {what.kind} is at {url}, revision {commit}")
    return url


def _into(folder: Path, what: Publication) -> str:
    check_empty(folder, "to --dry-run")
    check_place(folder, "--dry-run")
    licence = licence_of(what, network=False)
    written: list[tuple[str, Callable[[Path], None]]] = [(what.repo, lambda to: stage(what, to, licence))]
    if what.backbone_repo is not None:
        written.append((what.backbone_repo, lambda to: stage_backbone(what, to, licence)))

    def write(partial: Path) -> None:
        for name, make in written:
            to = partial / name if len(written) > 1 else partial
            to.parent.mkdir(parents=True, exist_ok=True)
            make(to)

    replace_folder(folder, write)
    return str(folder)
