"""Text to sentences, sentences to the last token of each."""

from srm.segmentation.byte_table import ByteTable
from srm.segmentation.config import SegmentationConfig, Segmenter, Span
from srm.segmentation.end_ids import end_ids, turn_end_ids
from srm.segmentation.segmenters import make_segmenter
from srm.segmentation.token_segmenter import TokenSegmenter, TokenSentences, content_lengths
from srm.segmentation.tokens import SentenceTokens, sentence_ends_from_offsets

__all__ = [
    "ByteTable",
    "SegmentationConfig",
    "Segmenter",
    "SentenceTokens",
    "Span",
    "TokenSegmenter",
    "TokenSentences",
    "content_lengths",
    "end_ids",
    "make_segmenter",
    "sentence_ends_from_offsets",
    "turn_end_ids",
]
