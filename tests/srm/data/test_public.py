"""The names that others import."""

from __future__ import annotations

import srm.data


def test_public_names() -> None:
    assert srm.data.__all__ == [
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
    assert all(hasattr(srm.data, name) for name in srm.data.__all__)
