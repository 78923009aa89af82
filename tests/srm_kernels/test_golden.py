"""The head against outputs of the head that the paper's authors published."""

import gzip
import json

import pytest
import torch

from srm_kernels import SentenceLayout, cu_from_lengths, sentence_reward_head
from srm_kernels.ops.sentence_reward_head.reference import sentence_reward_head_reference


@pytest.mark.parametrize("head", [sentence_reward_head, sentence_reward_head_reference])
def test_matches_the_authors(golden, head):
    golden = json.loads(gzip.decompress((golden / "head_parity.json.gz").read_bytes()))

    def tensor(name: str) -> torch.Tensor:
        return torch.tensor(golden[name], dtype=torch.float64)

    hidden = tensor("hidden")
    num_responses, length, _ = hidden.shape
    boundaries = torch.tensor([length * b + t for b, row in enumerate(golden["boundaries"]) for t in row])
    layout = SentenceLayout(boundaries, cu_from_lengths([len(row) for row in golden["boundaries"]]))
    layout.validate(num_responses * length)
    weights = [tensor(f"{name}_{part}") for name in ("value", "query", "key") for part in ("weight", "bias")]
    reward, sentence_reward, *_ = head(hidden.flatten(0, 1), layout, *weights, rope_theta=golden["rope_theta"], pooling="attention")
    # Their rotary table is fp32, so agreement ends near 1e-8.
    torch.testing.assert_close(reward, tensor("response_reward"), rtol=0, atol=1e-8)
    expected = torch.tensor([r for row in golden["sentence_reward"] for r in row], dtype=torch.float64)
    torch.testing.assert_close(sentence_reward, expected, rtol=0, atol=1e-8)
