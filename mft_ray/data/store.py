"""Encoded splits on disk: written once by the driver, opened by every worker."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from mft_ray.config import DataConfig
from mft_ray.data.accounting import Accounting
from mft_ray.data.encoding import How, told
from mft_ray.data.pieces import Pieces
from mft_ray.data.rows.reading import quiet
from mft_ray.data.splits import load
from mft_ray.data.text.template import with_fixed
from mft_ray.errors import UserError
from mft_ray.utils.files import Damaged, replacing

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
_PIECES = ".mft_ray.pieces"
TOKENIZER = "tokenizer"  # what they were encoded with, its chat template included


def prepare(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    log: Callable[[str], None] = logger.warning,
    account: Path | None = None,
    warn: Callable[[str], None] | None = None,
) -> Accounting:
    """Load, split and encode the data, and save it with the tokenizer at `folder`, whole or not at all.

    Data that was there before is replaced. What an interrupted call has encoded lies beside `folder`, and is used.

    Args:
        config: where examples come from and how they split.
        tokenizer: tokenizer of the model. Its chat template is saved with its options and its date, if it writes one,
            fixed.
        folder: where the splits go, on a disk that every node sees.
        log: told how far it is, and how many rows each part of a mixture gave.
        account: where to write what became of each row (``data.json``), if anywhere.
        warn: told what is left out, cut or changed and why; None takes ``log``.

    Returns:
        What became of each row.

    Raises:
        UserError: see `sources.load` and `encoding.encode`; nothing has been written then.
    """
    if "::" in str(folder):  # by which fsspec, and so datasets, chains places
        raise UserError(f"{folder} cannot hold data: its name has '::' in it. Choose another folder for the run.")
    encoded, accounting = datasets.DatasetDict(), Accounting()
    fixed = with_fixed(tokenizer, config.template_options, config.template_date)
    how = How(fixed, config.max_length, config.system, config.too_long)
    splits = load(config, log, accounting)
    made = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    begun = folder.with_name(f".{folder.name}{_PIECES}")
    try:
        pieces = Pieces(begun, how, log)
        for split in list(splits):
            examples = splits.pop(split)  # freed when it is encoded
            counts, name = accounting.split(split), f"The {split} split"
            encoded[split] = pieces.encode(examples, name, counts)
            told(counts, len(examples), config.max_length, name, warn or log)
        if account is not None:
            # Before the data: once that is there, nobody prepares it again.
            accounting.save(account)
        _save(encoded, fixed, folder)
    except UserError:
        shutil.rmtree(begun)
        for parent in made:
            parent.rmdir()
        raise
    # Whatever else ends this, what is encoded is found again.
    encoded.clear()
    shutil.rmtree(begun, ignore_errors=True)  # over NFS, a file that is mapped stays under a name of its own
    return accounting


def _save(encoded: datasets.DatasetDict, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    with replacing(folder) as partial, quiet():
        encoded.save_to_disk(str(partial))
        tokenizer.save_pretrained(str(partial / TOKENIZER))


def shared_sources(folder: Path, split: str) -> list[str] | None:
    """Return what each example of a split was made from; None where no two were made from the same.

    Raises:
        UserError: as of `open_split`.
    """
    rows = open_split(folder, split)
    # Data that was prepared before sources were kept has none.
    sources: list[str] = list(rows["source"]) if "source" in rows.column_names else []
    return sources if len(set(sources)) < len(sources) else None


def open_split(folder: Path, split: str) -> datasets.Dataset:
    """Open a split that `prepare` saved, memory-mapped; its rows are those of `encoding.encode`.

    Raises:
        UserError: there is no such split at `folder`.
        Damaged: it cannot be read.
    """
    path = folder / split
    try:
        return datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise UserError(
            f"There is no prepared data at {path}. The splits are {', '.join(SPLITS)}; prepare the data "
            "again if the folder was moved or deleted."
        ) from None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise Damaged(path, f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from error
