"""Proof, on the loaded model, that it is a decoder, and that packing changes nothing.

`check_decoder` changes later tokens of an ordinary row: the hidden states before them must not move. `probe` does that, and makes
three checks more over a handful of tokens:

1. Each attention call of an ordinary forward: what the layer asks of its attention, how far its mask reaches, and whether packed
   attention gives the layer's own result, with the queries also scaled up so far that a cap on the scores shows; in fp32, and on a
   GPU also in bf16, which has backends of its own.
2. A packed batch in which one response changes: its siblings must not move. This finds any mixing of tokens outside attention,
   however weak, because equal shapes give equal bits.
3. A packed batch with shared prompts against one response at a time with the backbone's own attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from srm.errors import UserError
from srm.packing import backends
from srm.packing.attention import check_arguments, choose_for
from srm.packing.backbone import num_embeddings, own_attention, restore, run_backbone, unwrap
from srm.packing.batch import PromptGroup, ResponseIds
from srm.packing.errors import UnsupportedBackboneError
from srm.packing.layout import pack
from srm.packing.plan import AttentionPlan

__all__ = ["check_decoder", "probe"]

_NAME = "srm_probe"
_CHECKED = "srm_probe_checked"
_MASK_FUNCTION = "srm_mask_function"

# Tokens whose hidden states must not move when as many behind them change.
_KEPT = 8
# Prompt length and response lengths of the probe's groups: siblings, one-token segments, a second prompt.
_LENGTHS = ((5, (3, 6, 1)), (1, (4, 2)))
# Masks are looked at over all distances up to this one, and at a few beyond, up to `_FAR`.
_DENSE = 1 << 16
_FAR = 1 << 20
# Scores this large are far past any cap in use and still exact in fp32.
_LARGE_SCORE = 300.0
# Attention alone. In fp32 there is no noise but the order of a few sums; in half precision the weights are rounded.
_ATTENTION_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
# Whole model, relative to how much tokens differ. Rounding in half precision adds up over the layers; a wrong layout is of order one.
_MODEL_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
# Siblings of a changed response keep their bits, except in mixtures of experts, whose matrix shapes depend on all tokens.
_LEAK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


def check_decoder(backbone: nn.Module) -> None:
    """Refuse a backbone in which a token sees later ones, whatever the packing.

    Runs two forward passes of sixteen tokens, padded, with the backbone's own attention, in eval mode, on the model's device and in
    its dtype, and a backward pass into the embeddings only where states moved. The model is afterwards as it was before, also where
    it is refused.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.

    Raises:
        UserError: an encoder-decoder, a model whose hidden states depend on later tokens, or one whose states are NaN or infinite.
        TypeError: no transformers model.
    """
    backbone = getattr(backbone, "_orig_mod", backbone)  # a compiled backbone would compile for the probe's shapes
    model = unwrap(backbone)
    if model.config.is_encoder_decoder:
        raise _not_a_decoder(model, "it is an encoder-decoder model")
    ids = _draw(model, 2 * _KEPT, seed=3)
    later = [(token + 1) % num_embeddings(model) for token in ids[_KEPT:]]
    with _undisturbed(backbone, model):
        first, second = (_run_padded(backbone, model, row)[:_KEPT] for row in (ids, ids[:_KEPT] + later))
        if not first.isfinite().all():
            raise _no_numbers(model)
        # Equal shapes give equal bits, except in mixtures of experts, whose matrix shapes depend on all tokens.
        if not torch.equal(first, second) and _sees_ahead(backbone, model, ids):
            moved = _distance(first, second)
            raise _not_a_decoder(model, f"its attention is bidirectional (other tokens behind a text move its states by {moved:.2g})")


def probe(backbone: nn.Module) -> None:
    """Refuse a backbone that cannot run packed.

    Runs a few forward passes of about twenty tokens in eval mode without gradients, on the model's device and in its dtype: call it
    once a model. The model's weights, training flags and attention are afterwards as they were before, also where it is refused.

    Args:
        backbone: a transformers model, bare or wrapped by peft or torch.compile.

    Raises:
        UserError: it is no decoder, see `check_decoder`, or its weights are NaN or infinite.
        UnsupportedBackboneError: it is one, and cannot run packed. The message says why, and the way out.
        TypeError: no transformers model.
    """
    check_decoder(backbone)
    backbone = getattr(backbone, "_orig_mod", backbone)
    model = unwrap(backbone)
    _check_signature(model)
    try:
        _check_runs(backbone, model)
    except UnsupportedBackboneError:
        if _broken_weight(model):
            raise _no_numbers(model) from None
        raise


def _check_runs(backbone: nn.Module, model: PreTrainedModel) -> None:
    with _undisturbed(backbone, model):
        _check_attention_calls(backbone, model)
        groups = _groups(model)
        shared = run_backbone(backbone, pack(groups, pad_token_id=0).to(model.device))
        dtype = _coarser(model.dtype, shared.dtype)
        _check_leaks(backbone, model, groups, shared, _LEAK_TOLERANCE[dtype])
        _check_one_by_one(backbone, model, groups, shared, _MODEL_TOLERANCE[dtype])


def _not_a_decoder(model: PreTrainedModel, reason: str) -> UserError:
    return UserError(
        f"{type(model).__name__} cannot be the backbone of a reward model: {reason}, and a sentence's reward must not depend on what "
        "follows. Use a causal decoder."
    )


def _broken_weight(model: PreTrainedModel) -> str | None:
    return next((name for name, weight in model.named_parameters() if not weight.isfinite().all()), None)


def _no_numbers(model: PreTrainedModel) -> UserError:
    bad = _broken_weight(model)
    cause = f"the weight {bad} is. Use another checkpoint" if bad else f"{model.dtype} overflows. Use another --dtype"
    return UserError(f"the hidden states of {model.name_or_path or type(model).__name__} are NaN or infinite, because {cause}.")


def _sees_ahead(backbone: nn.Module, model: PreTrainedModel, ids: list[int]) -> bool:
    """Whether a gradient flows from the first `_KEPT` hidden states into later embeddings. In a decoder it is zero in every dtype."""
    embedded: list[Tensor] = []

    def follow(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(follow)
    try:
        with torch.enable_grad():
            hidden = _run_padded(backbone, model, ids)[:_KEPT]
    finally:
        hook.remove()
    # No plain sum: behind a norm it is the same whatever the states are.
    weight = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(4)).to(hidden)
    return any(bool(gradient[:, _KEPT:].any()) for gradient in torch.autograd.grad(hidden, embedded, weight))


def _run_padded(backbone: nn.Module, model: PreTrainedModel, ids: list[int]) -> Tensor:
    """Hidden states [len(ids), D] with the backbone's own attention."""
    return run_backbone(backbone, pack([_group(ids[:-1], ids[-1:])], mode="none", pad_token_id=0).to(model.device))


