"""lstm, gru, rnn and their cells: every mode and option on every backend; the formula against plain loops and torch."""

import importlib.util

import pytest
import torch

import kernelzoo as kz
import kernelzoo.functional as F
from kernelzoo.ops.rnn import RNNFunction
from kernelzoo.ops.rnn_formula import GATES, reference
from kernelzoo.verify import assert_as_good

from ..harness import BACKENDS, GPU, Case, OpSuite, device_of, here, need

HERE = tuple(b for b in BACKENDS if importlib.util.find_spec(f"kernelzoo.kernels.{b}.rnn"))
MODES = tuple(GATES)
OPTIONS = ("proj", "peephole", "norm", "h_mask", "zone", "heads", "reverse", "no_bias")


def normal(g, *shape, scale=1.0):
    return torch.randn(shape, generator=g, dtype=torch.float64) * scale


def case(mode, *options, sizes=None, T=3, B=2, H=4, features=3, large=False, again=False):
    """One layer and direction; sizes: a packed batch's; h_mask and zones as bools, which the call scales."""
    assert set(options) <= set(OPTIONS)
    rows, B = (sum(sizes), sizes[0]) if sizes else (T * B, B)
    P = H // 2 if "proj" in options else H
    heads = 2 if "heads" in options else 1
    width = GATES[mode] * H

    def make(g):
        def on(option, *shape, scale=1.0):
            return normal(g, *shape, scale=scale) if option in options else None

        def mask(option, *shape):
            return torch.rand(shape, generator=g) < 0.6 if option in options else None

        tensors = (
            normal(g, rows, features),
            normal(g, width, features, scale=features**-0.5),
            None if "no_bias" in options else normal(g, width, scale=0.3),
            normal(g, B, P, scale=0.5),
            normal(g, B, H) if mode == "lstm" else None,
            normal(g, width, P // heads, scale=1.5 * (P // heads) ** -0.5),
            normal(g, H, scale=0.3) if mode == "gru" and "no_bias" not in options else None,
            on("proj", P, H, scale=H**-0.5),
            on("peephole", 3, H, scale=0.5),
            None if "norm" not in options else 1 + normal(g, width, scale=0.3),
            None if "norm" not in options or mode != "lstm" else 1 + normal(g, 2, H, scale=0.3),
            mask("h_mask", B, P),
            mask("zone", rows, P),
            mask("zone", rows, H) if mode == "lstm" else None,
            torch.tensor(sizes) if sizes else None,
        )
        return tensors, {"mode": mode, "reverse": "reverse" in options, "heads": heads}

    what = "packed" + "-".join(map(str, sizes)) if sizes and len(sizes) < 9 else f"T{rows // B}-B{B}"
    return Case("-".join([mode, what, f"H{H}", *options]), make, large, again)


def call(x, w_ih, bias, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes,
         *, mode, reverse, heads):  # fmt: skip
    """The op; its results without what there is none of."""
    h_mask = None if h_mask is None else h_mask.to(x.dtype) * 1.25
    zone_h, zone_c = (None if z is None else z.to(x.dtype) for z in (zone_h, zone_c))
    batch_sizes = None if batch_sizes is None else batch_sizes.cpu()
    results = RNNFunction.call(
        x, w_ih, bias, h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell, h_mask, zone_h, zone_c, batch_sizes,
        mode, reverse, heads, 1e-5,
    )  # fmt: skip
    return tuple(t for t in results if t is not None)


def formula(*tensors, **options):
    with kz.backend("torch"):
        return call(*tensors, **options)


PACKED = [3, 3, 2, 1]


class TestRNN(OpSuite):
    call = staticmethod(call)
    reference = staticmethod(formula)
    backends = HERE

    @staticmethod
    def takes(case, backend):
        return backend != "cuda" or not {"proj", "norm", "heads"} & set(case.id.split("-"))

    cases = (
        case("lstm", "proj", "peephole", "norm", "h_mask", "zone", sizes=[2, 1]),
        case("gru", "norm", "zone", "reverse", sizes=[3, 2]),
        case("lstm", H=5),
        case("lstm", "no_bias", "reverse", sizes=PACKED),
        case("lstm", "proj", "heads", "reverse"),
        case("lstm", "peephole", "zone", "reverse", again=True),
        case("lstm", "norm", "heads", sizes=PACKED, again=True),
        case("lstm", T=1, B=1, again=True),
        case("gru", H=5, B=3, again=True),
        case("gru", "h_mask", "heads", sizes=PACKED),
        case("gru", "no_bias", "norm", T=1, again=True),
        case("rnn_tanh", "h_mask", sizes=PACKED),
        # of 3 steps x's gradient has 9 elements, whose largest error may by chance be twice torch's
        case("rnn_tanh", "norm", "zone", "reverse", T=9, B=1, H=7, again=True),
        case("rnn_relu", "reverse"),
        case("rnn_relu", "heads", "zone", sizes=PACKED, again=True),
        case("lstm", T=33, B=5, H=70, features=17, large=True),
        case("lstm", "proj", "zone", "peephole", sizes=[9] * 7 + [4] * 30 + [1], H=34, large=True),
        case("lstm", "norm", "h_mask", "heads", "reverse", T=40, B=17, H=64, large=True),
        case("gru", T=33, B=7, H=70, features=17, large=True),
        case("gru", "norm", "heads", sizes=[9] * 7 + [4] * 30 + [1], H=34, large=True),
        case("rnn_tanh", T=50, B=16, H=129, large=True),
        case("rnn_relu", "reverse", sizes=[33] * 3 + [8] * 9, H=48, large=True),
        case("lstm", T=260, B=2, H=8, large=True),
    )  # fmt: skip


def looped(mode, x, h, c, w_ih, w_hh, b, b_hn, peephole, norms, zone, training, masks):
    """One sequence (T, features) by the papers' equations, an element of the sequence after the other."""
    H = w_hh.shape[0] // GATES[mode]
    out = []

    def layer_norm(t):
        return (t - t.mean()) / torch.sqrt(t.var(unbiased=False) + 1e-5)

    for t, step in enumerate(x):
        gx, gh = w_ih @ step, w_hh @ (h * masks["h"])
        if norms:
            gx, gh = norms[0] * layer_norm(gx), norms[1] * layer_norm(gh)
        gx = gx + b
        if mode == "lstm":
            xi, xf, xg, xo = (gx + gh).split(H)
            i = torch.sigmoid(xi + peephole[0] * c)
            f = torch.sigmoid(xf + peephole[1] * c)
            new_c = f * c + i * torch.tanh(xg)
            o = torch.sigmoid(xo + peephole[2] * new_c)
            new_h = o * torch.tanh(norms[2] * layer_norm(new_c) + norms[3] if norms else new_c)
            keep = masks["c"][t] if training else zone[1]
            c = keep * c + (1 - keep) * new_c
        elif mode == "gru":
            (xr, xz, xn), (hr, hz, hn) = gx.split(H), gh.split(H)
            r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
            new_h = (1 - z) * torch.tanh(xn + r * (hn + b_hn)) + z * h
        else:
            new_h = torch.tanh(gx + gh)
        keep = masks["z"][t] if training else zone[0]
        h = keep * h + (1 - keep) * new_h
        out.append(h)
    return torch.stack(out), h, c


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("mode", ["lstm", "gru", "rnn_tanh"])
def test_options_against_a_plain_loop(mode, training):
    """Every option at once through the public function, whose masks are read off by what they do."""
    T, B, features, H = 5, 3, 4, 6
    g = torch.Generator().manual_seed(3)
    width = GATES[mode] * H
    x, w_ih, w_hh = normal(g, T, B, features), normal(g, width, features), normal(g, width, H)
    b_ih, b_hh, h0, c0 = normal(g, width), normal(g, width), normal(g, B, H), normal(g, B, H)
    norms = [normal(g, width), normal(g, width), *([normal(g, H), normal(g, H)] if mode == "lstm" else [])]
    peephole = normal(g, 3, H) if mode == "lstm" else None
    zone = (0.3, 0.2)
    options = {"layer_norm": norms, "training": training}
    if mode == "lstm":
        options["peephole"] = peephole
    function = {"lstm": F.lstm, "gru": F.gru, "rnn_tanh": F.rnn}[mode]
    seen, mask = [], kz.ops.rnn.mask

    def watched(*args):
        seen.append(mask(*args))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kz.ops.rnn, "mask", watched)
        y, states = function(
            x, (h0, c0) if mode == "lstm" else h0, w_ih, w_hh, b_ih, b_hh,
            zoneout=zone if mode == "lstm" else zone[0], recurrent_dropout=0.25, weight_dropout=0.5, **options,
        )  # fmt: skip
    h_mask, z_mask, c_mask = torch.ones(B, H), torch.zeros(T, B, H), torch.zeros(T, B, H)
    if training:
        assert len(seen) == (4 if mode == "lstm" else 3)
        assert set(seen[0].unique().tolist()) == {0.0, 2.0}
        torch.testing.assert_close(seen[1].unique(), torch.tensor([0.0, 4 / 3], dtype=torch.float64))
        w_hh, h_mask = w_hh * seen[0], seen[1]
        z_mask = (seen[2] == 0).double().view(T, B, H)
        c_mask = (seen[-1] == 0).double().view(T, B, H)
    b = b_ih + b_hh
    b_hn = None
    if mode == "gru":
        b_hn = b_hh[2 * H :]
        b = b - torch.cat([torch.zeros(2 * H), b_hn])
    for k in range(B):
        masks = {"h": h_mask[k], "z": z_mask[:, k], "c": c_mask[:, k]}
        want, h, c = looped(
            mode, x[:, k], h0[k], c0[k], w_ih, w_hh, b, b_hn, peephole, norms, zone, training, masks
        )
        torch.testing.assert_close(y[:, k], want)
        hn = states[0] if mode == "lstm" else states
        torch.testing.assert_close(hn[k], h)
        if mode == "lstm":
            torch.testing.assert_close(states[1][k], c)


