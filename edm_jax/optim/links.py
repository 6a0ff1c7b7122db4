"""Links of the optimizer's chain: those that a config chooses, and finding one's state."""

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import optax

from edm_jax.fields import Settings


@runtime_checkable
class Link(Protocol):
    """An entry of CLIPS, NOISES or PENALTIES."""

    def link(self) -> optax.GradientTransformation | None:
        """What the gradients or updates go through; None leaves them as they are."""
        ...


@dataclasses.dataclass(frozen=True)
class NoLink(Settings):
    """None."""

    decoupled: ClassVar[bool] = False  # as of a penalty

    def link(self) -> optax.GradientTransformation | None:
        """None."""
        return None


def links(opt_state: Any, kind: type) -> list[Any]:
    """The states of one kind of link within an optimizer's state."""

    def is_link(node: Any) -> bool:
        return isinstance(node, kind)

    return list(filter(is_link, jax.tree.leaves(opt_state, is_leaf=is_link)))
