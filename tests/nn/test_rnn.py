"""LSTM, GRU, RNN and their cells: torch's values, gradients and state dicts for every option, and what torch lacks."""

import copy
import itertools
import pickle
import random

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import kernelzoo as kz
from kernelzoo import nn
from kernelzoo.verify import assert_as_good

from ..harness import GPU, Counter, compiled_quietly, device_of, here

I, H, P = 5, 6, 4
KINDS = {
    "lstm": ("LSTM", {}),
    "lstm-proj": ("LSTM", {"proj_size": P}),
    "gru": ("GRU", {}),
    "rnn-tanh": ("RNN", {}),
    "rnn-relu": ("RNN", {"nonlinearity": "relu"}),
}
KERNEL = next(b for b in ("cpp", "numba") if kz.backends()[b].available)  # of a CPU
# A GPU's kernels, a CPU's fastest, "auto" and the formula in turn; that all kernels agree is tests/ops/test_rnn.py's
BACKEND = ["auto", "torch", KERNEL]
if GPU:
    BACKEND += [b for b in ("triton", "cuda") if kz.backends()[b].available]
# Every combination of these ...
MAIN = {
    "kind": list(KINDS),
    "num_layers": [1, 2],
    "bias": [True, False],
    "bidirectional": [False, True],
    "input": ["padded", "unbatched", "sorted", "unsorted"],
    "state": ["given", "zeros"],
}
# ... each with one of these
OTHER = {
    "batch_first": [False, True],
    "dropout": [0.0, 0.4],  # in evaluation, where torch's values are comparable
    "T": [1, 4],
    "B": [1, 3],
    "dtype": [torch.float64, torch.float32, torch.bfloat16],
    "training": [True, False],
    "backend": BACKEND,
}


def configurations():
    draw = random.Random(4)
    for values in itertools.product(*MAIN.values()):
        options = dict(zip(MAIN, values, strict=True)) | {name: draw.choice(v) for name, v in OTHER.items()}
        if options["num_layers"] == 1 or (options["training"] and options["dropout"]):
            options["dropout"] = 0.0
        yield options


CONFIGURATIONS = list(configurations())


def test_the_configurations_cover_every_pair():
    assert len(CONFIGURATIONS) >= 300
    names = {**MAIN, **OTHER}
    for (a, of_a), (b, of_b) in itertools.combinations(names.items(), 2):
        seen = {(c[a], c[b]) for c in CONFIGURATIONS}
        missing = set(itertools.product(of_a, of_b)) - seen
        # dropout acts between layers, and in training torch's mask is not ours
        excused = {("num_layers", 1), ("training", True), ("dropout", 0.4)}
        missing = {pair for pair in missing if not {(a, pair[0]), (b, pair[1])} <= excused}
        assert not missing, f"{a}, {b}: {missing}"


def described(options):
    return "-".join(str(v).removeprefix("torch.") for v in options.values())


def pair(name, *args, dtype=torch.float32, seed=7, **options):
    """(ours, torch's), made from the same seed."""
    made = []
    for library in (nn, torch.nn):
        torch.manual_seed(seed)
        made.append(getattr(library, name)(*args, dtype=dtype, **options))
    ours, theirs = made
    assert isinstance(ours, type(theirs))
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key]), key
    return ours, theirs


def inputs(options, g):
    """(the rows' leaf, a function that makes the module's input of it)."""
    T, B, kind = options["T"], options["B"], options["input"]
    if kind == "unbatched":
        x = torch.randn(T, I, generator=g, dtype=torch.float64)
        return x, lambda x: x
    x = torch.randn(T, B, I, generator=g, dtype=torch.float64)
    if options["batch_first"]:
        x = x.transpose(0, 1).contiguous()
    if kind == "padded":
        return x, lambda x: x
    lengths = torch.randint(1, T + 1, (B,), generator=g)
    lengths[0] = T
    if kind == "sorted":
        lengths = lengths.sort(descending=True).values
    else:
        lengths = lengths[torch.randperm(B, generator=g)]
    return x, lambda x: pack_padded_sequence(x, lengths, options["batch_first"], kind == "sorted")


def flat(results):
    """The tensors of (output, states)."""
    y, states = results
    y = y.data if isinstance(y, PackedSequence) else y
    return [y, *(states if isinstance(states, tuple) else (states,))]


