"""Proof, on the loaded model, that a backbone goes on from its cache of keys and values, and that tokens can be taken back from it."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers import DynamicCache

from srm.errors import UserError
from srm.packing.backbone import num_embeddings, restore, unwrap
from srm.scoring.protocol import RewardModel

__all__ = ["check_cache", "run_cached"]

# Attribute on the backbone that remembers that it passed.
_PROVED = "_srm_cache_proved"
# Of the median token, relative to how far tokens lie from their mean: where a state is lost every later token is off, by order one. The
# median, because in half precision rounding may send a few tokens of a mixture of experts to other experts.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 0.2, torch.float16: 0.1}
_NUM_TOKENS, _KEPT = 16, 6


def check_cache(model: RewardModel) -> None:
    """Refuse a backbone that cannot score a stream. The proof is made once a loaded model.

    Args:
        model: the reward model; it runs in eval mode, and has its own mode again afterwards.

    Raises:
        UserError: the backbone keeps a running state, or its states are others with a cache than without.
    """
    backbone = unwrap(model.backbone)
    name = type(backbone).__name__
    if backbone._is_stateful:
        raise _refused(f"{name} keeps a running state, which cannot be taken back when a token changes")
    if getattr(backbone, _PROVED, False):
        return
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(num_embeddings(backbone), (_NUM_TOKENS,), generator=generator).tolist()
    cache = DynamicCache()
    try:
        whole = run_cached(model, ids, DynamicCache())[_KEPT:].double()
        run_cached(model, ids[:_KEPT] + ids[:3], cache)
        cache.crop(-3)
        continued = run_cached(model, ids[_KEPT:], cache).double()
    except UserError:
        raise
    except Exception as error:
        # A hybrid of attention and recurrence may want a cache of its own class, and fails in its own way with another.
        raise _refused(f"{name} does not run on a cache of keys and values alone") from error
    spread = (whole - whole.mean(dim=0)).norm(dim=1).median()
    moved = float((whole - continued).norm(dim=1).median() / spread)
    if moved > _TOLERANCE[backbone.dtype]:
        raise _refused(f"{name} goes on from its cache with other states (off by {moved:.2g}), as models with a running state do")
    setattr(backbone, _PROVED, True)


@torch.no_grad()
def run_cached(model: RewardModel, ids: list[int], cache: DynamicCache) -> Tensor:
    """Hidden states [len(ids), D] of the tokens that follow those in `cache`, which grows by them.

    Args:
        model: the reward model; it runs in eval mode, and has its own mode again afterwards.
        ids: the next tokens.
        cache: made without the model's config, so that layers with a sliding window keep all tokens, which may have to be taken back.

    Raises:
        UserError: the backbone does not keep its keys and values in the cache.
    """
    # `score` may have switched the backbone to the packed attention, which knows no cache.
    restore(model.backbone)
    start = cache.get_seq_length()
    input_ids = torch.tensor([ids], device=model.device)
    position_ids = torch.arange(start, start + len(ids), device=model.device)[None]
    was_training = model.training
    model.eval()
    try:
        output = model.backbone(input_ids=input_ids, position_ids=position_ids, use_cache=True, **{_cache_argument(model): cache})
    finally:
        model.train(was_training)
    if cache.get_seq_length() != start + len(ids):
        raise _refused(f"{type(unwrap(model.backbone)).__name__} does not keep its keys and values in the cache it is given")
    return output.last_hidden_state[0]


def _cache_argument(model: RewardModel) -> str:
    """What the backbone calls its cache: transformers renamed it in 5.24, architecture by architecture."""
    return "cache" if "cache" in inspect.signature(unwrap(model.backbone).forward).parameters else "past_key_values"


def _refused(reason: str) -> UserError:
    return UserError(f"stream: {reason}. Score finished responses with `score`.")
