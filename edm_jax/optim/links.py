"""Links of the optimizer chain, and a way to find a link's state."""

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import optax

from edm_jax.fields import Settings


@runtime_checkable
class Link(Protocol):
    """An entry of CLIPS, NOISES or PENALTIES."""

    def link(self) -> optax.GradientTransformation | None:
        """The transformation of the gradients or updates; None leaves them as they are."""
        ...


@dataclasses.dataclass(frozen=True)
class NoLink(Settings):
    """Off."""

    decoupled: ClassVar[bool] = False  # every penalty has this

    def link(self) -> optax.GradientTransformation | None:
        """No link."""
        return None


def links(opt_state: Any, kind: type) -> list[Any]:
    """Finds the states of one type within an optimizer's state."""

    def is_link(node: Any) -> bool:
        return isinstance(node, kind)

    return list(filter(is_link, jax.tree.leaves(opt_state, is_leaf=is_link)))
