"""One step of SentenceGRPOTrainer in one of two processes: `trl_run REWARD_MODEL POLICY OUTPUT`, where what it was given is saved."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from test_trl import trainer

from srm import SentenceRewardModel
from srm.integrations.trl import SentenceGRPOTrainer, SentenceRewardFunction, _split


class Spy(SentenceGRPOTrainer):
    outputs: list[dict[str, Any]]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.outputs.append({"advantages": output["advantages"], "mask": output["completion_mask"], "parts": _split(function.last)})
        return output


if __name__ == "__main__":
    torch.set_num_threads(1)
    model, policy, output = map(Path, sys.argv[1:])
    function = SentenceRewardFunction(SentenceRewardModel.from_pretrained(model).eval())
    grpo = trainer(Spy, function, policy, output.parent / "run", per_device_train_batch_size=3, max_steps=1)
    grpo.outputs = []
    grpo.train()
    torch.save(grpo.outputs[0], output)
