"""How long a text a model can take."""

from __future__ import annotations

from typing import Any

# As configurations of transformers call it; most that call it otherwise have the first name as another of the same.
_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
# Rotary embeddings that are stretched by a factor, which some configurations do not count in yet.
_STRETCHED = ("linear", "dynamic", "yarn")


def positions(config: Any) -> int | None:
    """Return the most tokens that a model can take at once; None where it says none, as state-space models and ALiBi.

    A rotary model computes beyond that, but has learned nothing there. Where its rotation is stretched by a factor
    the positions are those that the factor reaches.

    Args:
        config: configuration of the model, transformers' own.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = next(
        (value for name in _NAMES if isinstance(value := getattr(text, name, None), int) and value > 0),
        None,
    )
    if found is None:
        return None
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None)
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type")) not in _STRETCHED:
        return found
    factor, original = rope.get("factor") or 1.0, rope.get("original_max_position_embeddings") or found
    return max(found, int(original * factor))