def test_block_diagonal_heads():
    """Two heads are two small layers side by side."""
    T, B, features, H = 4, 2, 3, 6
    g = torch.Generator().manual_seed(4)
    x, w_ih, b, h0, c0 = (
        normal(g, *s) for s in ((T, B, features), (4 * H, features), (4 * H,), (B, H), (B, H))
    )
    w_hh = normal(g, 4 * H, H // 2)
    y, (hn, cn) = F.lstm(x, (h0, c0), w_ih, w_hh, b, heads=2)
    for head in range(2):
        rows = torch.cat([torch.arange(3) + 6 * gate + 3 * head for gate in range(4)])
        part = slice(3 * head, 3 * head + 3)
        want, (h, c) = F.lstm(x, (h0[:, part], c0[:, part]), w_ih[rows], w_hh[rows], b[rows])
        torch.testing.assert_close((y[..., part], hn[:, part], cn[:, part]), (want, h, c))


def test_masks_are_the_same_on_every_backend():
    g = torch.Generator().manual_seed(5)
    x, w_ih, w_hh, h0 = (normal(g, *s).float() for s in ((6, 3, 4), (15, 4), (15, 5), (3, 5)))
    found = []
    for backend in ("torch", "auto", *(b for b in HERE if kz.backends()[b].available)):
        device = device_of(backend)
        if GPU and device == "cpu":
            continue  # a generator of its own
        torch.manual_seed(11)
        with kz.backend(backend):
            y, _ = F.gru(
                *(t.to(device) for t in (x, h0, w_ih, w_hh)), zoneout=0.4, recurrent_dropout=0.3,
                weight_dropout=0.2, training=True,
            )  # fmt: skip
        found.append(y.cpu())
    for y in found[1:]:
        torch.testing.assert_close(y, found[0])


CELLS = {"lstm": F.lstm_cell, "gru": F.gru_cell, "rnn_tanh": F.rnn_tanh_cell, "rnn_relu": F.rnn_relu_cell}


@pytest.mark.parametrize("bias", ["both", "none", "ih", "hh"])
@pytest.mark.parametrize("mode", MODES)
def test_cell(mode, bias):
    """torch's own cell: values, gradients and second derivatives, on each way through."""
    B, features, H = 3, 5, 4
    g = torch.Generator().manual_seed(6)
    width = GATES[mode] * H
    x, h, c, w_ih, w_hh = (
        normal(g, *s) for s in ((B, features), (B, H), (B, H), (width, features), (width, H))
    )
    biases = [normal(g, width) if bias in ("both", which) else None for which in ("ih", "hh")]
    given = [x, h, *([c] if mode == "lstm" else []), w_ih, w_hh, *(b for b in biases if b is not None)]
    for t in given:
        t.requires_grad_()

    def run(function):
        y = function(x, (h, c) if mode == "lstm" else h, w_ih, w_hh, *biases)
        y = y if isinstance(y, tuple) else (y,)
        grads = torch.autograd.grad([t.square().sum() for t in y], given, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in grads), given)
        return y, grads, second

    want = run(getattr(torch, f"{mode}_cell"))
    for backend in ("auto", "torch", here()):
        with kz.backend(backend):
            torch.testing.assert_close(run(CELLS[mode]), want)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("mode", MODES)
