"""srm-train in processes on the CPU that accelerate shards as it would GPUs. Started by `accelerate launch`, with srm-train's flags.

accelerate shards models on accelerators only. FSDP2 itself runs on CPUs over gloo, so all that is told otherwise here is the kind of
machine.
"""

from __future__ import annotations

import sys
from typing import Any

import torch.distributed
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from srm.cli.train import main


def accelerators_are_cpus(self: PartialState, *args: Any, **kwargs: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


def every_process_has_the_cpu(self: PartialState) -> None:
    self.device = torch.device("cpu")


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    PartialState._prepare_backend = accelerators_are_cpus
    PartialState.set_device = every_process_has_the_cpu
    sys.exit(main())
