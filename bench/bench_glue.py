"""What stands between a transformer's products: gated activations, rotary embedding, dropout, embedding."""

import pytest
import torch

import kernelzoo.functional as F

from .core import DEVICE, GPU, Case, Problem, Target, op_case

T = torch.nn.functional
FLOOR = Target("ratio", 0.97)
WIDE = (8192, 8192) if GPU else (4096, 4096)
HEADS = (4, 32, 4096, 128) if GPU else (2, 16, 1024, 64)
SHORT = {torch.float32: "fp32", torch.bfloat16: "bf16"}
FIRST, SECOND = (torch.bfloat16, torch.float32) if GPU else (torch.float32, torch.bfloat16)
P = 0.1


def _size(shape):
    return "x".join(map(str, shape))


def _normal(*shapes):
    def make(g):
        return [torch.randn(shape, generator=g, device=DEVICE, dtype=torch.float64) for shape in shapes]

    return make


def _targets(dtype, ratio):
    return (FLOOR,) if GPU or dtype != torch.float32 else (Target("ratio", ratio),)


def _gated(name, ours, eager, dtype, ratio):
    n = WIDE[0] * WIDE[1]
    return op_case(
        f"{name} {_size(WIDE)} {SHORT[dtype]}",
        "glu",
        dtype,
        _normal(WIDE, WIDE),
        ours,
        eager,
        ("y", "dgate", "dup"),
        targets=_targets(dtype, ratio),
        bytes=8 * n * dtype.itemsize,
        flops=6 * n,
    )


def _glu(dtype):
    n = WIDE[0] * WIDE[1]
    return op_case(
        f"glu {_size(WIDE)} {SHORT[dtype]}",
        "glu",
        dtype,
        _normal(WIDE),
        F.glu,
        T.glu,
        ("y", "dx"),
        targets=(FLOOR,),
        bytes=4 * n * dtype.itemsize,
        flops=3 * n,
    )


def _rotary(dtype, interleaved, transposed):
    B, H, L, D = HEADS
    n = B * H * L * D
    cos, sin = F.rotary_tables(L, D, device=DEVICE)

    def place(x):
        return x.transpose(1, 2) if transposed else x

    def eager(x):
        """As models write it, the tables in x's dtype; in fp64 for the oracle."""
        x = place(x)
        c, s = cos.to(x.dtype), sin.to(x.dtype)
        if interleaved:
            c, s = c.repeat_interleave(2, -1), s.repeat_interleave(2, -1)
            other = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        else:
            c, s = torch.cat([c, c], -1), torch.cat([s, s], -1)
            other = torch.cat([-x[..., D // 2 :], x[..., : D // 2]], -1)
        return x * c + other * s

    return op_case(
        f"rotary {_size(HEADS)}{' interleaved' if interleaved else ''}{' transposed' if transposed else ''} "
        f"{SHORT[dtype]}",
        "rotary",
        dtype,
        _normal((B, L, H, D) if transposed else HEADS),
        lambda x: F.rotary_embedding(place(x), cos, sin, interleaved=interleaved),
        eager,
        ("y", "dx"),
        targets=_targets(dtype, 1.2),
        bytes=4 * n * dtype.itemsize,
        flops=6 * n,
    )


class _Drawn:
    """A step whose elements are dropped at random: its first results, which are checked, are those with nothing
    dropped."""

    def __init__(self, function, x, residual, dy):
        self.function, self.tensors, self.dy = function, (x, residual), dy
        self.checked = False

    def __call__(self):
        given = [t for t in self.tensors if t is not None]
        y = self.function(*given)
        dx, *rest = torch.autograd.grad(y, given, self.dy)
        if self.checked:
            return y, dx, *rest
        self.checked = True
        with torch.no_grad():
            x, residual = self.tensors
            dropped = dx == 0
            whole = x / (1 - P) if residual is None else residual + x / (1 - P)
            assert abs(dropped.float().mean().item() - P) < 0.01
            return torch.where(dropped, whole, y), torch.where(dropped, self.dy / (1 - P), dx)


def _dropout(dtype, residual):
    n = WIDE[0] * WIDE[1]
    ours = (lambda x, r: F.dropout_add(x, r, P)) if residual else (lambda x: F.dropout(x, P))
    eager = (lambda x, r: r + T.dropout(x, P)) if residual else (lambda x: T.dropout(x, P))

    def build():
        g = torch.Generator(DEVICE).manual_seed(1)
        x, r, dy = (torch.randn(WIDE, generator=g, device=DEVICE).to(dtype) for _ in range(3))
        given = x.requires_grad_(), r.requires_grad_() if residual else None

        def oracle():
            with torch.no_grad():
                y = x.double() / (1 - P)
                return (y + r.double() if residual else y), dy.double() / (1 - P)

        functions = {"ours": ours, "eager": eager, "compile": torch.compile(eager)}
        return Problem({name: _Drawn(f, *given, dy) for name, f in functions.items()}, oracle, {})

    return Case(
        f"dropout{'_add' if residual else ''} {_size(WIDE)} {SHORT[dtype]}",
        "dropout",
        dtype,
        build,
        ("y", "dx"),
        bytes=(5 if residual else 4) * n * dtype.itemsize,
        flops=2 * n,
        targets=_targets(dtype, 4.0),
    )


def _embedding(dtype, rows, dim, tokens):
    indices = torch.randint(rows, (tokens,), generator=torch.Generator().manual_seed(3)).to(DEVICE)
    return op_case(
        f"embedding {rows}x{dim} of {tokens} {SHORT[dtype]}",
        "embedding",
        dtype,
        _normal((rows, dim)),
        lambda w: F.embedding(indices, w),
        lambda w: T.embedding(indices, w),
        ("y", "dw"),
        targets=(FLOOR,),
        bytes=(3 * tokens + rows) * dim * dtype.itemsize,
        flops=tokens * dim,
    )


def _silu(gate, up):
    return T.silu(gate) * up


def _gelu(gate, up):
    return T.gelu(gate) * up


CASES = [
    _gated("swiglu", F.swiglu, _silu, FIRST, 2.0),
    _rotary(FIRST, False, False),
    _dropout(FIRST, False),
    _embedding(FIRST, 50257, 768, 4096),
    _gated("swiglu", F.swiglu, _silu, SECOND, 2.0),
    _rotary(SECOND, False, False),
    _dropout(SECOND, False),
    _embedding(SECOND, 50257, 768, 4096),
    _gated("geglu", F.geglu, _gelu, FIRST, 0.97),
    _glu(FIRST),
    _rotary(FIRST, True, False),
    _rotary(FIRST, False, True),
    _dropout(FIRST, True),
    _embedding(FIRST, 1000, 256, 65536),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def bench_glue(case, row):
    row(case)