def test_where_no_kernel_is_here(mode, monkeypatch):
    """ "auto" then runs torch's own where it has one: the formula's values, packed or not, in both directions."""
    monkeypatch.setattr(kz.ops.core.choice, "automatic", lambda *args: None)
    g = torch.Generator().manual_seed(12)
    for options in ((), ("reverse",), ("no_bias", "reverse"), ("norm",), ("proj",)):
        if options == ("proj",) and mode != "lstm":
            continue
        for sizes in (None, PACKED):
            tensors, named = case(mode, *options, sizes=sizes).make(g)
            with kz.trace() as calls:
                got = call(*tensors, **named)
            assert calls[-1].backend == "torch"
            torch.testing.assert_close(got, formula(*tensors, **named))


def test_opcheck():
    """The fake results of both ops, with all that a case can save."""
    backend, device = here(), device_of(here())
    torch.utils.deterministic.fill_uninitialized_memory = False
    for one in TestRNN.cases[:4]:
        generator = torch.Generator().manual_seed(13)
        tensors, options = one.make(generator)
        x, w_ih, bias, *rest = (
            t if t is None or t.dtype == torch.int64 else t.to(device, torch.float32) for t in tensors
        )
        gx = torch.nn.functional.linear(x, w_ih, bias)
        flags = (options["mode"], options["reverse"], options["heads"], 1e-5)
        torch.library.opcheck(torch.ops.kernelzoo.rnn_fwd.default, (gx, *rest, *flags, True, backend))
        out, hn, cn, *saved = torch.ops.kernelzoo.rnn_fwd.default(gx, *rest, *flags, True, backend)
        grads = [None if t is None else torch.randn_like(t) for t in (out, hn, cn)]
        # in the order of h0, c0, w_hh, b_hn, w_hr, peephole, ln_weight, ln_cell
        needs = (True, *(t is not None for t in rest[:8]))
        arguments = (out, *grads, *rest, *saved, *flags, *needs, backend)
        torch.library.opcheck(torch.ops.kernelzoo.rnn_bwd.default, arguments)