def _coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Norms and adapters may be kept in fp32 while the rest rounds in half precision."""
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


def _check_signature(model: PreTrainedModel) -> None:
    name = type(model).__name__
    parameters = inspect.signature(model.forward).parameters
    if "position_ids" not in parameters:
        raise UnsupportedBackboneError(name, "its forward takes no `position_ids`, so a response cannot go on from its prompt's positions")
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        raise UnsupportedBackboneError(name, "its forward takes no further keyword arguments, so no plan can reach its attention")
    # Such keys come in with more tokens than the probe runs: 128 for each in DeepSeek-V4.
    if compressed := sorted({kind for kind in getattr(model.config, "layer_types", None) or () if "compressed" in kind}):
        raise UnsupportedBackboneError(name, f"its layers attend to compressed keys besides (`layer_types`: {', '.join(compressed)})")


@contextmanager
def _undisturbed(backbone: nn.Module, model: PreTrainedModel) -> Iterator[None]:
    training = [module for module in backbone.modules() if module.training]
    current = model.config._attn_implementation
    device_type = model.device.type
    backbone.eval()
    try:
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            yield
    finally:
        for module in training:
            module.training = True
        if model.config._attn_implementation != current:
            model.set_attn_implementation(current)


def _check_attention_calls(backbone: nn.Module, model: PreTrainedModel) -> None:
    restore(backbone)
    own = own_attention(model)
    if not model._can_set_attn_implementation():
        raise UnsupportedBackboneError(type(model).__name__, "it does not take its attention from transformers' AttentionInterface")
    # The masks looked at and the windows asked of them: layers share a mask.
    checked: set[tuple[int, int | None]] = set()
    ids = torch.tensor([_draw(model, 8, seed=0)], device=model.device)
    model.set_attn_implementation(_NAME)
    backbone(
        input_ids=ids,
        position_ids=torch.arange(ids.shape[1], device=model.device)[None],
        attention_mask=None,
        use_cache=False,
        **{_CHECKED: (own, checked)},
    )
    model.set_attn_implementation(own)
    if not checked:
        raise UnsupportedBackboneError(type(model).__name__, "no attention call passes through transformers' AttentionInterface")


def _check_leaks(backbone: nn.Module, model: PreTrainedModel, groups: list[PromptGroup], shared: Tensor, tolerance: float) -> None:
    first, *siblings = groups[0].responses
    (changed,) = _group([0], _draw(model, len(first.ids), seed=1)).responses
    other = [replace(groups[0], responses=[changed, *siblings]), *groups[1:]]
    moved = run_backbone(backbone, pack(other, pad_token_id=0).to(model.device))
    start = len(groups[0].prompt_ids) + len(first.ids)
    error = _distance(shared[start:], moved[start:])
    if not error <= tolerance:
        raise UnsupportedBackboneError(
            type(model).__name__,
            f"a response changes when its neighbour does, by {error:.2g} (at most {tolerance:g}), so tokens mix outside attention, "
            "by convolution or recurrence",
        )


def _check_one_by_one(backbone: nn.Module, model: PreTrainedModel, groups: list[PromptGroup], shared: Tensor, tolerance: float) -> None:
    expected, rows, row = [], [], 0
    for group in groups:
        prompt_rows = range(row, row := row + len(group.prompt_ids))
        for response in group.responses:
            single = pack([replace(group, responses=[response])], mode="none", pad_token_id=0)
            expected.append(run_backbone(backbone, single.to(model.device)))
            rows += [*prompt_rows, *range(row, row := row + len(response.ids))]
    error = _distance(torch.cat(expected), shared[rows])
    if not error <= tolerance:
        raise UnsupportedBackboneError(
            type(model).__name__,
            f"packed and one-by-one runs differ by {error:.2g} (at most {tolerance:g}); its positions may not come from `position_ids`, "
            "or something depends on the whole row",
        )


def _distance(expected: Tensor, actual: Tensor) -> float:
    """The worst token's error, relative to how far tokens lie from their mean."""
    expected, actual = expected.double(), actual.double()
    spread = (expected - expected.mean(dim=0)).norm(dim=1).median()
    return float((expected - actual).norm(dim=1).max() / spread)


