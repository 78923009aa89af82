"""Preference data: read it in any of the usual forms, turn it into tokens with sentence boundaries, and batch it."""

from srm.data.collate import PairCollator
from srm.data.dataset import encode_comparisons
from srm.data.encode import EncodedResponse, ResponseEncoder
from srm.data.mixture import DataPart, read_mixture
from srm.data.overlong import EncodedComparison, OverlongPolicy, OverlongReport
from srm.data.read import read_comparisons, read_prompts, read_responses
from srm.data.rows import parse_row
from srm.data.schema import Comparison, Conversation, Message, Prompt, Response, ResponseRow
from srm.data.template import PLAIN_TEMPLATE

__all__ = [
    "PLAIN_TEMPLATE",
    "Comparison",
    "Conversation",
    "DataPart",
    "EncodedComparison",
    "EncodedResponse",
    "Message",
    "OverlongPolicy",
    "OverlongReport",
    "PairCollator",
    "Prompt",
    "Response",
    "ResponseEncoder",
    "ResponseRow",
    "encode_comparisons",
    "parse_row",
    "read_comparisons",
    "read_mixture",
    "read_prompts",
    "read_responses",
]