def test_only_needed_is_saved():
    """Without a gradient nothing of the recurrence is kept; with one, only what was asked for is computed."""
    g = torch.Generator().manual_seed(7)
    x, w_ih, w_hh = (normal(g, *s).float() for s in ((5, 2, 3), (16, 3), (16, 4)))
    with kz.backend(here()):
        w_ih.requires_grad_()
        y, (_, cn) = F.lstm(x, None, w_ih, w_hh)
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            y, (hn, cn) = F.lstm(x, None, w_ih, w_hh)
        assert kept
        (grad,) = torch.autograd.grad(cn.sum(), w_ih)  # of the cell alone
        with torch.autograd.graph.saved_tensors_hooks(lambda t: pytest.fail("saved"), lambda t: t):
            F.lstm(x, None, w_ih.detach(), w_hh)
        with kz.backend("torch"):
            want = torch.autograd.grad(F.lstm(x, None, w_ih, w_hh)[1][1].sum(), w_ih)[0]
    torch.testing.assert_close(grad, want)
    assert y.requires_grad
    assert hn.requires_grad


@pytest.mark.parametrize("backend", HERE)
@pytest.mark.parametrize("mode", MODES)
def test_not_a_number(mode, backend):
    """A NaN or an infinity of one sequence reaches that sequence from its step on, and no other, as in the formula."""
    need(backend)
    device = device_of(backend)
    g = torch.Generator().manual_seed(8)
    width = GATES[mode] * 4
    x, w_ih, w_hh = (normal(g, *s).float().to(device) for s in ((5, 3, 3), (width, 3), (width, 4)))
    x[2, 0, 0], x[3, 1, 1] = float("nan"), float("inf")
    function = {"lstm": F.lstm, "gru": F.gru}.get(mode, F.rnn)
    options = {"nonlinearity": mode[4:]} if function is F.rnn else {}
    found = []
    for name in (backend, "torch"):
        with kz.backend(name):
            found.append(function(x, None, w_ih, w_hh, **options)[0])
    oracle = found[1].double()
    assert_as_good(mode, found[0], found[1], oracle)
    assert not found[0][:, 2].isnan().any()


