"""The rule of accuracy, `kernelzoo verify`, `kernelzoo env` and the ceilings."""

import pytest
import torch

from kernelzoo import ceilings, env, verify
from kernelzoo.ops.core.choice import Status
from kernelzoo.verify import Case, judge


def test_as_good_as_torch_passes():
    oracle = torch.randn(1000, dtype=torch.float64)
    theirs = oracle.float()
    assert judge(theirs.clone(), theirs, oracle).problem is None
    verdict = judge(theirs * (1 + 2e-7), theirs, oracle)
    assert verdict.problem is None
    assert verdict.theirs < verdict.error <= verdict.limit


def test_a_larger_error_fails():
    oracle = torch.randn(1000, dtype=torch.float64)
    theirs = oracle.float()
    assert "against fp64, allowed" in judge(theirs + 1e-5, theirs, oracle).problem
    with pytest.raises(AssertionError, match="dx: error"):
        verify.assert_as_good("dx", theirs + 1e-5, theirs, oracle)


@pytest.mark.parametrize("ours", [[1.0, 2.0], [1.0, float("inf")], [float("nan"), float("nan")]])
def test_nan_must_be_where_torch_puts_it(ours):
    theirs = torch.tensor([1.0, float("nan")])
    assert "in other places than torch's" in judge(torch.tensor(ours), theirs, theirs.double()).problem


def test_an_unwritten_result_fails():
    theirs = torch.ones(8)
    assert judge(torch.full((8,), float("nan")), theirs, theirs.double()).problem


def test_an_overflow_of_the_dtype_is_no_error():
    """fp16 ends at 65504: where torch gives inf, inf is right, and the rest is still judged."""
    oracle = torch.tensor([1.0, 1e5], dtype=torch.float64)
    theirs = oracle.half()
    assert judge(theirs.clone(), theirs, oracle).problem is None
    assert judge(theirs * torch.tensor([1.1, 1.0]).half(), theirs, oracle).problem


@pytest.mark.parametrize("ours", [torch.ones(3), torch.ones(4, dtype=torch.float64)], ids=["shape", "dtype"])
def test_shape_and_dtype_are_results_too(ours):
    theirs = torch.ones(4)
    assert "torch's torch.float32 (4,)" in judge(ours, theirs, theirs.double()).problem


def _with(monkeypatch, ours):
    def make(generator):
        return [torch.randn(17, generator=generator, dtype=torch.float64)]

    monkeypatch.setitem(verify.CASES, "made up", lambda: [Case("17", make, ours, lambda x: 2 * x)])
    said = []
    return said, verify.run("made up", out=said.append)


def test_verify_says_that_all_is_well(monkeypatch):
    said, code = _with(monkeypatch, lambda x: x + x)
    assert code == 0
    assert said[-1].endswith("all as accurate as torch")


def test_verify_fails_and_says_where(monkeypatch):
    said, code = _with(monkeypatch, lambda x: 2.01 * x)
    assert code == 1
    assert any(line.startswith("FAILED ") and "bfloat16 17: y: error" in line for line in said) or any(
        line.startswith("FAILED ") and "float32 17: y: error" in line for line in said
    )


def test_verify_of_a_wrong_gradient_fails(monkeypatch):
    said, code = _with(monkeypatch, lambda x: 2 * x.detach() + 0 * x)
    assert code == 1
    assert any("dx: error" in line for line in said)


def test_verify_lists_what_is_not_here(monkeypatch):
    here = verify.backends() | {"cpp": Status(False, "no compiler"), "triton": Status(False, "no device")}
    monkeypatch.setattr(verify, "backends", lambda: here)
    said, code = _with(monkeypatch, lambda x: x + x)
    assert code == 0
    assert "not checked: cpp: no compiler" in said
    assert any("numba" in line and "float32" in line for line in said)


def test_nothing_checked_is_no_success(monkeypatch):
    monkeypatch.setattr(verify, "backends", lambda: dict.fromkeys(verify.KERNELS, Status(False, "gone")))
    assert verify.run("linear", out=lambda line: None) == 1


def test_verify_of_an_unknown_op(capsys):
    assert verify.run("lineer") == 2
    assert "expected one of linear, activation, softmax, attention, norm" in capsys.readouterr().out


def test_env_reports_versions_devices_and_reasons():
    text = env.report()
    for expected in (torch.__version__.split("+")[0], "numba", "CPU", "backends", "threads", "_cpu"):
        assert expected in text
    for name, status in verify.backends().items():
        assert f"{name} " in text
        assert status.reason in text


def test_ceilings():
    found = ceilings.measure("cpu", repeats=2, elements=1 << 16, n=64)
    assert set(found) == {"copy", "copy_fresh", "gemm_float32", "gemm_bfloat16"}
    assert all(rate > 0 for rate in found.values())
    assert len(list(ceilings.lines(found))) == 4
