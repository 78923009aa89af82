"""Which implementation runs is said, and never a surprise."""

import logging
import re

import pytest
import torch

from srm_kernels import backend, backend_report, difference_rewards
from srm_kernels.backend import choose_backend
from srm_kernels.layout import values_readable

CU = torch.tensor([0, 2])


def test_report_names_the_cpu_and_a_reason():
    report = backend_report()
    (cpu,) = (choice for choice in report.choices if choice.device == "cpu")
    assert cpu.backend == "torch"
    assert f"cpu: torch ({cpu.reason})" in str(report)
    assert report.torch_version == torch.__version__


def test_triton_where_it_cannot_run_raises():
    pytest.importorskip("triton", reason="without triton the reason is another")
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


@pytest.mark.parametrize(
    ("device", "in_interpreter", "capability", "hip", "chosen", "reason"),
    [
        ("cuda:0", False, (8, 0), None, "triton", "A Card"),
        ("cuda:0", False, (7, 5), None, "torch", "compute capability (7, 5) is below 8.0"),
        ("cuda:0", False, (7, 5), "6.2", "triton", "A Card"),
        ("cuda:0", True, (9, 0), None, "torch", "TRITON_INTERPRET=1 is set; the interpreter is for CPU tensors"),
        ("xpu:0", False, (9, 0), None, "torch", "only CUDA and ROCm devices have kernels"),
        ("cpu", False, (9, 0), None, "torch", "Triton has no CPU backend (TRITON_INTERPRET=1 runs its interpreter)"),
        ("cpu", True, (9, 0), None, "torch", "the Triton interpreter only runs when asked for by name"),
    ],
)
def test_what_runs_where(monkeypatch, device, in_interpreter, capability, hip, chosen, reason):
    """Devices that need not be here, by name."""
    monkeypatch.setattr(backend, "_triton_version", lambda: "3.6")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: "A Card")
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(backend, "interpreted", lambda: in_interpreter)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    _forget()
    try:
        assert backend._auto_choice(device, in_interpreter) == backend.BackendChoice(device=device, backend=chosen, reason=reason)
        assert choose_backend("op", "auto", torch.device(device)) == chosen
        assert choose_backend("op", "torch", torch.device(device)) == "torch"
        if device == "cuda:0":
            assert choose_backend("op", "auto", torch.device("cuda")) == chosen  # The current one.
        if chosen == "triton" or (device == "cpu" and in_interpreter):
            assert choose_backend("op", "triton", torch.device(device)) == "triton"
        else:
            with pytest.raises(
                RuntimeError, match=rf'^op: `backend="triton"` cannot run on {device}: {re.escape(reason)}\. Use "auto" or "torch"'
            ):
                choose_backend("op", "triton", torch.device(device))
    finally:
        _forget()


def test_the_report_has_every_gpu(monkeypatch):
    monkeypatch.setattr(backend, "_triton_version", lambda: "3.6")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"Card {name}")
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    _forget()
    try:
        lines = str(backend_report()).splitlines()
    finally:
        _forget()
    assert lines[0] == f"torch {torch.__version__}, triton 3.6"
    assert lines[1].startswith("cpu: torch (")
    assert lines[2:] == [
        "cuda:0: triton (Card cuda:0)",
        "cuda:1: triton (Card cuda:1)",
        "debug checks: off (SRM_KERNELS_DEBUG=1 turns them on)",
    ]


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

    class OnDevice(torch.Tensor):
        device = torch.device("cuda")

    on_device, without_values = CU.as_subclass(OnDevice), CU.to("meta")
    assert values_readable(CU)
    assert not values_readable(on_device)
    monkeypatch.setenv("SRM_KERNELS_DEBUG", "1")
    assert values_readable(on_device)
    assert not values_readable(without_values)
    assert difference_rewards(torch.ones(int(CU[-1]), device="meta"), without_values).is_meta
    assert "debug checks: on" in str(backend_report())


def _forget() -> None:
    for cached in (backend._resolve, backend._auto_choice, backend._triton_obstacle, backend._log_once):
        cached.cache_clear()