def test_no_sequences():
    """A batch of none: nothing, with gradients of 0."""
    x, w_ih, w_hh = torch.randn(5, 0, 3), torch.randn(16, 3, requires_grad=True), torch.randn(16, 4)
    y, (hn, cn) = F.lstm(x, None, w_ih, w_hh)
    assert y.shape == (5, 0, 4)
    assert hn.shape == cn.shape == (0, 4)
    (grad,) = torch.autograd.grad(y.sum(), w_ih)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_what_cuda_leaves_to_others():
    for options, served in (
        ((), True),
        (("zone", "peephole", "h_mask"), True),
        (("norm",), False),
        (("heads",), False),
    ):
        tensors, options = case("lstm", *options).make(torch.Generator().manual_seed(5))
        args = (*tensors, *options.values(), 1e-5)
        assert (RNNFunction.unserved_by("cuda", *args) is None) == served
        assert RNNFunction.unserved_by("triton", *args) is None


def numba_arguments(mode, sizes, H, heads, norm):
    """The launcher's, of a layer past one tile, with rows and columns that the blocks leave over."""
    g = torch.Generator().manual_seed(7)
    R, B, width, lstm = sum(sizes), sizes[0], GATES[mode] * H, mode == "lstm"
    w = normal(g, width, H // heads, scale=(H // heads) ** -0.5)
    ln_cell = 1 + normal(g, 2, H, scale=0.3) if norm and lstm else None
    b_hn = normal(g, H) if mode == "gru" else None
    ln_weight = 1 + normal(g, width, scale=0.3) if norm else None
    c0 = normal(g, B, H) if lstm else None
    return [
        normal(g, R, width),
        normal(g, B, H),
        c0,
        w,
        b_hn,
        None,
        None,
        ln_weight,
        ln_cell,
        None,
        None,
        None,
    ]


def numba_results(a, batch_sizes, mode, reverse, heads):
    from kernelzoo.kernels.numba.rnn import rnn_bwd, rnn_fwd

    out, hn, cn, *saved = rnn_fwd(*a, batch_sizes, mode, reverse, heads, 1e-5, True)
    needs = [t is not None for t in a[:9]]
    grads = rnn_bwd(
        out.cos(), hn.cos(), None, out, *a[1:], batch_sizes, *saved, mode, reverse, heads, 1e-5, *needs
    )
    return [t for t in (out, hn, cn, *grads) if t is not None]


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("mode", ["lstm", "gru"])
def test_numba_on_threads(mode, norm):
    """61 rows' products and gates are shared by threads: the formula's results, the same bits on any number."""
    need("numba")
    sizes, heads = [61, 61, 40, 9, 1], 2
    batch_sizes, a = torch.tensor(sizes), numba_arguments(mode, sizes, 2 * 151, heads, norm)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(numba_results(a, batch_sizes, mode, True, heads))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.equal(one, two)
    leaves = [None if t is None else t.clone().requires_grad_() for t in a]
    out, hn, cn = reference(*leaves, batch_sizes, mode, True, heads, 1e-5)
    grads = torch.autograd.grad((out, hn), [t for t in leaves if t is not None], (out.cos(), hn.cos()))
    expected = [*(t for t in (out, hn, cn) if t is not None), *grads]
    for one, two in zip(found[0], expected, strict=True):
        torch.testing.assert_close(one, two.detach(), rtol=1e-9, atol=1e-9)
