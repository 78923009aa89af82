"""Ops for sentence-level reward models on packed, variable-length batches. Needs torch alone; triton where it exists.

Shape letters, used throughout: `T` packed tokens, `N` sentence boundaries, `B` responses, `D` hidden, `A` attention width.
"""

from ._version import __version__
from .backend import Backend, BackendReport, backend_report
from .layout import SentenceLayout, cu_from_lengths
from .ops.bradley_terry_loss.op import bradley_terry_loss
from .ops.difference_rewards.op import difference_rewards
from .ops.gather_boundaries.op import gather_boundaries
from .ops.packed_gae.op import packed_gae
from .ops.segment_softmax.op import segment_softmax
from .ops.sentence_attention_pool.op import sentence_attention_pool, sentence_pool
from .ops.sentence_reward_head.module import SentenceRewardHead
from .ops.sentence_reward_head.op import SentenceRewardHeadOutput, sentence_reward_head
from .ops.token_rewards.op import token_rewards
from .pooling import Pooling

__all__ = [
    "Backend",
    "BackendReport",
    "Pooling",
    "SentenceLayout",
    "SentenceRewardHead",
    "SentenceRewardHeadOutput",
    "__version__",
    "backend_report",
    "bradley_terry_loss",
    "cu_from_lengths",
    "difference_rewards",
    "gather_boundaries",
    "packed_gae",
    "segment_softmax",
    "sentence_attention_pool",
    "sentence_pool",
    "sentence_reward_head",
    "token_rewards",
]
