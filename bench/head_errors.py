"""How exact the head's products on tensor cores are: each output's and gradient's error beside that of fp32, from fp64, by width.

    python bench/head_errors.py --json bench/results/head_errors.json

Needs a CUDA device. bf16 rows of 4,000 tokens, 20 responses of 40 boundaries, A = 256.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import environment
import torch
from torch import Tensor

import srm_kernels
from srm_kernels import SentenceLayout, cu_from_lengths
from srm_kernels.ops.sentence_reward_head.reference import sentence_reward_head_reference

WIDTHS = (576, 2048, 4096, 8192)
NUM_TOKENS, RESPONSES, BOUNDARIES, ATTENTION = 4000, 20, 40, 256


def main() -> None:
    arguments = environment.parser(__doc__).parse_args()
    result = {**environment.describe(), "relative errors": {str(width): errors(width) for width in WIDTHS}}
    print(json.dumps(result["relative errors"], indent=2))
    environment.write(arguments.json, result)


def errors(width: int) -> dict[str, list[float]]:
    """`tensor cores` and `fp32`: the norm of the error over the norm of fp64's result, of each output and then each gradient."""
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", generator=generator)

    boundaries = torch.arange(RESPONSES * BOUNDARIES, device="cuda") * (NUM_TOKENS // (RESPONSES * BOUNDARIES))
    layout = SentenceLayout(boundaries, cu_from_lengths([BOUNDARIES] * RESPONSES).cuda(), ascending=True)
    hidden = draw(NUM_TOKENS, width).bfloat16()
    weights = [draw(*shape) / 64 for shape in ((1, width), (1,), (ATTENTION, width), (ATTENTION,), (ATTENTION, width), (ATTENTION,))]

    def run(head: Callable[..., Sequence[Tensor]], leaves: Sequence[Tensor]) -> list[Tensor]:
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        outputs = head(leaves[0], layout, *leaves[1:])
        return [*outputs, *torch.autograd.grad(sum(x.square().sum() for x in outputs), leaves)]  # type: ignore[type-var]

    exact, single = (
        run(sentence_reward_head_reference, [x.to(dtype) for x in (hidden, *weights)]) for dtype in (torch.float64, torch.float32)
    )
    ours = run(lambda *x: srm_kernels.sentence_reward_head(*x, backend="triton"), [hidden, *weights])

    def off(found: Sequence[Tensor]) -> list[float]:
        norm = torch.linalg.vector_norm
        return [float(norm(x.double() - wanted) / norm(wanted)) for x, wanted in zip(found, exact, strict=True)]

    return {"tensor cores": off(ours), "fp32": off(single)}


if __name__ == "__main__":
    main()
