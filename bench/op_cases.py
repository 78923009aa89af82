"""What bench/ops.py measures: one `Case` for each op and size, with its providers, its fp64 definition and the bytes it must move.

Shape letters: `T` tokens, `N` boundaries, `B` responses, `D` hidden, `A` attention width, `H` heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import op_baselines as other
import op_packages as packages
import torch
from lengths import PackedLengths
from torch import Tensor

import srm_kernels as ours
from srm_kernels.ops.bradley_terry_loss.reference import bradley_terry_loss_reference
from srm_kernels.ops.difference_rewards.reference import difference_rewards_reference
from srm_kernels.ops.gather_boundaries.reference import gather_boundaries_reference
from srm_kernels.ops.packed_gae.reference import packed_gae_reference
from srm_kernels.ops.segment_softmax.reference import segment_softmax_reference
from srm_kernels.ops.sentence_attention_pool.reference import sentence_attention_pool_reference
from srm_kernels.ops.sentence_reward_head.reference import sentence_reward_head_reference
from srm_kernels.ops.token_rewards.reference import token_rewards_reference

__all__ = ["COMPILED", "EAGER", "OPS", "OURS", "Case", "Provider", "Setting", "make_case"]

OURS, EAGER, COMPILED = "srm_kernels", "reference, eager", "reference, torch.compile"
# Largest error an element may have, beside its own size plus the root mean square of its tensor, for arithmetic in fp32, and for sums of
# numbers that were rounded to bf16: the gradients of siblings meet on their prompt's last token and all but cancel.
FP32, BF16_SUMS = 2e-4, 0.5
THETA, GAMMA, LAM, KL = 1e4, 0.99, 0.95, 0.05
# What the baselines compute: PyG knows no attention over values.
POOLING: ours.Pooling = "attention"
FORWARD, BOTH = ("forward",), ("forward", "backward", "both")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Sizes of one case. width: D, A, H or B, whichever the op has; 0 for none. compile: `torch.compile` of a function, by a name."""

    op: str
    lengths: PackedLengths
    width: int
    dtype: torch.dtype
    device: torch.device
    backend: str
    compile: Callable[..., Callable[..., Any]]


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One way to compute the op.

    run: the floating-point inputs, by name, to a tuple of outputs; of fewer outputs than the definition's, the first ones.
    finish: brings the outputs into the form of the definition's, outside the clock.
    tolerance: of its arithmetic; an output of a coarser dtype has the tolerance of that dtype.
    """

    run: Callable[..., tuple[Tensor, ...]]
    finish: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = lambda outputs: outputs
    modes: tuple[str, ...] = BOTH
    tolerance: float = FP32


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one size.

    definition: the same signature as `Provider.run`, evaluated in fp64.
    bytes: that must move, forward and backward.
    grad_outputs: how many of the outputs the gradients flow from.
    left_out: provider to the reason why it is not here.
    """

    sizes: dict[str, int]
    floats: dict[str, Tensor]
    definition: Callable[..., tuple[Tensor, ...]]
    providers: dict[str, Provider]
    bytes: tuple[int, int]
    grad_outputs: int
    left_out: Mapping[str, str] = field(default_factory=dict)


def make_case(setting: Setting) -> Case:
    """The case of `setting`, its inputs on the device."""
    return OPS[setting.op](setting)


