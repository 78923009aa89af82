"""Proof, on the loaded model, that its last layer may run on the rows that are read.

Nothing of it goes by names. A pass with gradients tells which modules of the last layer make queries alone, which make attention's output
or follow it, and whether rows still mix behind it. Then a batch runs both ways: states and gradients must be the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from srm.errors import first_line
from srm.packing.backbone import own_attention, proofs, run_backbone, run_rows, unwrap
from srm.packing.batch import PackedBatch
from srm.packing.last_layer import LastLayer, Places, place_hooks
from srm.packing.layout import pack
from srm.packing.trial import (
    LEAK_TOLERANCE,
    MODEL_TOLERANCE,
    coarser,
    distance,
    draw,
    followed_embeddings,
    own_function,
    random_weights,
    trial_groups,
    undisturbed,
)

__all__ = ["prove_last_layer"]

logger = logging.getLogger(__name__)

_NAME = "srm_last_layer_trial"
_CALLS = "srm_last_layer_calls"
# Attribute on the model that remembers that its last layer has hooks, and what of the attention they are on.
_HOOKED = "_srm_last_layer_hooks"
# Tokens of the traced row, and those of them that are read.
_TOKENS = 12
_READ = (3, 7, 11)


class _AllRowsError(Exception):
    """Why the last layer has to run on all rows."""


def prove_last_layer(backbone: nn.Module, *, packed: bool) -> LastLayer:
    """Find out which rows a backbone's last layer needs, and let `run_to_boundaries` go by the answer, which the model keeps.

    Runs a few passes of about twenty tokens forward and back, in eval mode, on the model's device and in its dtype. The model is afterwards
    as it was, but for hooks on its last layer that rest in every call but those of `run_to_boundaries`.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile. `probe` has accepted it where `packed`.
        packed: whether the answer is for packed batches, or for padded ones.

    Returns:
        The answer, which is never an error: all rows are always right.

    Raises:
        TypeError: no transformers model.
    """
    known = proofs(backbone)
    if packed not in known:
        backbone = getattr(backbone, "_orig_mod", backbone)  # a compiled backbone would compile for the trial's shapes
        known[packed] = _prove(backbone, unwrap(backbone), packed)
        logger.info("%s, %s batches: %s", type(unwrap(backbone)).__name__, "packed" if packed else "padded", known[packed])
    return known[packed]


def _prove(backbone: nn.Module, model: PreTrainedModel, packed: bool) -> LastLayer:
    reasons: list[str] = []
    handles: list[Any] = []
    with torch.inference_mode(False), undisturbed(backbone, model):
        try:
            inside = getattr(model, _HOOKED, None)
            if inside is None:
                places = _find_places(backbone, model)
                handles = place_hooks(places)
                inside = tuple(name for name, modules in (("queries", places.queries), ("attention output", places.output)) if modules)
            batch = pack(trial_groups(model), mode="shared" if packed else "none", pad_token_id=0).to(model.device)
            expected = _states_and_gradient(model, lambda: run_backbone(backbone, batch)[batch.boundaries])
            for parts in (inside, ()):
                try:
                    _require_same(model, expected, _states_and_gradient(model, partial(_run_narrow, backbone, batch, inside=bool(parts))))
                except Exception as error:  # the model's own code meets fewer rows than it was written for, and may raise anything
                    reasons.append(_reason(error))
                else:
                    setattr(model, _HOOKED, inside)
                    return LastLayer(rows="boundaries", inside=parts, reason="".join(f"attention on all rows: {why}" for why in reasons))
        except Exception as error:  # nor is all of it written to be traced
            reasons.append(_reason(error))
    for handle in handles:
        handle.remove()
    return LastLayer(rows="all", reason=reasons[-1])


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, _AllRowsError) else f"its code takes no fewer: {first_line(error)}"


def _run_narrow(backbone: nn.Module, batch: PackedBatch, *, inside: bool) -> Tensor:
    hidden, layout = run_rows(backbone, batch, inside=inside)
    return hidden[layout.boundaries]


def _states_and_gradient(model: PreTrainedModel, run: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """States at the boundaries, and a gradient of theirs into the embeddings."""
    with followed_embeddings(model) as embedded:
        states = run()
    (gradient,) = torch.autograd.grad(states, embedded, random_weights(states))
    return states.detach(), gradient


def _require_same(model: PreTrainedModel, expected: tuple[Tensor, Tensor], actual: tuple[Tensor, Tensor]) -> None:
    """Compare a run on fewer rows with one on all.

    Raises:
        _AllRowsError: states or gradients differ.
    """
    dtype = coarser(model.dtype, expected[0].dtype)
    error = distance(expected[0], actual[0])
    if not error <= LEAK_TOLERANCE[dtype]:
        raise _AllRowsError(f"its states would differ by {error:.2g} (at most {LEAK_TOLERANCE[dtype]:g})")
    wanted, found = expected[1].double(), actual[1].double()
    error = float((wanted - found).norm(dim=-1).max() / wanted.norm(dim=-1).max())
    if not error <= MODEL_TOLERANCE[dtype]:
        raise _AllRowsError(f"its gradients would differ by {error:.2g} (at most {MODEL_TOLERANCE[dtype]:g})")


@dataclass(frozen=True, kw_only=True)
class _Exit:
    """The end of a module's call. rows: whether it took and gave states [1, tokens, D] or [tokens, D]."""

    module: nn.Module
    output: Any  # the first of several
    rows: bool


