"""A loss that is no number is noticed, on the CPU at once."""

from __future__ import annotations

import math

import pytest
import torch

from srm.errors import UserError
from srm.training.loss_check import LossGuard


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_step_is_named_at_once(value):
    guard = LossGuard()
    guard.watch(torch.tensor(0.7), 1)
    with pytest.raises(UserError, match=f"the loss became {value} at step 2"):
        guard.watch(torch.tensor(value), 2)
    guard.settle()


@pytest.mark.gpu
def test_cuda_answers_later_but_before_anything_is_saved():
    guard = LossGuard()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = torch.full((), math.nan, device="cuda")
        try:
            guard.watch(loss, 3)
        except UserError:
            return
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(UserError, match="the loss became nan at step 3"):
        guard.settle()