def _draw(setting: Setting, *shape: int, seed: int = 0, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
    generator = torch.Generator(setting.device).manual_seed(seed)
    x = torch.empty(shape, dtype=dtype or setting.dtype, device=setting.device)
    return x.normal_(0, scale, generator=generator).requires_grad_()


def _dynamic(*tensors: Tensor) -> None:
    """Token and boundary counts differ in every batch: one compilation must serve all."""
    for x in tensors:
        torch._dynamo.maybe_mark_dynamic(x, 0)


def _layout(setting: Setting) -> ours.SentenceLayout:
    return setting.lengths.layout.to(setting.device)


def _tuple(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
    return lambda *args, **kwargs: (function(*args, **kwargs),)


def _counts(setting: Setting) -> tuple[int, int, int, int]:
    layout = setting.lengths.layout
    return setting.lengths.num_tokens, layout.num_boundaries, layout.num_responses, setting.dtype.itemsize


def gather(setting: Setting) -> Case:
    layout, (t, n, _, size) = _layout(setting), _counts(setting)
    index, d = layout.boundaries, setting.width
    hidden = _draw(setting, t, d)
    _dynamic(hidden, index)
    compiled = setting.compile("gather", gather_boundaries_reference)
    return Case(
        sizes={"T": t, "N": n, "D": d},
        floats={"hidden": hidden},
        definition=_tuple(lambda hidden: gather_boundaries_reference(hidden, index)),
        providers={
            OURS: Provider(run=_tuple(lambda hidden: ours.gather_boundaries(hidden, layout, backend=setting.backend))),
            EAGER: Provider(run=_tuple(lambda hidden: gather_boundaries_reference(hidden, index)), tolerance=BF16_SUMS),
            COMPILED: Provider(run=_tuple(lambda hidden: compiled(hidden, index)), tolerance=BF16_SUMS),
            "hidden[boundaries]": Provider(run=_tuple(lambda hidden: hidden[index]), tolerance=BF16_SUMS),
        },
        bytes=(2 * n * d * size + 8 * n, (n + t) * d * size + 8 * n),
        grad_outputs=1,
    )


def softmax(setting: Setting) -> Case:
    cu_seqlens, (t, n, b, _) = _layout(setting).cu_boundaries, _counts(setting)
    score = _draw(setting, *((n, setting.width) if setting.width else (n,)), dtype=torch.float32, scale=3)
    _dynamic(score, cu_seqlens)
    compiled = setting.compile("softmax", segment_softmax_reference)
    lengths = cu_seqlens.diff().long()
    segment, padding = torch.repeat_interleave(lengths), other.Padding.of(cu_seqlens)
    run: dict[str, Callable[[Tensor], Tensor]] = {
        OURS: lambda score: ours.segment_softmax(score, cu_seqlens, backend=setting.backend),
        EAGER: lambda score: segment_softmax_reference(score, cu_seqlens),
        COMPILED: lambda score: compiled(score, cu_seqlens),
        "torch.segment_reduce": lambda score: other.reduced_softmax(score, lengths, segment),
        "padded, masked": lambda score: other.padded_softmax(score, padding),
    }
    theirs, left_out = packages.installed(packages.softmaxes(cu_seqlens))
    moved = score.numel() * score.element_size()
    return Case(
        sizes={"T": t, "N": n, "B": b, "H": setting.width},
        floats={"score": score},
        definition=_tuple(lambda score: segment_softmax_reference(score, cu_seqlens)),
        providers={name: Provider(run=_tuple(function)) for name, function in (run | theirs).items()},
        bytes=(2 * moved, 3 * moved),
        grad_outputs=1,
        left_out=left_out,
    )


def difference(setting: Setting) -> Case:
    cu_boundaries, (t, n, b, _) = _layout(setting).cu_boundaries, _counts(setting)
    value = _draw(setting, n, dtype=torch.float32)
    _dynamic(value, cu_boundaries)
    compiled = setting.compile("difference", difference_rewards_reference)
    run = {
        OURS: lambda value: ours.difference_rewards(value, cu_boundaries, backend=setting.backend),
        EAGER: lambda value: difference_rewards_reference(value, cu_boundaries),
        COMPILED: lambda value: compiled(value, cu_boundaries),
    }
    theirs, left_out = packages.installed(packages.differences(cu_boundaries))
    providers = {name: Provider(run=_tuple(function)) for name, function in run.items()}
    for name, their in theirs.items():
        finish = their.finish
        providers[name] = Provider(
            run=_tuple(their.run), finish=lambda outputs, finish=finish: (finish(*outputs),), modes=BOTH if their.backward else FORWARD
        )
    return Case(
        sizes={"T": t, "N": n, "B": b},
        floats={"value": value},
        definition=_tuple(lambda value: difference_rewards_reference(value, cu_boundaries)),
        providers=providers,
        bytes=(8 * n + 4 * b, 8 * n + 4 * b),
        grad_outputs=1,
        left_out=left_out,
    )


def pool(setting: Setting) -> Case:
    cu_boundaries, (t, n, b, _), a = _layout(setting).cu_boundaries, _counts(setting), setting.width
    floats = {"query": _draw(setting, b, a), "key": _draw(setting, n, a, seed=1), "value": _draw(setting, n, seed=2)}
    floats = {name: x.detach().float().requires_grad_() for name, x in floats.items()}
    _dynamic(*floats.values(), cu_boundaries)
    compiled = setting.compile("pool", sentence_attention_pool_reference)
    rotary, padding = other.RotaryPool.of(cu_boundaries, a, THETA), other.Padding.of(cu_boundaries)
    lengths = cu_boundaries.diff().long()
    run: dict[str, Callable[..., tuple[Tensor, ...]]] = {
        OURS: lambda query, key, value: ours.sentence_attention_pool(
            query, key, value, cu_boundaries, THETA, pooling=POOLING, backend=setting.backend
        ),
        EAGER: lambda query, key, value: sentence_attention_pool_reference(query, key, value, cu_boundaries, THETA, pooling=POOLING),
        COMPILED: lambda query, key, value: compiled(query, key, value, cu_boundaries, THETA, pooling=POOLING),
        "torch.segment_reduce": lambda **x: rotary.pool(**x, softmax=lambda s: other.reduced_softmax(s, lengths, rotary.segments.segment)),
        "padded, masked": lambda **x: rotary.pool(**x, softmax=lambda s: other.padded_softmax(s, padding)),
    }
    theirs, left_out = packages.installed({"PyG AttentionalAggregation": lambda: other.pyg_pool(rotary)})
    vectors, scalars = 4 * (n + b) * a, 4 * (3 * n + b)
    return Case(
        sizes={"T": t, "N": n, "B": b, "A": a},
        floats=floats,
        definition=lambda query, key, value: sentence_attention_pool_reference(query, key, value, cu_boundaries, THETA, pooling=POOLING),
        providers={name: Provider(run=function) for name, function in (run | theirs).items()},
        bytes=(vectors + scalars, 2 * vectors + scalars + 8 * n),
        grad_outputs=2,
        left_out=left_out,
    )


def plain_pool(setting: Setting) -> Case:
    cu_boundaries, (t, n, b, _) = _layout(setting).cu_boundaries, _counts(setting)
    value = _draw(setting, n, dtype=torch.float32)
    _dynamic(value, cu_boundaries)
    compiled, rest = setting.compile("plain_pool", sentence_attention_pool_reference), (cu_boundaries, None, True, True, "mean")
    lengths, padding, segments = cu_boundaries.diff().long(), other.Padding.of(cu_boundaries), other.Segments.of(cu_boundaries)
    run: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
        OURS: lambda value: ours.sentence_pool(value, cu_boundaries, "mean", backend=setting.backend),
        EAGER: lambda value: sentence_attention_pool_reference(None, None, value, *rest),
        COMPILED: lambda value: compiled(None, None, value, *rest),
        "torch.segment_reduce": lambda value: other.reduced_mean(value, lengths, segments),
        "padded, masked": lambda value: other.padded_mean(value, padding),
    }
    theirs, left_out = packages.installed({"PyG MeanAggregation": lambda: other.pyg_mean(segments)})
    return Case(
        sizes={"T": t, "N": n, "B": b},
        floats={"value": value},
        definition=run[EAGER],
        providers={name: Provider(run=function) for name, function in (run | theirs).items()},
        bytes=(12 * n + 8 * b, 8 * n + 8 * b),
        grad_outputs=2,
        left_out=left_out,
    )


def head(setting: Setting) -> Case:
    layout, (t, n, b, size) = _layout(setting), _counts(setting)
    d, a = setting.width, 256
    hidden = _draw(setting, t, d)
    _dynamic(hidden, layout.boundaries, layout.cu_boundaries)
    shapes = {
        "value_weight": (1, d),
        "value_bias": (1,),
        "query_weight": (a, d),
        "query_bias": (a,),
        "key_weight": (a, d),
        "key_bias": (a,),
    }
    floats = {
        name: _draw(setting, *shape, seed=i + 1, dtype=torch.float32, scale=shape[-1] ** -0.5 if len(shape) == 2 else 0.1)
        for i, (name, shape) in enumerate(shapes.items())
    }

    def reference(hidden: Tensor, boundaries: Tensor, cu_boundaries: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return sentence_reward_head_reference(hidden, ours.SentenceLayout(boundaries, cu_boundaries), *weights)

    compiled = setting.compile("head", reference)

    def full(dtype: torch.dtype) -> Callable[..., tuple[Tensor, ...]]:
        return lambda hidden, **w: other.full_sequence_head(hidden, layout, list(w.values()), dtype)

    weights = 4 * sum(x.numel() for x in floats.values())
    return Case(
        sizes={"T": t, "N": n, "B": b, "D": d, "A": a},
        floats={"hidden": hidden, **floats},
        definition=lambda hidden, **w: sentence_reward_head_reference(hidden, layout, **w),
        providers={
            OURS: Provider(run=lambda hidden, **w: tuple(ours.sentence_reward_head(hidden, layout, **w, backend=setting.backend))),
            EAGER: Provider(run=lambda hidden, **w: sentence_reward_head_reference(hidden, layout, **w), tolerance=BF16_SUMS),
            COMPILED: Provider(
                run=lambda hidden, **w: compiled(hidden, layout.boundaries, layout.cu_boundaries, *w.values()), tolerance=BF16_SUMS
            ),
            "full sequence fp32, eager": Provider(run=full(torch.float32), tolerance=BF16_SUMS),
            "full sequence bf16, eager": Provider(run=full(torch.bfloat16), tolerance=BF16_SUMS),
        },
        bytes=(n * d * size + weights + 12 * n, (n + t) * d * size + 2 * weights + 12 * n),
        grad_outputs=4,
    )


def bradley_terry(setting: Setting) -> Case:
    b = setting.width
    pairs = torch.arange(b, device=setting.device).reshape(-1, 2)
    reward = _draw(setting, b, dtype=torch.float32)
    _dynamic(reward, pairs)
    compiled = setting.compile("bradley_terry", bradley_terry_loss_reference)
    run = {
        OURS: lambda reward: ours.bradley_terry_loss(reward, pairs, None, 0.1, 0.01, backend=setting.backend),
        EAGER: lambda reward: bradley_terry_loss_reference(reward, pairs, None, 0.1, 0.01),
        COMPILED: lambda reward: compiled(reward, pairs, None, 0.1, 0.01),
    }
    return Case(
        sizes={"B": b, "P": b // 2},
        floats={"reward": reward},
        definition=_tuple(lambda reward: bradley_terry_loss_reference(reward, pairs, None, 0.1, 0.01)),
        providers={name: Provider(run=_tuple(function)) for name, function in run.items()},
        bytes=(8 * b + 4 * b + 4, 8 * b),
        grad_outputs=1,
    )


def tokens(setting: Setting) -> Case:
    layout, (t, n, _, _) = _layout(setting), _counts(setting)
    floats = {"sentence_reward": _draw(setting, n, dtype=torch.float32)}
    floats |= {name: _draw(setting, t, seed=i, dtype=torch.float32) for i, name in enumerate(("logprobs", "ref_logprobs"), 1)}
    _dynamic(*floats.values(), layout.boundaries, layout.cu_boundaries)
    compiled, indices = setting.compile("token_rewards", token_rewards_reference), (layout.boundaries, layout.cu_boundaries)
    run = {
        OURS: lambda sentence_reward, **x: ours.token_rewards(
            sentence_reward, *indices, **x, kl_coef=KL, estimator="k3", backend=setting.backend
        ),
        EAGER: lambda sentence_reward, **x: token_rewards_reference(sentence_reward, *indices, **x, kl_coef=KL, estimator="k3"),
        COMPILED: lambda sentence_reward, **x: compiled(sentence_reward, *indices, **x, kl_coef=KL, estimator="k3"),
    }
    return Case(
        sizes={"T": t, "N": n},
        floats=floats,
        definition=_tuple(run[EAGER]),
        providers={name: Provider(run=_tuple(function)) for name, function in run.items()},
        bytes=(12 * t + 12 * n, 20 * t + 12 * n),
        grad_outputs=1,
    )


def gae(setting: Setting) -> Case:
    cu_seqlens, t = setting.lengths.cu_seqlens.to(setting.device), setting.lengths.num_tokens
    floats = {"reward": _draw(setting, t, dtype=torch.float32), "value": _draw(setting, t, seed=1, dtype=torch.float32)}
    _dynamic(*floats.values(), cu_seqlens)
    compiled = setting.compile("gae", packed_gae_reference)
    # Its inputs are rows of a matrix, whose storage offsets would each be a compilation otherwise.
    step = setting.compile("gae step", other.gae_step, dynamic=True)
    padding = other.Padding.of(cu_seqlens)
    padded = [padding.pad(x.detach(), 0.0).T.contiguous() for x in floats.values()]

    def loop(step: Callable[..., Tensor]) -> Provider:
        # Padded beforehand, and no graph for a backward: to the loop's favour.
        def finish(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(padding.unpad(x.T) for x in outputs)

        return Provider(run=lambda **_: other.padded_gae(*padded, GAMMA, LAM, step), finish=finish, modes=FORWARD)

    return Case(
        sizes={"T": t, "S": cu_seqlens.numel() - 1, "L": padding.mask.shape[1]},
        floats=floats,
        definition=lambda reward, value: packed_gae_reference(reward, value, cu_seqlens, GAMMA, LAM),
        providers={
            OURS: Provider(run=lambda reward, value: ours.packed_gae(reward, value, cu_seqlens, GAMMA, LAM, backend=setting.backend)),
            EAGER: Provider(run=lambda reward, value: packed_gae_reference(reward, value, cu_seqlens, GAMMA, LAM)),
            COMPILED: Provider(run=lambda reward, value: compiled(reward, value, cu_seqlens, GAMMA, LAM)),
            "Python loop": loop(other.gae_step),
            "Python loop, step by torch.compile": loop(step),
        },
        bytes=(16 * t, 16 * t),
        grad_outputs=2,
    )


OPS: dict[str, Callable[[Setting], Case]] = {
    "gather_boundaries": gather,
    "segment_softmax": softmax,
    "difference_rewards": difference,
    "sentence_attention_pool": pool,
    "sentence_pool": plain_pool,
    "sentence_reward_head": head,
    "bradley_terry_loss": bradley_terry,
    "token_rewards": tokens,
    "packed_gae": gae,
}
