"""What the proofs on a loaded model share: a handful of tokens, a model that stays as it was, and how far two results may lie apart."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from srm.packing.backbone import num_embeddings
from srm.packing.batch import PromptGroup, ResponseIds

__all__ = [
    "LEAK_TOLERANCE",
    "MODEL_TOLERANCE",
    "coarser",
    "distance",
    "draw",
    "followed_embeddings",
    "one_group",
    "own_function",
    "random_weights",
    "trial_groups",
    "undisturbed",
]

# Prompt length and response lengths of the probe's groups: siblings, one-token segments, a second prompt.
_LENGTHS = ((5, (3, 6, 1)), (1, (4, 2)))
# Whole model, relative to how much tokens differ. Rounding in half precision adds up over the layers; a wrong layout is of order one.
MODEL_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
# Siblings of a changed response keep their bits, except in mixtures of experts, whose matrix shapes depend on all tokens.
LEAK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


@contextmanager
def undisturbed(backbone: nn.Module, model: PreTrainedModel) -> Iterator[None]:
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


@contextmanager
def followed_embeddings(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """The embeddings that a forward pass in this block looks up, as leaves: a gradient reaches them also with frozen weights."""
    embedded: list[Tensor] = []

    def follow(module: nn.Module, arguments: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    hook = model.get_input_embeddings().register_forward_hook(follow)
    try:
        with torch.enable_grad():
            yield embedded
    finally:
        hook.remove()


def random_weights(hidden: Tensor) -> Tensor:
    """What to multiply states with before they are added up. No plain sum: behind a norm it is the same whatever the states are."""
    return torch.randn(hidden.shape, generator=torch.Generator().manual_seed(4)).to(hidden)


def coarser(one: torch.dtype, other: torch.dtype) -> torch.dtype:
    """Norms and adapters may be kept in fp32 while the rest rounds in half precision."""
    return max(one, other, key=lambda dtype: torch.finfo(dtype).eps)


def distance(expected: Tensor, actual: Tensor) -> float:
    """The worst token's error, relative to how far tokens lie from their mean."""
    expected, actual = expected.double(), actual.double()
    spread = (expected - expected.mean(dim=0)).norm(dim=1).median()
    return float((expected - actual).norm(dim=1).max() / spread)


def draw(model: PreTrainedModel, count: int, *, seed: int) -> list[int]:
    return torch.randint(num_embeddings(model), (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def trial_groups(model: PreTrainedModel) -> list[PromptGroup]:
    ids = iter(draw(model, sum(prompt + sum(responses) for prompt, responses in _LENGTHS), seed=2))
    return [one_group(list(islice(ids, prompt)), *(list(islice(ids, length)) for length in responses)) for prompt, responses in _LENGTHS]


def one_group(prompt: list[int], *responses: list[int]) -> PromptGroup:
    """Each response is one sentence."""
    return PromptGroup(
        prompt_ids=np.array(prompt, dtype=np.int32),
        responses=[
            ResponseIds(ids=np.array(ids, dtype=np.int32), sentence_ends=np.array([len(ids) - 1], dtype=np.int32)) for ids in responses
        ],
    )


def own_function(module: nn.Module, own: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention that defines the layer: the eager function beside its class, else the implementation it was loaded with."""
    names = inspect.unwrap(type(module).forward).__globals__
    eager = names.get("eager_attention_forward")
    if eager is not None:
        return eager
    return names.get("ALL_ATTENTION_FUNCTIONS", AttentionInterface())[own]
