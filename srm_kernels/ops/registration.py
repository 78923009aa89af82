"""What every op's registration and argument checks share."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._library.custom_ops import get_library_allowing_overwrite
from torch.autograd.forward_ad import unpack_dual

from .._ops import add_op_namespace_prefix
from ..layout import BoundaryOrder, SentenceLayout, check_index, check_offset_count, check_offset_values, values_readable

__all__ = [
    "FLOAT_DTYPES",
    "check_finite",
    "check_float",
    "check_number",
    "check_offsets",
    "check_positions",
    "check_same_device",
    "check_shape",
    "kept_order",
    "order_of",
    "register_backward_op",
    "register_op",
]

FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def register_op(
    name: str, run: Callable[..., Any], fake: Callable[..., Any], *, save: Callable[[Any, Any, Any], None], backward: Callable[..., Any]
) -> Any:
    """An op that `torch.compile` sees as one call.

    `torch.library.custom_op` does the same, but looks up the schema's arguments one by one at each call. That costs the host more than all
    else that PyTorch does for an op.

    Args:
        name: without a namespace.
        run: computes it, on whatever backend it chooses. Its annotations make the schema. No output is an input or a view of one.
        fake: the same on tensors without data.
        save: `save(ctx, inputs, output)` keeps on an autograd context what `backward` needs.
        backward: `backward(ctx, *grads)`, a gradient or None for each input.

    Returns:
        The op, as `torch.ops` has it.
    """

    def forward(ctx: Any, *inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            output = op(*inputs)
        save(ctx, inputs, output)
        return output

    # Profilers, `print` and anomaly mode call the backward by the name of its class.
    class_name = "".join(word.capitalize() for word in name.split("_"))
    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    function: Any = types.new_class(class_name, (torch.autograd.Function,), exec_body=lambda body: body.update(methods))

    qualified_name = add_op_namespace_prefix(name)
    namespace = qualified_name.partition("::")[0]
    # As for custom ops: who reloads a module defines its ops anew.
    library = get_library_allowing_overwrite(namespace, name)
    library.define(name + torch.library.infer_schema(run, mutates_args=()))
    library.impl(name, run, "CompositeExplicitAutograd")
    library.impl(name, function.apply, "Autograd")
    torch.library.register_fake(qualified_name, fake, lib=library)
    op = getattr(getattr(torch.ops, namespace), name).default
    return op


def register_backward_op(name: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """The op `{name}_backward`. It has no derivative of its own and says so, where autograd would return a wrong one."""

    def refuse(ctx: Any, *grads: Tensor | None) -> NoReturn:
        raise RuntimeError(
            f"{name}: it cannot be differentiated twice. Use `{name}_reference` from srm_kernels.ops.{name}.reference, "
            "which is plain PyTorch."
        )

    return register_op(f"{name}_backward", run, fake, save=lambda ctx, inputs, output: None, backward=refuse)


def order_of(layout: SentenceLayout | None, backend: str) -> tuple[Tensor | None, Tensor | None, int | None]:
    """Positions, indices and version of a layout's order, for the registered ops; None thrice where they have to do without.

    The references never ask for it: nothing is sorted on the CPU, or where they were chosen by name.
    """
    if layout is None or backend == "torch" or (backend == "auto" and layout.boundaries.device.type == "cpu"):
        return None, None, None
    return layout.order or (None, None, None)


def kept_order(boundaries: Tensor, positions: Tensor | None, indices: Tensor | None, version: int | None) -> tuple[Tensor, Tensor] | None:
    """What `order_of` handed over, for the launchers; None where the boundaries have to be sorted now."""
    if positions is None or indices is None or not BoundaryOrder(positions, indices, version).describes(boundaries):
        return None
    return positions, indices


def check_float(op: str, **tensors: Tensor) -> None:
    """Each one is a whole tensor of a dtype that the ops compute with, and carries no forward-mode tangent."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{op}: `{name}` must be a tensor, got {type(x).__name__}.")
        if x.dtype not in FLOAT_DTYPES:
            raise TypeError(f"{op}: `{name}` must be floating point (fp16, bf16, fp32 or fp64), got {x.dtype}.")
        if not torch.compiler.is_compiling() and hasattr(x, "full_tensor"):  # A DTensor, without importing torch.distributed for it.
            raise TypeError(
                f"{op}: `{name}` is a DTensor, a part of which is on each process, and the op needs the whole. Pass "
                f"`{name}.full_tensor()`. A weight of the head: `fully_shard` the head or the model around it, not each Linear in it."
            )
        # PyTorch refuses the tangent too, in words about its own internals.
        if not torch.compiler.is_compiling() and unpack_dual(x).tangent is not None:
            raise RuntimeError(
                f"{op}: `{name}` carries a forward-mode tangent, and the op has a backward only. "
                "Use its reference in srm_kernels.ops, which is plain PyTorch."
            )


def check_number(op: str, **numbers: float) -> None:
    """Each one is a number, and no tensor: the op would read its value, which waits for a GPU, and give it no gradient."""
    for name, x in numbers.items():
        if isinstance(x, Tensor):
            raise TypeError(f"{op}: `{name}` must be a Python number, got a tensor, which would get no gradient. Pass `{name}.item()`.")
        # torch.compile passes a number that changes as a symbol.
        if not torch.compiler.is_compiling() and not hasattr(x, "__float__"):
            raise TypeError(f"{op}: `{name}` must be a number, got {type(x).__name__}.")


def check_finite(op: str, **numbers: float) -> None:
    """Each one is a number, and neither NaN nor infinite."""
    check_number(op, **numbers)
    for name, x in numbers.items():
        if not -math.inf < x < math.inf:  # Not math.isfinite, for the same symbols.
            raise ValueError(f"{op}: `{name}` must be finite, got {x}.")


def check_offsets(op: str, name: str, offsets: Tensor, total: int, total_name: str) -> None:
    """`offsets` is [B + 1]; where its values can be read, they start at 0, never fall and end at `total`."""
    check_index(op, name, offsets)
    check_offset_count(op, name, offsets, total, total_name)
    if values_readable(offsets):
        check_offset_values(op, name, offsets, total, total_name)


def check_positions(op: str, name: str, positions: Tensor, limit: int) -> None:
    """They lie in [0, limit): by their shape alone where that is empty, elsewhere where their values can be read."""
    # In a compiled graph `limit` may be known at run time only.
    if not torch.compiler.is_compiling() and positions.numel() and limit == 0:
        raise IndexError(f"{op}: `{name}` must lie in [0, 0), which is empty, but has shape {list(positions.shape)}.")
    if positions.numel() and values_readable(positions):
        low, high = (int(x) for x in positions.aminmax())
        if low < 0 or high >= limit:
            raise IndexError(f"{op}: `{name}` must lie in [0, {limit}), got {low if low < 0 else high}.")


def check_shape(op: str, name: str, x: Tensor | None, shape: tuple[int, ...], meaning: str) -> None:
    """`x` has `shape`; `meaning` spells it, as in `[N, A]`."""
    if x is not None and tuple(x.shape) != shape:
        raise ValueError(f"{op}: `{name}` must have shape {meaning} = {list(shape)}, got {list(x.shape)}.")


def check_same_device(op: str, **tensors: Tensor | None) -> None:
    """All lie on the device of the first one."""
    (first_name, first), *rest = [(name, x) for name, x in tensors.items() if x is not None]
    for name, x in rest:
        if x.device != first.device:
            raise ValueError(f"{op}: `{name}` is on {x.device}, but `{first_name}` is on {first.device}. Move it there.")
