"""Finding a link's state within the state of a chain."""

from typing import Any

import jax


def links(opt_state: Any, kind: type) -> list[Any]:
    """The states of one kind of link within an optimizer's state."""

    def is_link(node: Any) -> bool:
        return isinstance(node, kind)

    return list(filter(is_link, jax.tree.leaves(opt_state, is_leaf=is_link)))
