"""bench/op_host.py: what the head launches, the bytes that this moves, and that every op is timed. Nothing is computed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).resolve().parents[2] / "bench"
ONE_EACH = ("operands", "outputs", "pool", "pool_backward", "split_gradients", "scatter_rows", "weight_gradients")


@pytest.fixture(scope="module")
def host():
    """The script as a module, its neighbours importable as they are when it runs."""
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import op_host

        yield op_host


def launches(host, **sizes):
    with host.dropped_launches(watch=True) as seen:
        host.make_step(torch.bfloat16, **sizes)()
    return seen


def test_eleven_launches_forward_and_backward(host):
    """Four of them PyTorch's products; the layout was sorted before."""
    expected = {f"{name}_kernel": 1 for name in ONE_EACH} | {"product": 4}
    assert dict(launches(host).names) == expected
    assert sum(expected.values()) == 11


def test_one_more_where_an_output_has_no_gradient(host):
    """Zeros for the sentence rewards and the weights."""
    names = launches(host, outputs=1).names
    assert names.total() == 12
    assert names["zeros_like"] == 1


@pytest.mark.parametrize(("num_tokens", "most"), [(16384, 1.76), (65536, 1.42), (262144, 1.32)])
def test_bytes_beside_those_of_inputs_and_outputs(host, num_tokens, most):
    """Each input read and each output written once, forward and backward apart, is what bench/ops.py calls necessary."""
    width, attention = 4096, 256
    layout = host.lengths.pack_lengths(host.lengths.generated_groups(), num_tokens).layout
    n, b = layout.num_boundaries, layout.num_responses
    seen = launches(host, width=width, attention=attention, num_tokens=num_tokens)
    weights = 4 * (2 * attention + 1) * (width + 1)
    necessary = (2 * n + num_tokens) * width * 2 + 3 * weights + 24 * n
    ratio = seen.moved(num_tokens, n + b, width) / necessary
    assert 1 < ratio < most


def test_the_host_is_timed(host):
    with host.dropped_launches():
        spent = host.microseconds(host.make_step(torch.bfloat16), rounds=10)
    assert 0 < spent["tenth"] <= spent["median"]


def test_every_op_is_timed(host):
    spent = host.measure(rounds=10)
    assert {name.split()[0] for name in spent} == set(host.op_cases.OPS)
    assert all(0 < one["tenth"] <= one["median"] for one in spent.values())


def test_two_checkouts_take_turns(host, tmp_path):
    """A checkout that is not what a process imports is noticed."""
    root = BENCH.parent
    here = host.in_turns({"before": root, "now": root}, SimpleNamespace(turns=1, rounds=10))
    assert here["before"].keys() == here["now"].keys()
    with pytest.raises(SystemExit, match="was imported, not what lies in"):
        host.in_turns({"now": tmp_path}, SimpleNamespace(turns=1, rounds=10))
