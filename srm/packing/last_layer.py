"""The last decoder layer on the rows that are read: queries, attention's output, MLP and norm are worked out for boundary rows alone.

Keys and values stay on all rows. Hooks on the loaded model do it: a module with a product in it gets the rows that are read, and its result
stands in its rows with zeros in all others, so that the code around it meets the shapes it was written for. The layer's output keeps the
rows that are read, for the norm and the head. Where a call brings no `Rows`, hooks rest. They come as a keyword argument, because gradient
checkpointing runs the layer again later and must find those of its own batch. `srm.packing.last_layer_proof` finds the modules, and
proves that the result stays.

Shape letters: `B` rows of `L` tokens, packed or padded, `R` tokens that are read, `D` width.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

__all__ = ["ROWS", "LastLayer", "LastLayerRows", "Places", "Rows", "place_hooks"]

LastLayerRows = Literal["boundaries", "all"]
# The keyword argument that carries the rows through the model's forward to its last layer.
ROWS = "srm_rows"


class Rows:
    """The rows of a batch that are read after the last layer.

    No dataclass: FSDP2 copies every dataclass among a layer's arguments where it rounds them.

    Args:
        index: int64 [R], positions in the flattened tokens, without repeats.
        shape: of the tokens, [B, L].
        inside: whether products inside the attention run on these rows too, or only what comes after it.
    """

    def __init__(self, index: Tensor, shape: torch.Size, *, inside: bool) -> None:
        self.index = index
        self.shape = shape
        self.inside = inside

    def take(self, states: Tensor) -> Tensor:
        """The rows that are read.

        Args:
            states: [B, L, D], or [B * L, D]; anything of another shape is left as it is.

        Returns:
            [1, R, D], or [R, D].
        """
        if states.shape[:-1] not in (self.shape, (self.shape.numel(),)):
            return states
        taken = states.flatten(0, -2).index_select(0, self.index.to(states.device))
        return taken if states.dim() == 2 else taken[None]

    def spread(self, taken: Tensor) -> Tensor:
        """The inverse of `take`, with zeros in all other rows.

        Args:
            taken: [1, R, D], or [R, D]; anything of another shape is left as it is.

        Returns:
            [B, L, D], or [B * L, D].
        """
        num_rows = self.index.numel()
        if taken.shape[:-1] not in ((1, num_rows), (num_rows,)):
            return taken
        everywhere = taken.new_zeros(self.shape.numel(), taken.shape[-1])
        states = everywhere.index_copy(0, self.index.to(taken.device), taken.flatten(0, -2))
        return states if taken.dim() == 2 else states.unflatten(0, self.shape)


@dataclass(frozen=True, kw_only=True)
class LastLayer:
    """What was proved of a backbone's last layer. `str()` of it is part of a line for a log.

    Attributes:
        rows: which rows run: `boundaries`, or `all`.
        inside: what of the attention is worked out for boundary rows alone: `queries`, `attention output`, both or nothing.
        reason: why no more of the layer does; empty where nothing is missing.
    """

    rows: LastLayerRows
    inside: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        because = f" ({self.reason})" if self.reason else ""
        if self.rows == "all":
            return f"last layer on all rows{because}"
        return f"last layer on boundary rows: {', '.join((*self.inside, 'MLP'))} and norm{because}"


@dataclass(frozen=True, kw_only=True)
class Places:
    """The modules of a decoder that hooks go on.

    Attributes:
        layer: the last decoder layer.
        attention: the module in it that calls attention.
        queries: modules inside the attention that make queries alone; none where one product makes keys and values, too.
        output: the module inside it that makes its output, if there is one.
        behind: children of the layer, with products in them, that run after attention.
    """

    layer: nn.Module
    attention: nn.Module
    queries: tuple[nn.Module, ...]
    output: tuple[nn.Module, ...]
    behind: tuple[nn.Module, ...]


class _Call(threading.local):
    """The rows of the last layer that runs in this thread, from its attention to its last product.

    Not from the layer's own hooks: transformers runs these once, and what is inside the layer again for gradient checkpointing.
    """

    rows: Rows | None = None


_call = _Call()


def place_hooks(places: Places) -> list[Any]:
    """Make the last layer run on the rows that a call brings. Does nothing to calls that bring none.

    Args:
        places: its modules.

    Returns:
        Handles, to remove the hooks again.
    """
    handles = [
        places.attention.register_forward_pre_hook(_begin, with_kwargs=True),
        places.attention.register_forward_hook(_end_if_failed, always_call=True),
        places.layer.register_forward_hook(_keep_rows, with_kwargs=True),
    ]
    for module in (*places.queries, *places.output):
        handles += [module.register_forward_pre_hook(_take_inside), module.register_forward_hook(_spread_inside)]
    for module in places.behind:
        handles += [module.register_forward_pre_hook(_take), module.register_forward_hook(_spread)]
    return [*handles, places.behind[-1].register_forward_hook(_end, always_call=True)]


# Plain functions, so that a copy of the model has hooks of its own. Tracing them would gain nothing: attention breaks the graph anyway.


@torch.compiler.disable
def _begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    _call.rows = kwargs.get(ROWS)


@torch.compiler.disable
def _end(module: nn.Module, args: Any, output: Any) -> None:
    _call.rows = None


@torch.compiler.disable
def _end_if_failed(module: nn.Module, args: Any, output: Any) -> None:
    if output is None:
        _call.rows = None


@torch.compiler.disable
def _take(module: nn.Module, args: tuple[Any, ...]) -> Any:
    return None if _call.rows is None else (_call.rows.take(args[0]), *args[1:])


@torch.compiler.disable
def _spread(module: nn.Module, args: Any, output: Any) -> Any:
    return None if _call.rows is None else _first(output, _call.rows.spread)


@torch.compiler.disable
def _take_inside(module: nn.Module, args: tuple[Any, ...]) -> Any:
    return _take(module, args) if _call.rows is not None and _call.rows.inside else None


@torch.compiler.disable
def _spread_inside(module: nn.Module, args: Any, output: Any) -> Any:
    return _spread(module, args, output) if _call.rows is not None and _call.rows.inside else None


@torch.compiler.disable
def _keep_rows(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    rows: Rows | None = kwargs.get(ROWS)
    return None if rows is None else _first(output, rows.take)


def _first(output: Any, change: Any) -> Any:
    """Routers and attention give their states as the first of several."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)
