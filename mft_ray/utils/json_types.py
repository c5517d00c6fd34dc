"""What JSON and YAML hold at the edge, before it has a type of ours."""

from __future__ import annotations

from typing import Any

# An object of a file or a message: text keys, values as the parser gives them.
JsonObject = dict[str, Any]
