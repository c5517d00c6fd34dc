"""The methods by name: what can be done to a model. A registry that the files of `mft_ray.methods` fill."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator

from mft_ray.config.training import LoraConfig, TrainConfig
from mft_ray.errors import UserError
from mft_ray.masking import MaskSettings

if TYPE_CHECKING:
    from mft_ray.config.tree import Config

# What a method leaves.
Product = Literal["mask", "adapter", "tuned model"]
# Entry points of other packages whose import registers methods.
GROUP = "mft_ray.methods"


@dataclass(frozen=True)
class Recipe:
    """How one method trains.

    Attributes:
        train: steps, batches and optimizer.
        mask: settings of the mask, for methods that mask.
        lora: settings of the adapter, for LoRA.
    """

    train: TrainConfig
    mask: MaskSettings | None = None
    lora: LoraConfig | None = None


@dataclass(frozen=True)
class MethodSpec:
    """A method: how it follows from a configuration, and what a search over it may choose.

    Attributes:
        name: name in configurations and files.
        description: one line for people.
        makes: what it leaves.
        recipe: how it trains under a configuration.
        sections: parts of the configuration that it is trained by; a search may choose any setting in them.
        short_names: settings that a search over it always chooses: path by short name.
        preset: values of those settings that a search tries first, from the configuration and the number of decoder
            layers; None takes the paper's, for masks.
    """

    name: str
    description: str
    makes: Product
    recipe: Callable[[Config], Recipe]
    sections: tuple[str, ...]
    short_names: Mapping[str, str] = field(default_factory=dict)
    preset: Callable[[Config, int], dict[str, Any]] | None = None

    @property
    def masks(self) -> bool:
        """Whether it leaves a mask."""
        return self.makes == "mask"


class Methods(Mapping[str, MethodSpec]):
    """The registered methods, in the order of their registration; filled when it is first looked at."""

    def __init__(self) -> None:
        self._known: dict[str, MethodSpec] = {}
        self._filled = False

    def register(self, spec: MethodSpec) -> MethodSpec:
        """Add a method.

        Args:
            spec: the method.

        Raises:
            ValueError: there is one of that name.
        """
        if spec.name in self._known:
            raise ValueError(f"there are two methods {spec.name}")
        self._known[spec.name] = spec
        return spec

    def __getitem__(self, name: str) -> MethodSpec:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def _all(self) -> dict[str, MethodSpec]:
        if not self._filled:
            self._filled = True
            # By name: their files stand above this one, and read configurations.
            importlib.import_module("mft_ray.methods")
            for point in entry_points(group=GROUP):
                try:
                    point.load()
                except Exception as error:
                    whose = f"entry point {point.name} ({point.value}) of group {GROUP}"
                    raise UserError(
                        f"The {whose} cannot be loaded: {error!r}. Mend or uninstall its package."
                    ) from error
        return self._known


METHODS = Methods()


def register(spec: MethodSpec) -> MethodSpec:
    """Add a method to `METHODS`; see `Methods.register`."""
    return METHODS.register(spec)


def _known(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"there are {', '.join(METHODS)}")
    return name


MethodName = Annotated[str, AfterValidator(_known)]