def run(module, x, make, states):
    """(results, gradients of the input, the states and every parameter)."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *states)]
    given = leaves[1:]
    hx = None if not given else tuple(given) if module.mode == "LSTM" else given[0]
    results = flat(module(make(leaves[0]), hx))
    g = torch.Generator().manual_seed(2)
    dy = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in results]
    grads = torch.autograd.grad(results, [*leaves, *module.parameters()], dy)
    return results, grads


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("options", CONFIGURATIONS, ids=described)
def test_against_torch(options):
    name, extra = KINDS[options["kind"]]
    constructor = ("num_layers", "bias", "bidirectional", "batch_first", "dropout", "dtype")
    ours, theirs = pair(name, I, H, **{k: options[k] for k in constructor}, **extra)
    ours, theirs = ours.train(options["training"]), theirs.train(options["training"])
    g = torch.Generator().manual_seed(1)
    x, make = inputs(options, g)
    states = []
    if options["state"] == "given":
        lead = options["num_layers"] * (1 + options["bidirectional"])
        batch = () if options["input"] == "unbatched" else (options["B"],)
        sizes = (extra.get("proj_size", H), H) if name == "LSTM" else (H,)
        states = [torch.randn(lead, *batch, size, generator=g, dtype=torch.float64) for size in sizes]
    dtype = options["dtype"]
    device = device_of(options["backend"])
    given = [t.to(dtype).to(device) for t in (x, *states)]
    ours, theirs = ours.to(device), theirs.to(device)
    with kz.backend(options["backend"]):
        got, grads = run(ours, given[0], make, given[1:])
    want, their_grads = run(theirs, given[0], make, given[1:])
    exact, exact_grads = run(
        copy.deepcopy(theirs).double(), given[0].double(), make, [t.double() for t in given[1:]]
    )
    for i, three in enumerate(zip(got, want, exact, strict=True)):
        assert_as_good(f"result {i}", *three)
    if options["kind"] == "rnn-relu" and dtype == torch.bfloat16:
        return  # a sum that rounds to the other side of 0 (0.0003 for 0) turns a derivative from 0 to 1
    for i, three in enumerate(zip(grads, their_grads, exact_grads, strict=True)):
        assert_as_good(f"gradient {i}", *three)


@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences_come_back(enforce_sorted):
    """The sequence's order, its lengths and the states' order are the input's."""
    lengths = [4, 3, 1] if enforce_sorted else [1, 4, 3]
    sequences = [torch.randn(n, I) for n in lengths]
    packed = pack_sequence(sequences, enforce_sorted)
    layer = nn.GRU(I, H, bidirectional=True)
    y, hn = layer(packed)
    assert isinstance(y, PackedSequence)
    padded, found = pad_packed_sequence(y)
    assert found.tolist() == lengths
    for k, one in enumerate(sequences):
        alone, h = layer(one)
        torch.testing.assert_close(padded[: len(one), k], alone)
        torch.testing.assert_close(hn[:, k], h)


EXTRAS = {
    "layer_norm": {"layer_norm": True},
    "zoneout": {"zoneout": 0.3},
    "recurrent_dropout": {"recurrent_dropout": 0.3},
    "weight_dropout": {"weight_dropout": 0.3},
    "heads": {"heads": 2},
    "peephole": {"peephole": True},
    "all": {"layer_norm": True, "zoneout": 0.3, "recurrent_dropout": 0.2, "weight_dropout": 0.2, "heads": 2},
}


def extras():
    for name in ("LSTM", "GRU", "RNN"):
        for extra, options in EXTRAS.items():
            if extra != "peephole" or name == "LSTM":
                yield pytest.param(name, options, id=f"{name}-{extra}")


