"""srm-train in processes on the CPU that accelerate shards as it would GPUs. Started by `accelerate launch`, with srm-train's flags.

accelerate shards models on accelerators only. FSDP2 itself runs on CPUs over gloo, so all that is told otherwise here is the kind of
machine. The last line says in which dtype rewards came out of the model.
"""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from srm.cli.train import main
from srm.training import trainer


def accelerators_are_cpus(self: PartialState, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def every_process_has_the_cpu(self: PartialState) -> None:
    self.device = torch.device("cpu")


REWARD_LOSS = trainer.reward_loss
DTYPES: set[str] = set()


def watched_loss(output: Any, *args: Any, **settings: Any) -> torch.Tensor:
    DTYPES.add(str(output.reward.dtype))
    return REWARD_LOSS(output, *args, **settings)


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = accelerators_are_cpus
    PartialState.set_device = every_process_has_the_cpu
    trainer.reward_loss = watched_loss
    code = main()
    print("rewards:", *sorted(DTYPES))
    sys.exit(code)
