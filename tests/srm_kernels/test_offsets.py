"""Offsets that cannot be right are refused before anything runs: by their shape everywhere, by their values where those can be read."""

import re

import pytest
import torch

import srm_kernels as k

# Op on `x` [3] and offsets, and what its error calls the offsets.
OPS = {
    "segment_softmax": (lambda x, cu: k.segment_softmax(x, cu), "cu_seqlens", "len(score)"),
    "difference_rewards": (lambda x, cu: k.difference_rewards(x, cu), "cu_boundaries", "len(value)"),
    "sentence_attention_pool": (
        lambda x, cu: k.sentence_attention_pool(x.new_ones(len(cu) - 1, 2), x.new_ones(3, 2), x, cu),
        "cu_boundaries",
        "len(value)",
    ),
    "sentence_pool": (lambda x, cu: k.sentence_pool(x, cu, "mean"), "cu_boundaries", "len(value)"),
    "token_rewards": (lambda x, cu: k.token_rewards(x, torch.zeros_like(x).long(), cu, x, x), "cu_boundaries", "len(boundaries)"),
    "packed_gae": (lambda x, cu: k.packed_gae(x, x, cu), "cu_seqlens", "len(reward)"),
    "SentenceLayout": (lambda x, cu: k.SentenceLayout(torch.zeros_like(x).long(), cu), "cu_boundaries", "len(boundaries)"),
}


@pytest.mark.parametrize("device", ["cpu", "meta"])  # The second one's values cannot be read, as on a GPU.
@pytest.mark.parametrize("name", OPS)
def test_shapes(name, device):
    op, argument, total = OPS[name]
    x = torch.ones(3, device=device)
    # With no segment no kernel would be launched, and what comes back would be memory that nobody wrote.
    message = re.escape(f"{name}: `{argument}` must have B + 1 entries, got 1, so B = 0, but {total}=3. Rebuild")
    with pytest.raises(ValueError, match=message):
        op(x, torch.zeros(1, dtype=torch.int64, device=device))
    op(x, torch.tensor([0, 3], device=device))
    if name != "sentence_attention_pool":  # Its query has B rows, and here B would be -1.
        with pytest.raises(ValueError, match=rf"^{name}: `{argument}` must have B \+ 1 entries, got none"):
            op(x, torch.zeros(0, dtype=torch.int64, device=device))
    with pytest.raises(TypeError, match=rf"^{name}: `{argument}` must be int32 or int64, got torch\.float32"):
        op(x, torch.zeros(2, device=device))
    with pytest.raises(ValueError, match=rf"^{name}: `{argument}` must have one dimension"):
        op(x, torch.zeros(2, 1, dtype=torch.int64, device=device))


@pytest.mark.parametrize("name", [name for name in OPS if name != "SentenceLayout"])  # Which has `validate`.
@pytest.mark.parametrize(
    ("offsets", "rule"),
    [
        ([1, 3], "must start at 0, got 1"),
        ([0, 2, 1, 3], r"must not fall, got 2 then 1 \(response 1\)"),
        ([0, 1, 2], "must end at .*=3, got 2"),
    ],
)
def test_values(name, offsets, rule):
    op, argument, _ = OPS[name]
    with pytest.raises(ValueError, match=f"^{name}: `{argument}` {rule}"):
        op(torch.ones(3), torch.tensor(offsets))
