"""Several passes over memory made one, where torch.compile can: on a GPU a masked step costs what it moves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

P = ParamSpec("P")
R = TypeVar("R")

# Where passes over memory are what costs, and the entries from which they are worth the seconds that a compiler takes.
_DEVICES = ("cuda",)
_WORTH_IT = 2**22


class Kernel(Generic[P, R]):
    """A function of CUDA tensors that torch.compile makes a kernel of, at its first call with large ones.

    Where that fails (Triton wants a C compiler on the node), the function runs as it stands, and that is said once.
    ``TORCH_COMPILE_DISABLE=1`` asks for that.

    Args:
        function: changes nothing that it is given; its first argument is as large as any.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._compiled: Callable[P, R] | None = None
        self._fails = False

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function."""
        first: Any = args[0]
        if self._fails or first.device.type not in _DEVICES or first.numel() < _WORTH_IT or _watched():
            return self._function(*args, **kwargs)
        if self._compiled is None:  # not on import, which a compiler slows down
            self._compiled = torch.compile(self._function, dynamic=True)
        try:
            return self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler says, the function itself is right
            self._fails = True
            said = next(iter(str(error).strip().splitlines()), type(error).__name__)
            name = getattr(self._function, "__name__", "a function").strip("_")
            logging.getLogger(__name__).warning("%s runs uncompiled, and slower: %s", name, said)
            return self._function(*args, **kwargs)


def _watched() -> bool:
    """Say whether every operation is watched: by a compiler, or a counter, after which nothing compiles again."""
    return torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None
