"""Running a backbone on a PackedBatch, and switching its attention to do so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from srm.errors import UserError
from srm.packing import backends
from srm.packing.attention import NAME, PLAN
from srm.packing.batch import PackedBatch
from srm.packing.errors import UnsupportedBackboneError
from srm.packing.last_layer import ROWS, LastLayer, LastLayerRows, Rows
from srm.packing.plan import AttentionPlan
from srm_kernels import SentenceLayout

__all__ = [
    "PackingReport",
    "enable",
    "num_embeddings",
    "proofs",
    "report",
    "restore",
    "run_backbone",
    "run_rows",
    "run_to_boundaries",
    "run_to_logits",
    "unwrap",
]

# Attribute on the model that remembers which attention it was loaded with.
_OWN = "_srm_own_attention"
# Attribute on the model that remembers what was proved of its last layer, for packed batches (True) and for padded ones (False).
_PROOFS = "_srm_last_layer"


@dataclass(frozen=True, kw_only=True)
class PackingReport:
    """Which attention runs, and why. `str()` of it is one line for a log.

    Attributes:
        attention: the backbone's current attention implementation.
        own_attention: the one it was loaded with.
        backend: what computes packed attention; `none` where no backend can.
        reason: how it does, and why none of those before it.
        device: where.
        dtype: in what.
        last_layer: which rows its last layer runs on, and why no fewer.
    """

    attention: str
    own_attention: str
    backend: str
    reason: str
    device: str
    dtype: str
    last_layer: str

    def __str__(self) -> str:
        running = "packed" if self.attention == NAME else "padded"
        return (
            f"attention {self.attention} ({running}); packed backend {self.backend}: {self.reason}; "
            f"own attention {self.own_attention}; {self.last_layer}; {self.dtype} on {self.device}"
        )


def unwrap(backbone: torch.nn.Module) -> PreTrainedModel:
    """The transformers model inside `torch.compile` and peft wrappers.

    Args:
        backbone: a transformers model, bare or wrapped.

    Returns:
        The model itself.

    Raises:
        TypeError: there is none inside.
    """
    model = getattr(backbone, "_orig_mod", backbone)
    base = getattr(model, "get_base_model", None)
    if callable(base):
        model = base()
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"expected a transformers PreTrainedModel, or one wrapped by peft or torch.compile, got {type(model).__name__}.")
    return model


def num_embeddings(backbone: torch.nn.Module) -> int:
    """How many token ids a backbone has an embedding for.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.

    Returns:
        The rows of its embedding: ids are 0 to one less. The tokenizer may know more ids, or fewer.

    Raises:
        TypeError: no transformers model.
    """
    embedding: Any = unwrap(backbone).get_input_embeddings()
    # Under peft's wrapper, whose weight is computed from shards that may not be here.
    embedding = getattr(embedding, "original_module", embedding)
    # The module's own count where it has one: a sharded weight holds only a part of the rows.
    return int(getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0])


def enable(backbone: torch.nn.Module) -> None:
    """Switch `backbone` to the packed attention. Does nothing where that is on already.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.

    Raises:
        UnsupportedBackboneError: the model does not take its attention from transformers' AttentionInterface.
        TypeError: no transformers model.
    """
    model = unwrap(backbone)
    current = model.config._attn_implementation
    if current == NAME:
        return
    setattr(model, _OWN, current)
    if not model._can_set_attn_implementation():
        raise UnsupportedBackboneError(type(model).__name__, "it does not take its attention from transformers' AttentionInterface")
    model.set_attn_implementation(NAME)


def restore(backbone: torch.nn.Module) -> None:
    """Switch `backbone` back to the attention it was loaded with.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.

    Raises:
        TypeError: no transformers model.
    """
    model = unwrap(backbone)
    if model.config._attn_implementation == NAME:
        model.set_attn_implementation(own_attention(model))


def own_attention(backbone: torch.nn.Module) -> str:
    """The attention a backbone was loaded with.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.

    Returns:
        Its name; for a model built from a packed model's config, transformers' default.

    Raises:
        TypeError: no transformers model.
    """
    model = unwrap(backbone)
    if model.config._attn_implementation != NAME:
        return model.config._attn_implementation
    return getattr(model, _OWN, None) or model.get_correct_attn_implementation(None)


def proofs(backbone: torch.nn.Module) -> dict[bool, LastLayer]:
    """What was proved of a backbone's last layer, by whether batches are packed. `prove_last_layer` writes it.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.

    Returns:
        The same dictionary at every call.

    Raises:
        TypeError: no transformers model.
    """
    model = unwrap(backbone)
    if not hasattr(model, _PROOFS):
        setattr(model, _PROOFS, {})
    return getattr(model, _PROOFS)


def run_to_boundaries(
    backbone: torch.nn.Module, batch: PackedBatch, *, last_layer_rows: LastLayerRows = "boundaries"
) -> tuple[Tensor, SentenceLayout]:
    """The final hidden states that a head reads, with the last layer on boundary rows alone where `prove_last_layer` has shown that it may.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.
        batch: what `pack` made, on the backbone's device.
        last_layer_rows: `all` runs it on all rows, whatever was proved.

    Returns:
        Hidden states, [R, D] of the boundary rows or [T, D] of all, and where the sentences end among them.

    Raises:
        UnsupportedBackboneError: the batch is packed, and the backbone cannot run packed.
        UserError: the backbone has other layers than when its last one was proved.
        TypeError: no transformers model.
    """
    proof = proofs(backbone).get(batch.cu_seqlens is not None)
    if proof is None or "all" in (proof.rows, last_layer_rows):
        return run_backbone(backbone, batch), batch.layout
    return run_rows(backbone, batch, inside=bool(proof.inside))


def run_rows(backbone: torch.nn.Module, batch: PackedBatch, *, inside: bool) -> tuple[Tensor, SentenceLayout]:
    """`run_to_boundaries` with the last layer on boundary rows, whatever was proved.

    Args:
        backbone: a transformers model with hooks on its last layer, bare or wrapped by peft or torch.compile.
        batch: what `pack` made, on the backbone's device.
        inside: whether products inside its attention run on boundary rows, too.

    Returns:
        As `run_to_boundaries`.

    Raises:
        UnsupportedBackboneError: the batch is packed, and the backbone cannot run packed.
        UserError: the backbone has other layers than those with hooks.
        TypeError: no transformers model.
    """
    rows, layout = batch.boundary_rows
    if rows.numel() == batch.num_tokens:
        return run_backbone(backbone, batch), batch.layout
    hidden = _run(backbone, batch, {ROWS: Rows(rows, batch.input_ids.shape, inside=inside)})
    if hidden.shape[0] != rows.numel():
        raise UserError(
            f"{type(unwrap(backbone)).__name__}: its last layer was to run on {rows.numel()} rows and ran on {hidden.shape[0]}: its layers "
            "are not those that were proved. Change layers before the model first runs, or set last_layer_rows to all."
        )
    return hidden, layout


def run_backbone(backbone: torch.nn.Module, batch: PackedBatch) -> Tensor:
    """The final hidden states of every token of a batch.

    A packed batch runs with the packed attention, a padded one with the attention the backbone was loaded with; the backbone
    stays switched afterwards. No key-value cache is kept. Gradients, checkpointing, peft and autocast are as in any forward call.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.
        batch: what `pack` made, on the backbone's device.

    Returns:
        [T, D], row-major, padding included, in the model's output dtype.

    Raises:
        UnsupportedBackboneError: the batch is packed, and the backbone cannot run packed. `probe` finds more reasons than a run does.
        TypeError: no transformers model.
    """
    return _run(backbone, batch, {})


def run_to_logits(model: torch.nn.Module, batch: PackedBatch, rows: Tensor, **further: Any) -> tuple[Tensor, Any]:
    """A language model's logits at `rows`. Its output layer runs on no others, or, padded, on their columns.

    Args:
        model: a transformers model with an output layer.
        batch: what `pack` made, on the model's device.
        rows: int64 [M], positions in the flattened `input_ids`.
        **further: arguments of the model.

    Returns:
        Logits [M, V] in the model's output dtype, and its whole output.

    Raises:
        UnsupportedBackboneError: the batch is packed, and the model cannot run packed.
        TypeError: no transformers model.
    """
    if batch.cu_seqlens is not None:
        output, _ = _call(model, batch, {"logits_to_keep": rows, **further})
        return output.logits[0], output
    width = batch.input_ids.shape[1]
    columns, column = (rows % width).unique(return_inverse=True)
    output, _ = _call(model, batch, {"logits_to_keep": columns, **further})
    return output.logits[rows // width, column], output


def _run(backbone: torch.nn.Module, batch: PackedBatch, further: dict[str, Any]) -> Tensor:
    output, switch = _call(backbone, batch, further)
    hidden = output.last_hidden_state
    if hidden.requires_grad:
        # Gradient checkpointing runs the layers again in the backward pass, possibly after a batch of the other mode.
        hidden.register_hook(lambda _: switch())
    return hidden.flatten(0, 1)


def _call(model: torch.nn.Module, batch: PackedBatch, further: dict[str, Any]) -> tuple[Any, Callable[[], None]]:
    """The model's output, and what switches its attention to that of the batch."""
    arguments: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False, **further}
    if batch.cu_seqlens is None:
        assert batch.attention_mask is not None
        switch = partial(restore, model)
        arguments["attention_mask"] = batch.attention_mask.long()
    else:
        switch = partial(enable, model)
        # Not a mask of ones: models derive masks and positions of their own from one.
        arguments |= {"attention_mask": None, PLAN: AttentionPlan.from_batch(batch)}
    switch()
    return model(**arguments), switch


def report(backbone: torch.nn.Module, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> PackingReport:
    """What runs on `backbone` and why.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.
        device: where it will run, if not where it is now.
        dtype: in what it will run, if not as it is now: autocast computes in another dtype.

    Returns:
        The attention it has, and the backend that packed attention takes.

    Raises:
        TypeError: no transformers model.
    """
    model = unwrap(backbone)
    need = backends.Need.of_model(model, device=device, dtype=dtype)
    try:
        backend, reason = str(backends.choose(need)).split(": ", 1)
    except backends.NoBackendError as error:
        backend, reason = "none", str(error)
    return PackingReport(
        attention=model.config._attn_implementation,
        own_attention=own_attention(model),
        backend=backend,
        reason=reason,
        device=str(need.device),
        dtype=str(need.dtype).removeprefix("torch."),
        last_layer=str(
            proofs(model).get(model.config._attn_implementation == NAME, LastLayer(rows="all", reason="nothing else was proved"))
        ),
    )
