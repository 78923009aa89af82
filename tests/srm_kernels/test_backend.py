"""Which implementation runs is said, and never a surprise."""

import logging

import pytest
import torch

from srm_kernels import backend, backend_report, difference_rewards
from srm_kernels.backend import choose_backend
from srm_kernels.ops.registration import values_readable

CU = torch.tensor([0, 2])


def test_report_names_the_cpu_and_a_reason():
    report = backend_report()
    (cpu,) = (choice for choice in report.choices if choice.device == "cpu")
    assert cpu.backend == "torch"
    assert f"cpu: torch ({cpu.reason})" in str(report)
    assert report.torch_version == torch.__version__


def test_triton_where_it_cannot_run_raises():
    with pytest.raises(RuntimeError, match=r'difference_rewards: `backend="triton"` cannot run on cpu: Triton has no CPU backend'):
        difference_rewards(torch.ones(2), CU, backend="triton")


@pytest.mark.interpreter
def test_the_interpreter_only_runs_when_asked_for(monkeypatch):
    monkeypatch.setattr("srm_kernels.ops.difference_rewards.reference.difference_by_segment", lambda *_: 1 / 0)
    assert difference_rewards(torch.ones(2), CU, backend="triton").tolist() == [1, 0]
    with pytest.raises(ZeroDivisionError):
        difference_rewards(torch.ones(2), CU, backend="auto")
    assert "the Triton interpreter only runs when asked for by name" in str(backend_report())


def test_without_triton_auto_is_torch_and_says_so(monkeypatch):
    monkeypatch.setattr(backend, "_triton_version", lambda: None)
    _forget()
    try:
        assert "cpu: torch (triton is not installed)" in str(backend_report())
        assert choose_backend("op", "auto", torch.device("cpu")) == "torch"
        with pytest.raises(RuntimeError, match="triton is not installed"):
            choose_backend("op", "triton", torch.device("cpu"))
    finally:
        _forget()


def test_an_unknown_backend_is_named():
    with pytest.raises(ValueError, match='difference_rewards: `backend` must be "auto", "triton" or "torch", got \'cuda\''):
        difference_rewards(torch.ones(2), CU, backend="cuda")


def test_the_choice_is_logged_once(caplog):
    _forget()
    with caplog.at_level(logging.INFO, logger="srm_kernels.backend"):
        for _ in range(3):
            difference_rewards(torch.ones(2), CU)
    assert len(caplog.records) == 1
    assert caplog.records[0].getMessage().startswith("backend for cpu: torch (")


def test_debug_mode_reads_values_on_the_device(monkeypatch):
    """On the CPU values are always checked; elsewhere with SRM_KERNELS_DEBUG=1 only."""
    on_device = torch.ones(2, device="meta")
    assert values_readable(CU)
    assert not values_readable(on_device)
    monkeypatch.setenv("SRM_KERNELS_DEBUG", "1")
    assert values_readable(on_device)
    assert "debug checks: on" in str(backend_report())


def _forget() -> None:
    for cached in (backend._resolve, backend._auto_choice, backend._triton_obstacle, backend._log_once):
        cached.cache_clear()