@pytest.mark.parametrize(("name", "options"), list(extras()))
def test_extras(name, options):
    """Every option of ours on every backend alike, shown by repr, saved, loaded, pickled and trained."""
    torch.manual_seed(3)
    layer = getattr(nn, name)(I, H, 2, bidirectional=True, **options)
    for option, value in options.items():
        assert f"{option}={value}" in repr(layer)
    for key, value in layer.state_dict().items():
        if "_ln_" in key:
            assert torch.equal(value, torch.full_like(value, float(key.startswith("weight"))))
        else:
            assert 0 < value.abs().max() <= H**-0.5
    other = getattr(nn, name)(I, H, 2, bidirectional=True, **options)
    other.load_state_dict(layer.state_dict())
    copied = pickle.loads(pickle.dumps(layer))
    packed = pack_sequence([torch.randn(n, I) for n in (2, 4)], enforce_sorted=False)
    found = []
    for backend in ("auto", "torch", KERNEL):
        for module in (layer, other, copied):
            torch.manual_seed(5)
            module.zero_grad()
            with kz.backend(backend):
                results = flat(module(packed))
            sum(t.square().sum() for t in results).backward()
            found.append((results, [p.grad for p in module.parameters()]))
            assert all(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_evaluation_is_deterministic_and_training_is_not(name):
    layer = getattr(nn, name)(I, H, zoneout=0.3, recurrent_dropout=0.3, weight_dropout=0.3)
    x = torch.randn(4, 2, I)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])
    plain = getattr(nn, name)(I, H)
    plain.load_state_dict(layer.state_dict())
    assert not torch.allclose(layer(x)[0], plain(x)[0])  # zoneout's expectation
    layer.zoneout = 0.0
    torch.testing.assert_close(layer(x)[0], plain(x)[0])


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("bias", [True, False])
def test_cells(name, bias, nonlinearity):
    options = {"nonlinearity": nonlinearity} if name == "RNNCell" else {}
    ours, theirs = pair(name, I, H, bias, dtype=torch.float64, **options)
    for batch in ((3,), ()):
        x, h, c = (torch.randn(*batch, n, dtype=torch.float64, requires_grad=True) for n in (I, H, H))
        for hx in (None, (h, c) if name == "LSTMCell" else h):
            want = theirs(x, hx)
            for backend in ("auto", KERNEL):
                with kz.backend(backend):
                    got = ours(x, hx)
                torch.testing.assert_close(got, want)
                assert type(got) is type(want)


# ---- what torch's own cannot do