def _draw(model: PreTrainedModel, count: int, *, seed: int) -> list[int]:
    return torch.randint(num_embeddings(model), (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def _groups(model: PreTrainedModel) -> list[PromptGroup]:
    ids = iter(_draw(model, sum(prompt + sum(responses) for prompt, responses in _LENGTHS), seed=2))
    return [_group(list(islice(ids, prompt)), *(list(islice(ids, length)) for length in responses)) for prompt, responses in _LENGTHS]


def _group(prompt: list[int], *responses: list[int]) -> PromptGroup:
    """Each response is one sentence."""
    return PromptGroup(
        prompt_ids=np.array(prompt, dtype=np.int32),
        responses=[
            ResponseIds(ids=np.array(ids, dtype=np.int32), sentence_ends=np.array([len(ids) - 1], dtype=np.int32)) for ids in responses
        ],
    )


def _probe_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """The layer's own attention, after comparing packed attention with it."""
    if _CHECKED not in kwargs:
        raise UnsupportedBackboneError(type(module).__name__, "the model drops keyword arguments, so no plan can reach its attention")
    own, checked = kwargs.pop(_CHECKED)
    check_arguments(module, None, kwargs)
    mask = id(attention_mask), kwargs.get("sliding_window")
    if mask not in checked:
        _check_reach(module, attention_mask, mask[1])
        checked.add(mask)
    attention = _own_function(module, own)
    for dtype in (torch.float32, torch.bfloat16) if query.is_cuda else (torch.float32,):
        _compare(module, attention, [x.to(dtype) for x in (query, key, value)], attention_mask, kwargs)
    return attention(module, query, key, value, attention_mask, **kwargs)


def _compare(
    module: nn.Module,
    attention: Callable[..., tuple[Tensor, Tensor | None]],
    tensors: list[Tensor],
    attention_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> None:
    """The layer's own `attention` in fp32 against the backend for the dtype of `tensors`, also with large scores."""
    query, key, value = tensors
    window, softcap = kwargs.get("sliding_window"), kwargs.get("softcap")
    sinks = kwargs.get("s_aux")
    need = backends.Need.of_call(query, key, value, window=window, softcap=softcap, dropout=0.0, sinks=sinks is not None)
    if softcap is not None and query.is_cuda and query.dtype is torch.float32:
        return  # only half precision has a backend that caps, and the next call compares it
    backend = choose_for(module, need).backend
    plan = AttentionPlan(lengths=(query.shape[2],), parents=(-1,))
    settings = {"scaling": kwargs.get("scaling"), "window": window, "softcap": softcap, "sinks": sinks}
    scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
    q, k, v = query.float(), key.float(), value.float()
    largest = (q @ k.repeat_interleave(q.shape[1] // k.shape[1], dim=1).transpose(2, 3)).abs().max() * scaling
    for factor in (1.0, float(_LARGE_SCORE / largest.clamp_min(1e-6))):
        scaled = query * factor
        expected = attention(module, scaled.float(), k, v, attention_mask, **kwargs)[0]
        actual = backend.attend(scaled, key, value, plan, dropout=0.0, **settings)
        error = float((expected - actual).abs().max() / v.abs().max().clamp_min(1e-6))
        tolerance = _ATTENTION_TOLERANCE[query.dtype]
        if not error <= tolerance:
            raise UnsupportedBackboneError(
                type(module).__name__,
                f"its attention differs from plain softmax attention by {error:.2g} (at most {tolerance:g}); it may cap the scores, or "
                "add a bias",
            )


def _own_function(module: nn.Module, own: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention that defines the layer: the eager function beside its class, else the implementation it was loaded with."""
    names = inspect.unwrap(type(module).forward).__globals__
    eager = names.get("eager_attention_forward")
    if eager is not None:
        return eager
    return names.get("ALL_ATTENTION_FUNCTIONS", AttentionInterface())[own]


def _probe_mask(*, mask_function: Callable[..., Tensor], **kwargs: Any) -> Tensor | None:
    mask = AttentionMaskInterface()["eager"](mask_function=mask_function, **kwargs)
    if mask is not None:
        setattr(mask, _MASK_FUNCTION, mask_function)
    return mask


def _check_reach(module: nn.Module, mask: Tensor | None, window: int | None) -> None:
    """Compare the layer's mask, at distances far beyond the probe's tokens, with causal attention within `window`."""
    name = type(module).__name__
    function = getattr(mask, _MASK_FUNCTION, None)
    if function is None:
        raise UnsupportedBackboneError(name, "the model builds an attention mask of its own, past transformers' mask interface")
    rows, columns = (x.to(mask.device) for x in _places(window))  # type: ignore[union-attr]  # None has no mask function
    zero = torch.zeros_like(rows)
    try:
        seen = function(zero, zero, rows, columns)
    except IndexError:
        raise UnsupportedBackboneError(name, "its attention mask depends on more than the distance between tokens") from None
    distance = rows - columns
    expected = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    if not torch.equal(torch.as_tensor(seen, device=rows.device).expand_as(expected), expected):
        asked = "causal attention" if window is None else f"causal attention within {window} tokens"
        raise UnsupportedBackboneError(
            name, f"its mask is not the {asked} that it asks of its attention (chunks, or a window it does not pass on)"
        )


def _places(window: int | None) -> tuple[Tensor, Tensor]:
    """Rows and columns of a mask to look at: all distances up to `_DENSE` to both sides, and beyond it powers of two and the window."""
    beyond = [2**i + offset for i in range(_DENSE.bit_length(), _FAR.bit_length()) for offset in (-1, 0, 1)]
    beyond += [] if window is None else [window - 1, window, window + 1]
    distance = torch.cat([torch.arange(-_DENSE, _DENSE + 1), torch.tensor(beyond)])
    # From the first rows the first columns are seen. Two rows side by side, because from the last of a chunk it looks like a window.
    rows = torch.tensor([_DENSE, _DENSE + 1, _FAR, _FAR + 1])[:, None].expand(-1, len(distance))
    columns = rows - distance
    inside = columns >= 0
    return rows[inside], columns[inside]


AttentionInterface.register(_NAME, _probe_attention)
AttentionMaskInterface.register(_NAME, _probe_mask)
