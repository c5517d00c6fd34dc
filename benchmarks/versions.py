"""Earlier versions of the code, to be measured beside this one."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


def clone(commit: str, folder: Path) -> Path:
    """Put a commit into a new folder of its own, and return that."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    subprocess.run(["git", "checkout", "--quiet", commit], cwd=folder, check=True)
    return folder