VARIED = {"layer_norm": True, "zoneout": 0.2}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("LSTM", {"num_layers": 2, **VARIED}, id="LSTM-extras"),
        pytest.param("GRU", {}, id="GRU"),
        pytest.param("RNN", {}, id="RNN"),
        pytest.param("LSTM", {"num_layers": 2}, id="LSTM", marks=pytest.mark.slow),
        pytest.param("GRU", {"num_layers": 2, **VARIED}, id="GRU-extras", marks=pytest.mark.slow),
        pytest.param("RNN", {"num_layers": 2, **VARIED}, id="RNN-extras", marks=pytest.mark.slow),
    ],
)
def test_compile_with_changing_lengths(name, options):
    """One whole graph, compiled at most twice (static, then dynamic) whatever lengths follow, and its gradients."""
    layer = getattr(nn, name)(I, H, bidirectional=True, dtype=torch.float64, **options).eval()
    counter = Counter()
    with compiled_quietly():
        compiled = torch.compile(layer, fullgraph=True, backend=counter)
        for T in (5, 7, 4, 9, 11, 6):
            x = torch.randn(T, 3, I, dtype=torch.float64)
            found = []
            for module in (compiled, layer):
                results = flat(module(x))
                sum(t.square().sum() for t in results).backward()
                found.append((results, [p.grad for p in layer.parameters()]))
                module.zero_grad()
            torch.testing.assert_close(*found)
        assert counter.graphs <= 2


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_compile_packed(name):
    layer = getattr(nn, name)(I, H, bidirectional=True)
    counter = Counter()
    with compiled_quietly():
        compiled = torch.compile(layer, fullgraph=True, backend=counter)
        for lengths in ((2, 5, 3), (7, 1, 4), (6, 6, 2), (1, 9, 8)):
            packed = pack_sequence([torch.randn(n, I) for n in lengths], enforce_sorted=False)
            for got, want in zip(flat(compiled(packed)), flat(layer(packed)), strict=True):
                torch.testing.assert_close(got, want)
        assert counter.graphs <= 2


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_export(name):
    layer = getattr(nn, name)(I, H, 2, batch_first=True).eval()
    x = torch.randn(3, 5, I)
    time = torch.export.Dim("time", min=2, max=50)
    with compiled_quietly(), torch.no_grad():
        program = torch.export.export(layer, (x,), dynamic_shapes={"input": {1: time}})
        for T in (5, 9):
            x = torch.randn(3, T, I)
            torch.testing.assert_close(program.module()(x), layer(x))
    assert any("kernelzoo.rnn_fwd" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize("backend", ["auto", "torch", "kernel"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_double_backward(name, backend):
    """In float32 as well, and on a GPU, where torch's own have no second derivative."""
    device = device_of(here())
    layer = getattr(nn, name)(I, H, bidirectional=True, device=device).double()
    x = torch.randn(3, 2, I, dtype=torch.float64, device=device, requires_grad=True)
    with kz.backend(here() if backend == "kernel" else backend):
        torch.autograd.gradgradcheck(lambda x: flat(layer(x)), x, fast_mode=True)
        layer.float()
        x = x.detach().float()
        found = second(layer, x)
    exact = second(layer.double(), x.double())
    for got, want in zip(found, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not GPU, reason="torch's own can be differentiated twice on a CPU")
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_torchs_own_has_no_second_derivative_on_a_gpu(name):
    ours, theirs = (m.cuda() for m in pair(name, I, H))
    x = torch.randn(3, 2, I, device="cuda")
    assert all(t.isfinite().all() for t in second(ours, x))
    with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
        second(theirs, x)


def second(layer, x):
    """The gradients of the input's gradient's square."""
    x = x.detach().requires_grad_()
    (dx,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
    return torch.autograd.grad(dx.square().sum(), list(layer.parameters()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_16_bits_packed(name, dtype):
    """As exact as float32's result rounded a few times, packed and backwards too."""
    layer = getattr(nn, name)(I, H, 2, bidirectional=True, dtype=dtype)
    packed = pack_sequence([torch.randn(n, I).to(dtype) for n in (4, 2)])
    y = flat(layer(packed))
    sum(t.float().square().sum() for t in y).backward()
    assert all(p.grad.dtype == dtype and p.grad.isfinite().all() for p in layer.parameters())
    exact = flat(copy.deepcopy(layer).double()(packed.to(torch.float64)))
    for got, want in zip(y, exact, strict=True):
        assert got.dtype == dtype
        assert (got.double() - want).abs().max() < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_autocast(name, packed):
    """The results' dtypes are torch's."""
    ours, theirs = pair(name, I, H)
    x = torch.randn(4, 2, I)
    x = pack_padded_sequence(x, [4, 3]) if packed else x
    with torch.autocast("cpu", torch.bfloat16):
        try:
            want = flat(theirs(x))
        except RuntimeError as error:
            if "primitive descriptor for the LSTM" not in str(error):
                raise
            # torch's own layer raises there: with what should ours be compared?
            pytest.skip("oneDNN has no LSTM in bf16 for this CPU")
    for backend in ("auto", KERNEL):
        with kz.backend(backend), torch.autocast("cpu", torch.bfloat16):
            got = flat(ours(x))
        for a, b in zip(got, want, strict=True):
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.02)
        sum(t.float().square().sum() for t in got).backward()
        assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_where_no_kernel_is_here(name, monkeypatch):
    """ "auto" leaves a plain module to torch's own call, all layers at once, and no other."""
    monkeypatch.setattr(kz.ops.core.choice, "automatic", lambda *args: None)
    ours, theirs = pair(name, I, H, 2, bidirectional=True)
    asked = []
    monkeypatch.setattr(theirs.__class__, "forward", _watched(theirs.__class__.forward, asked))
    packed = pack_sequence([torch.randn(n, I) for n in (3, 2)])
    with kz.trace() as calls:
        got = flat(ours(packed))
    assert len(asked) == 1
    assert [c.backend for c in calls] == ["torch"]
    torch.testing.assert_close(got, flat(theirs(packed)))
    del asked[:]
    varied = getattr(nn, name)(I, H, layer_norm=True)
    with kz.backend("torch"):
        want = flat(varied(packed))
    torch.testing.assert_close(flat(varied(packed)), want)
    assert not asked


def _watched(forward, asked):
    def watched(*args):
        asked.append(args)
        return forward(*args)

    return watched


@pytest.mark.parametrize("avx512", [True, False])
def test_small_layers_are_torchs_own(avx512, monkeypatch):
    """The rule of "auto" on a CPU, and what it leaves to the kernels: packed, compiled, with options, large where
    there is AVX-512."""
    monkeypatch.setattr(kz.ops.rnn, "has_avx512", lambda: avx512)
    small, large = nn.LSTM(I, H), nn.LSTM(I, kz.ops.rnn.SMALL_LSTM + 1)
    x = torch.randn(3, 2, I)
    packed = pack_padded_sequence(x, [3, 1])
    for layer, given, torchs in (
        (small, x, True),
        (small, packed, False),
        (large, x, not avx512),
        (large, torch.randn(3, kz.ops.rnn.MANY_SEQUENCES, I), True),
        (nn.LSTM(I, H, peephole=True), x, False),
        (nn.GRU(I, H), x, False),
        (nn.LSTM(I, H).bfloat16(), x.bfloat16(), False),
        (nn.LSTMCell(I, H), x[0], True),
    ):
        with kz.trace() as calls:
            layer(given)
        assert (calls[-1].backend == "torch") is torchs, calls


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_transforms(name):
    """Gradients a sample and forward-mode derivatives, which torch's own LSTM lacks, by the formula."""
    layer = getattr(nn, name)(I, H, dtype=torch.float64)
    parameters = dict(layer.named_parameters())
    x = torch.randn(3, 4, I, dtype=torch.float64)

    def loss(parameters, x):
        return torch.func.functional_call(layer, parameters, (x,))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for k, sample in enumerate(x):
        want = torch.autograd.grad(loss(parameters, sample), list(parameters.values()))
        for got, one in zip(each.values(), want, strict=True):
            torch.testing.assert_close(got[k], one)
    direction = torch.randn_like(x[0])
    _, tangent = torch.func.jvp(lambda x: loss(parameters, x), (x[0],), (direction,))
    (dx,) = torch.autograd.grad(loss(parameters, one := x[0].clone().requires_grad_()), one)
    torch.testing.assert_close(tangent, (dx * direction).sum())


def test_parametrised_weights():
    """weight_norm, spectral_norm and functional_call reach the layer: it reads its weights when it runs."""
    ours, theirs = pair("LSTM", I, H)
    x = torch.randn(4, 2, I)
    other = {name: torch.randn_like(p) for name, p in ours.named_parameters()}
    torch.testing.assert_close(
        torch.func.functional_call(ours, other, (x,)), torch.func.functional_call(theirs, other, (x,))
    )
    for module in (ours, theirs):
        torch.nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        with torch.no_grad():
            module.parametrizations.weight_hh_l0.original0.mul_(2)
    torch.testing.assert_close(ours(x), theirs(x))


def raised(call):
    with pytest.raises((RuntimeError, ValueError, TypeError)) as error:
        call()
    return error


BAD_INPUTS = {
    "features": lambda m: m(torch.randn(4, 2, I + 1)),
    "dimensions": lambda m: m(torch.randn(4, 2, 1, I)),
    "dtype": lambda m: m(torch.randn(4, 2, I).double()),
    "no steps": lambda m: m(torch.randn(0, 2, I)),
    "device": lambda m: m(torch.randn(4, 2, I, device="meta")),
    "state batch": lambda m: m(torch.randn(4, 2, I), state(m, 1, 3, H)),
    "state layers": lambda m: m(torch.randn(4, 2, I), state(m, 2, 2, H)),
    "state size": lambda m: m(torch.randn(4, 2, I), state(m, 1, 2, H + 1)),
    "state dimensions": lambda m: m(torch.randn(4, 2, I), state(m, 2, H)),
    "unbatched state": lambda m: m(torch.randn(4, I), state(m, 1, 1, H)),
    "packed state": lambda m: m(pack_sequence([torch.randn(2, I)]), state(m, 1, 2, H)),
}


def state(module, *shape):
    h = torch.zeros(shape)
    return (h, h) if module.mode == "LSTM" else h


@pytest.mark.parametrize("bad", BAD_INPUTS)
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_bad_input(name, bad):
    """torch's type of error, and a message that names both sides."""
    ours, theirs = pair(name, I, H)
    got = raised(lambda: BAD_INPUTS[bad](ours))
    if (name, bad) != ("LSTM", "packed state"):  # which torch takes, and reads a part of
        assert issubclass(got.type, raised(lambda: BAD_INPUTS[bad](theirs)).type)
    assert len([c for c in str(got.value) if c.isdigit()]) > 1 or bad in ("dtype", "device")


def test_bad_lengths():
    """What packs too much, or nothing, is refused before it reaches a layer or there."""
    with pytest.raises(RuntimeError, match="Length of all samples has to be greater than 0"):
        pack_padded_sequence(torch.randn(5, 2, I), [5, 0])
    layer = nn.LSTM(I, H)
    for sizes, message in (
        ([2, 2, 2], "sum to 6 but input has 5 rows"),
        ([3, 2, 0], "positive and never rise"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(PackedSequence(torch.randn(5, I), torch.tensor(sizes)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("LSTM", {"proj_size": H}, "smaller than hidden_size; got proj_size=6 and hidden_size=6"),
        ("LSTM", {"proj_size": -1}, "LSTM: proj_size should be a positive integer or zero"),
        ("GRU", {"proj_size": 2}, "proj_size argument is only supported for LSTM"),
        ("LSTM", {"heads": 4}, "LSTM: heads must divide the 6 cells, got 4"),
        ("LSTM", {"heads": 2, "proj_size": 3}, "heads must divide the 6 cells and 3 projected features, got 2"),
        ("GRU", {"zoneout": (0.1, 0.1)}, "GRU: zoneout must be a probability, got"),
        ("RNN", {"zoneout": 2}, "RNN: zoneout has to be between 0 and 1, but got 2"),
        ("RNN", {"weight_dropout": -0.5}, "weight_dropout has to be between 0 and 1, but got -0.5"),
    ],
)  # fmt: skip
def test_bad_constructor(name, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(nn, name)(I, H, **options)