@dataclass(frozen=True, kw_only=True)
class _Attention:
    """A call of attention. of_all_rows: what each of its rows reads of the others, which is keys, values and learned biases."""

    module: nn.Module
    of_all_rows: list[Tensor]


def _find_places(backbone: nn.Module, model: PreTrainedModel) -> Places:
    """The modules of the last layer, from one traced pass.

    Raises:
        _AllRowsError: there is no layer of a kind that is known how to narrow.
    """
    if not model._can_set_attn_implementation():
        raise _AllRowsError("it does not take its attention from transformers' AttentionInterface")
    with followed_embeddings(model), _traced(model) as calls:
        ids = torch.tensor([draw(model, _TOKENS, seed=6)], device=model.device)
        positions = torch.arange(_TOKENS, device=model.device)[None]
        output = backbone(input_ids=ids, position_ids=positions, attention_mask=None, use_cache=False, **{_CALLS: calls})
        read = output.last_hidden_state[:, list(_READ)]
    at = max((at for at, call in enumerate(calls) if isinstance(call, _Attention)), default=None)
    if at is None:
        raise _AllRowsError("no attention call passes through transformers' AttentionInterface")
    attention: _Attention = calls[at]
    before, after = ([call for call in part if isinstance(call, _Exit)] for part in (calls[:at], calls[at:]))
    layer, holder = _around(model, attention.module)
    _check_rows_stay_apart(read, next(call.output for call in after if call.module is holder))
    behind = _among([module for module in _products(layer) if module is not holder], after)
    if not behind:
        raise _AllRowsError("no product follows its last attention")
    return Places(
        layer=layer,
        attention=attention.module,
        queries=tuple(_queries(attention, before)),
        output=_among(_products(attention.module), after)[:1],
        behind=behind,
    )


def _around(model: nn.Module, attention: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The layer that an attention module is in, an item of a list of layers, and that layer's child that holds it."""
    name = next(name for name, module in model.named_modules() if module is attention)
    path = [model.get_submodule(".".join(name.split(".")[:depth])) for depth in range(len(name.split(".")) + 1)]
    for depth in range(len(path) - 2, 0, -1):
        if isinstance(path[depth - 1], nn.ModuleList):
            return path[depth], path[depth + 1]
    raise _AllRowsError("its attention is in no list of layers")


def _check_rows_stay_apart(read: Tensor, attended: Tensor) -> None:
    """A gradient from the rows that are read to attention's output is exactly zero elsewhere, unless rows mix behind it."""
    (gradient,) = torch.autograd.grad(read, attended, random_weights(read), retain_graph=True, allow_unused=True)
    others = [row for row in range(_TOKENS) if row not in _READ]
    if gradient is None or gradient[:, others].any():
        raise _AllRowsError("its rows mix behind the last attention")


def _queries(attention: _Attention, before: list[_Exit]) -> Iterator[nn.Module]:
    """Modules inside the attention on which nothing depends that a row reads of the others."""
    inside = _products(attention.module)
    exits = [call for call in before if call.rows and any(call.module is module for module in inside)]
    if not exits:
        return
    targets = attention.of_all_rows
    ones = [torch.ones_like(target) for target in targets]
    gradients = torch.autograd.grad(targets, [call.output for call in exits], ones, retain_graph=True, allow_unused=True)
    yield from (call.module for call, gradient in zip(exits, gradients, strict=True) if gradient is None)


def _products(module: nn.Module) -> list[nn.Module]:
    """Children with a product in them; what works on single numbers costs nothing."""
    return [child for child in module.children() if any(weight.dim() > 1 for weight in child.parameters())]


def _among(modules: list[nn.Module], exits: list[_Exit]) -> tuple[nn.Module, ...]:
    """Those of `modules` that were called on rows, in the order of their calls."""
    return tuple(call.module for call in exits if call.rows and any(call.module is module for module in modules))


@contextmanager
def _traced(model: PreTrainedModel) -> Iterator[list[Any]]:
    """What is called in this block, in order: the ends of all modules' calls, and attention."""
    calls: list[Any] = []

    def record(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        output = output[0] if isinstance(output, tuple) else output
        rows = bool(args) and all(
            isinstance(states, Tensor) and states.shape[:-1] in ((1, _TOKENS), (_TOKENS,)) for states in (args[0], output)
        )
        calls.append(_Exit(module=module, output=output, rows=rows))

    own = own_attention(model)
    handles = [module.register_forward_hook(record) for module in model.modules()]
    model.set_attn_implementation(_NAME)
    try:
        yield calls
    finally:
        model.set_attn_implementation(own)
        for handle in handles:
            handle.remove()


def _recorded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The layer's own attention, with a gradient: the eager function beside its class, else SDPA."""
    if _CALLS not in kwargs:
        raise _AllRowsError("the model drops keyword arguments, so that the rows cannot reach its last layer")
    biases = [given for given in (attention_mask, *kwargs.values()) if isinstance(given, Tensor) and given.requires_grad]
    kwargs.pop(_CALLS).append(_Attention(module=module, of_all_rows=[key, value, *biases]))
    return own_function(module, "sdpa")(module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register(_NAME, _recorded_attention)
AttentionMaskInterface.register(_NAME, AttentionMaskInterface()["eager"])
