"""The bench itself: what is checked, how rounds turn, what the figures and the table say."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from bench import bench_activation, bench_linear, bench_mlp, bench_overhead, core, gpu, kept, report

ROOT = Path(__file__).resolve().parents[1]


def _case(ours, peers=None, **more):
    def make(generator):
        return [torch.randn(64, 8, generator=generator, device=core.DEVICE, dtype=torch.float64)]

    return core.op_case(
        "made up", "made", torch.float32, make, ours, lambda x: x * x, ("y", "dx"), peers=peers, **more
    )


def _contenders(case):
    problem = case.build()
    problem.steps.pop("compile")
    return core.contenders_of(case, problem)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when torch.compile is first named
def test_right_contenders_are_timed_and_others_say_why_not():
    def broken(x):
        raise ArithmeticError("no luck")

    peers = {"wrong": lambda x: x * x * 1.001, "broken": broken, "absent": "absent is not installed"}
    said, right = _contenders(_case(lambda x: x.square(), peers))
    assert list(right) == ["ours", "eager"]
    assert said["wrong"]["status"].startswith("wrong: y: error")
    assert said["broken"]["status"] == "failed: ArithmeticError: no luck"
    assert said["absent"]["status"] == "not here: absent is not installed"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_wrong_gradient_is_caught():
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, dy):
            return dy * ctx.saved_tensors[0]

    said, right = _contenders(_case(Wrong.apply))
    assert said["ours"]["status"].startswith("wrong: dx: error")
    assert "ours" not in right


def test_rounds_turn():
    order = []
    rounds = core.Rounds({name: (lambda name=name: order.append(name) or 1.0) for name in "abc"})
    for _ in range(6):
        rounds.turn()
    assert "".join(order) == "abcacbcabcbabcabac"
    assert rounds.seconds == {"a": [1.0] * 6, "b": [1.0] * 6, "c": [1.0] * 6}


@pytest.mark.skipif(core.GPU, reason="the device's allocator keeps this count itself")
def test_peak_memory_counts_what_is_held_at_once(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)

    def step():
        a = torch.ones(1 << 18)
        b = a + 1
        del a
        return b + 1

    assert 2 << 20 <= core.peak_bytes(step) < (2 << 20) + (1 << 16)


def _row(**more):
    contenders = {
        "ours": {"role": "ours", "status": "timed", "peak_bytes": 4e6, **core.spread([0.009, 0.010, 0.011])},
        "eager": {"role": "peer", "status": "timed", "peak_bytes": 8e6, **core.spread([0.019, 0.020, 0.021])},
        "compile": {"role": "peer", "status": "timed", **core.spread([0.014, 0.015, 0.016])},
        "library": {"role": "peer", "status": "not here: library is not installed"},
    }
    targets = [
        {"metric": t.metric, "says": str(t), "promise": list(t)}
        for t in (core.Target("ratio", 1.4), core.Target("ratio", 1.6), core.Target("share of ceiling", 0.1))
    ]
    row = {
        "case": "made up", "op": "made", "dtype": "float32", "calls": 0, "bytes": 1e8, "flops": 1e6,
        "backend": ["numba: asked for"], "contenders": contenders, "targets": targets, "notes": {},
        "kept": {"eager": core.spread([0.011] * 3), "ours": core.spread([0.010] * 3)},
    }  # fmt: skip
    return row | more


CEILINGS = {"copy": 2e10, "copy_fresh": 1e10, "gemm_float32": 1e11, "gemm_bfloat16": 2e11}


def _data(tmp_path, rows):
    environment = {
        "versions": {"torch": "2"}, "commit": "0123456789abcdef+changes", "when": "now", "load": [1, 1, 1],
        "cpu": {"model": "some CPU", "cores": 2, "torch_capability": "AVX2"}, "gpus": [], "threads": {"torch": 2},
    }  # fmt: skip
    data = {
        "benchmarks": [{"extra_info": core.derive(row, CEILINGS)} for row in rows],
        "ceilings": CEILINGS, "kept": "some way", "environment": environment,
        "not_timed": [{"case": "another", "op": "made", "why": "wrong: y"}],
    }  # fmt: skip
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(data))
    return path


def test_figures():
    row = core.derive(_row(), CEILINGS)
    figures = row["figures"]
    assert figures["ratio"] == pytest.approx(1.5)
    assert figures["best peer"] == "compile"
    assert figures["ratio, memory kept"] == pytest.approx(1.1)
    assert figures["share of ceiling"] == pytest.approx(0.5)
    assert [t["met"] for t in row["targets"]] == [True, False, True]


def test_a_call_costs_its_least():
    row = _row(calls=200, bytes=0)
    row["targets"] = [{"metric": "added us", "says": "", "promise": ["added us", 8.0, False]}]
    derived = core.derive(row, CEILINGS)
    assert derived["figures"]["added us"] == pytest.approx(-10_000)
    assert derived["targets"][0]["met"]
    assert "ratio" not in derived["figures"]


def test_report(tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="no matplotlib, no pictures")
    call = _row(case="a call", calls=200, bytes=0, targets=[])
    report.main(_data(tmp_path, [_row(), call]))
    said = (tmp_path / "table.txt").read_text()
    expected = (
        "ratio ≥ 1.4: 1.5 met",
        "ratio ≥ 1.6: 1.5 MISSED",
        "library not here",
        "-10000.00us",
        "not timed: another: wrong: y",
        "targets: 2 met, 1 missed, 0 not measured",
    )
    assert all(words in said for words in expected), said
    assert "made up" in capsys.readouterr().out
    for name in ("ratios.png", "roofline.png"):
        assert (tmp_path / name).stat().st_size > 10_000


def test_case_names_are_unique_and_sound():
    for module in (bench_activation, bench_linear, bench_mlp, bench_overhead):
        ids = [case.id for case in module.CASES]
        assert len(set(ids)) == len(ids)
    assert all(case.bytes > 0 and case.flops > 0 for case in bench_linear.CASES + bench_activation.CASES)


def test_linear_counts():
    (case,) = [c for c in bench_linear.CASES if c.id.startswith("linear") and " forward" in c.id][:1]
    m, k, n = map(int, case.id.split()[1].replace("->", "x").split("x"))
    assert case.flops == 2 * m * n * k
    assert case.bytes == case.dtype.itemsize * (m * k + n * k + n + m * n)


def test_kept_memory_says_how():
    how, variables = kept.environment()
    assert how
    assert variables is None or all(isinstance(v, str) for v in variables.values())


def test_gpu_gate_runs_the_devices_tests_first():
    def item(name, *folder):
        return SimpleNamespace(name=name, path=Path("tests", *folder, "test_x.py"))

    items = [item("test_a", "aot"), item("test_b[K1-cpp]"), item("test_c[K1-triton-float32]"), item("test_d")]
    gpu.pytest_collection_modifyitems(items)
    assert [i.name[:6] for i in items] == ["test_c", "test_d", "test_b", "test_a"]


def test_gpu_gate_counts():
    outcomes = [
        ("tests/a.py::x", "passed", 1.0, ""),
        ("tests/a.py::y", "failed", 2.0, "E   wrong"),
        ("tests/b.py::z", "skipped", 0.0, "Skipped: no device"),
        ("tests/b.py::w", "not run", 0.0, "Skipped: not run: time was up"),
    ]
    found = gpu._summary(outcomes)
    assert found["counts"] == Counter(passed=1, failed=1, skipped=1) | Counter({"not run": 1})
    assert found["failures"] == [{"test": "tests/a.py::y", "says": "E   wrong"}]
    assert found["skipped because"] == {"no device": 1}
    assert "FAILED tests/a.py::y" in gpu.tests_table(found)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_bench_from_end_to_end(tmp_path):
    pytest.importorskip("pytest_benchmark", reason="the bench's runner")
    command = [sys.executable, str(ROOT / "bench" / "run.py"), f"--out={tmp_path}", "--ops=overhead,linear"]
    done = subprocess.run([*command, "-k", "relu"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / "bench.json").read_text())
    rows = {b["extra_info"]["case"]: b["extra_info"] for b in data["benchmarks"]}
    assert any(name.startswith("call relu") for name in rows)
    assert any(name.startswith("linear") for name in rows)
    for row in rows.values():
        assert row["contenders"]["ours"]["rounds"] >= core.MIN_ROUNDS
        assert "error" in row["contenders"]["eager"]
    assert "call relu" in (tmp_path / "table.txt").read_text()
    assert (tmp_path / "ratios.png").is_file()
