"""The modules of batch and instance normalisation: torch's results over many steps, over processes, and folded."""

import copy

import pytest
import torch
import torch.distributed as dist

import kernelzoo as kz
from kernelzoo import nn
from kernelzoo.nn.fold import FoldedNorm
from kernelzoo.verify import assert_as_good

from ..harness import here

gloo = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="needs gloo")

PARITY = {
    "BatchNorm1d-2d": ("BatchNorm1d", (6, 5), {}),
    "BatchNorm1d": ("BatchNorm1d", (4, 5, 7), {"momentum": None}),
    "BatchNorm2d": ("BatchNorm2d", (3, 5, 6, 4), {"momentum": 0.3}),
    "BatchNorm2d-plain": ("BatchNorm2d", (3, 5, 6, 4), {"affine": False, "track_running_stats": False}),
    "BatchNorm3d": ("BatchNorm3d", (2, 5, 3, 2, 4), {"eps": 1e-3}),
    "SyncBatchNorm": ("SyncBatchNorm", (3, 5, 6, 4), {}),
    "InstanceNorm1d": ("InstanceNorm1d", (4, 5, 7), {}),
    "InstanceNorm2d": ("InstanceNorm2d", (3, 5, 6, 4), {"affine": True, "track_running_stats": True}),
    "InstanceNorm3d": ("InstanceNorm3d", (2, 5, 3, 2, 4), {"affine": True}),
}


@pytest.mark.parametrize(("name", "shape", "options"), PARITY.values(), ids=PARITY)
def test_twenty_steps_as_torchs(name, shape, options):
    """Parameters, running statistics and an evaluation at the end, in float64 with torch's, and in float32 by the
    rule."""
    models, inputs = {}, [torch.randn(shape, dtype=torch.float64) * 2 + 1 for _ in range(20)]
    for dtype, module in (
        (torch.float32, nn),
        (torch.float32, torch.nn),
        (torch.float64, nn),
        (torch.float64, torch.nn),
    ):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            getattr(module, name)(5, **options), torch.nn.Flatten(), torch.nn.LazyLinear(3)
        )
        model[2](torch.zeros(1, inputs[0][0].numel()))
        optimizer = torch.optim.SGD(model.to(dtype).parameters(), 0.05, momentum=0.9)
        with kz.backend(here() if module is nn else "auto"):
            for x in inputs:
                optimizer.zero_grad()
                model(x.to(dtype)).square().mean().backward()
                optimizer.step()
            y = model.eval()(inputs[0].to(dtype))
        models[dtype, module] = {**model.state_dict(), "y": y.detach()}
    found = [
        models[key] for key in ((torch.float32, nn), (torch.float32, torch.nn), (torch.float64, torch.nn))
    ]
    for key, right in found[2].items():
        torch.testing.assert_close(models[torch.float64, nn][key], right)
        if right.is_floating_point():
            assert_as_good(key, found[0][key], found[1][key], right)
        else:
            assert torch.equal(found[0][key], right)


def test_extras_and_repr():
    layer = nn.BatchNorm2d(4, act=("leaky_relu", 0.2))
    plain = torch.nn.BatchNorm2d(4)
    assert repr(layer) == repr(plain)[:-1] + ", act=('leaky_relu', 0.2))"
    assert layer.state_dict().keys() == plain.state_dict().keys()
    x, r = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    torch.testing.assert_close(layer(x, r), torch.nn.functional.leaky_relu(plain(x) + r, 0.2))
    torch.testing.assert_close(layer.running_var, plain.running_var)
    norm = nn.InstanceNorm1d(4, act="relu")
    torch.testing.assert_close(
        norm(x[0, :, 0], r[0, :, 0]), (torch.nn.InstanceNorm1d(4)(x[0, :, 0]) + r[0, :, 0]).relu()
    )
    with pytest.raises(ValueError, match="BatchNorm1d: unknown act 'rely'"):
        nn.BatchNorm1d(4, act="rely")
    with pytest.raises(ValueError, match="expected 4D input"):
        layer(x[0])


def test_bfloat16_model_with_float32_norms():
    x = torch.randn(8, 6, 9, 9).bfloat16().to(memory_format=torch.channels_last)
    layer, plain = nn.BatchNorm2d(6, act="relu"), torch.nn.BatchNorm2d(6)
    with kz.backend(here()), torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_as_good("y", y, plain(x).relu(), torch.nn.BatchNorm2d(6).double()(x.double()).relu())
    torch.testing.assert_close(layer.running_mean, plain.running_mean)


def test_compiles_with_its_running_statistics():
    layer = nn.BatchNorm2d(5, act="relu")
    other = copy.deepcopy(layer)
    x = torch.randn(4, 5, 6, 3)
    with kz.backend(here()):
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            y = compiled(x)
            torch.testing.assert_close(y, other(x))
        torch.testing.assert_close(layer.state_dict(), other.state_dict())
    torch._dynamo.reset()


# ---- over processes


def block():
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 5, 3), nn.BatchNorm2d(5, act="relu"), torch.nn.Conv2d(5, 3, 2),
                               torch.nn.BatchNorm2d(3)).double()  # fmt: skip


def batch():
    g = torch.Generator().manual_seed(4)
    x = torch.randn(9, 2, 7, 6, generator=g, dtype=torch.float64)
    return x, torch.randn(9, 3, 4, 3, generator=g, dtype=torch.float64)


def share(rank):
    """Uneven, as a last batch is."""
    return slice(0, 3) if rank == 0 else slice(3, 9)


def one_process():
    """The model before the step; and after it, with y and x's gradient."""
    model, (x, dy) = block(), batch()
    before = copy.deepcopy(model)
    x.requires_grad_()
    y = model(x)
    (y * dy).sum().backward()
    return before, model, y.detach(), x.grad


def assert_one_process_of_two(rank, before, whole, y_whole, dx_whole, wrap=None):
    model, (x, dy) = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(before)), batch()
    assert "SyncBatchNorm(5, eps=1e-05" in repr(model[1])
    assert model[1].act == "relu"
    assert model[1].state_dict().keys() == before[1].state_dict().keys()
    part = x[share(rank)].requires_grad_()
    wrapped = wrap(model) if wrap else model  # DDP's hooks live as long as it does
    y = wrapped(part)
    (y * dy[share(rank)]).sum().backward()
    torch.testing.assert_close(y.detach(), y_whole[share(rank)])
    torch.testing.assert_close(part.grad, dx_whole[share(rank)])
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, whole.get_buffer(name))
    for name, parameter in model.named_parameters():
        grad = parameter.grad.clone()
        if wrap:  # DDP's gradients are the mean over the processes
            grad *= 2
        else:
            dist.all_reduce(grad)
        torch.testing.assert_close(grad, whole.get_parameter(name).grad)


@gloo
@pytest.mark.parametrize("backend", ["cpp", "torch"])
def test_two_threads_as_one(backend):
    """The exchange itself, between threads."""
    if not kz.backends()[backend].available:
        pytest.skip(kz.backends()[backend].reason)
    from torch.testing._internal.common_distributed import spawn_threads_and_init_comms

    expected = one_process()

    @spawn_threads_and_init_comms(world_size=2)
    def run(self):
        assert_one_process_of_two(dist.get_rank(), *expected)

    with kz.backend(backend):
        run(None)


@gloo
def test_a_process_without_a_sample():
    from torch.testing._internal.common_distributed import spawn_threads_and_init_comms

    x = torch.randn(4, 3, 5, dtype=torch.float64)
    dy = torch.randn(4, 3, 5, dtype=torch.float64)
    alone = torch.nn.BatchNorm1d(3).double()
    (alone(x) * dy).sum().backward()

    @spawn_threads_and_init_comms(world_size=2)
    def run(self):
        layer, n = nn.SyncBatchNorm(3).double(), 4 * dist.get_rank()
        part = x[:n].clone().requires_grad_()
        (layer(part) * dy[:n]).sum().backward()
        torch.testing.assert_close(layer.running_var, alone.running_var)
        assert part.grad.shape == part.shape
        if n:
            torch.testing.assert_close(layer.weight.grad, alone.weight.grad)

    run(None)


def _process(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    assert_one_process_of_two(rank, *one_process(), wrap=torch.nn.parallel.DistributedDataParallel)
    dist.destroy_process_group()


@gloo
@pytest.mark.slow
def test_two_processes_under_ddp(tmp_path):
    torch.multiprocessing.spawn(_process, (tmp_path / "rendezvous",), nprocs=2)


# ---- folded


class Residual(torch.nn.Module):
    """A basic block: a fused norm, one with a residual, one that is used twice, one behind an activation."""

    def __init__(self, norm):
        super().__init__()
        fused = {"act": "relu"} if norm is nn.BatchNorm2d else {}
        self.conv1, self.bn1 = torch.nn.Conv2d(6, 6, 3, padding=1, groups=2, bias=False), norm(6, **fused)
        self.conv2, self.bn2 = torch.nn.Conv2d(6, 6, 3, padding=1), norm(6, **fused)
        self.conv3, self.twice = torch.nn.Conv2d(6, 6, 1), norm(6)
        self.up, self.behind = torch.nn.ConvTranspose2d(6, 4, 2, groups=2), norm(4)
        self.fused = norm is nn.BatchNorm2d

    def forward(self, x):
        y = self.bn1(self.conv1(x))
        if self.fused:
            y = self.bn2(self.conv2(y), residual=x)
        else:
            y = torch.relu(self.bn2(self.conv2(torch.relu(y))) + x)
        y = self.twice(self.conv3(y)) + self.twice(y)
        return self.behind(self.up(y))


def trained(*modules):
    """With running statistics, weights and biases that are not the first ones."""
    model = torch.nn.Sequential(*modules)
    for m in model.modules():
        if isinstance(m, torch.nn.modules.batchnorm._BatchNorm):
            for t in (m.running_mean, m.weight.data, m.bias.data):
                t.copy_(torch.randn_like(t))
            m.running_var.copy_(torch.rand_like(m.running_var) + 0.2)
    return model.eval()


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d, nn.BatchNorm2d], ids=["torch", "kernelzoo"])
def test_fold_batchnorm(norm):
    model = trained(torch.nn.Conv2d(3, 6, 3), norm(6), Residual(norm), torch.nn.Flatten(), nn.Linear(4 * 9 * 9, 5),
                    nn.BatchNorm1d(5, act="silu"))  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    folded = kz.fold_batchnorm(model)
    x = torch.randn(4, 3, 10, 10)
    assert_as_good("y", folded(x), model(x), copy.deepcopy(model).double()(x.double()))
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    left = [
        name for name, m in folded.named_modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)
    ]
    assert left == ["2.twice"]
    assert folded[4].act == "silu"
    kinds = {name: type(folded.get_submodule(name)) for name in ("1", "2.bn1", "2.bn2", "2.behind")}
    other = FoldedNorm if norm is nn.BatchNorm2d else torch.nn.Identity
    assert kinds == {"1": torch.nn.Identity, "2.bn1": other, "2.bn2": other, "2.behind": torch.nn.Identity}
    x = torch.randn(4, 5, 5)
    with pytest.raises(ValueError, match=r"of shape \(N, C\), got \(4, 5, 5\)"):
        kz.fold_batchnorm(trained(torch.nn.Linear(5, 5), torch.nn.BatchNorm1d(5)))(x)


class Branching(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = torch.nn.Conv1d(3, 4, 1), torch.nn.BatchNorm1d(4)

    def forward(self, x):
        if x.sum() > 0:
            return self.bn(self.conv(x))
        return self.conv(x)


def test_what_is_not_folded_stays():
    conv, shared = torch.nn.Conv1d(3, 3, 1), torch.nn.BatchNorm1d(3)
    hooked = torch.nn.Conv1d(3, 3, 1)
    hooked.register_forward_hook(lambda *_: None)
    weighted = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 3, 1))
    models = {
        "a branch on values": trained(Branching()),
        "a layer used twice": trained(conv, torch.nn.BatchNorm1d(3), conv, torch.nn.BatchNorm1d(3)),
        "a norm used twice": trained(torch.nn.Conv1d(3, 3, 1), shared, torch.nn.Conv1d(3, 3, 1), shared),
        "behind an activation": trained(torch.nn.Conv1d(3, 3, 1), torch.nn.ReLU(), torch.nn.BatchNorm1d(3)),
        "hooked": trained(hooked, torch.nn.BatchNorm1d(3)),
        "parametrized": trained(weighted, torch.nn.BatchNorm1d(3)),
        "no running statistics": torch.nn.Sequential(
            torch.nn.Conv1d(3, 3, 1), torch.nn.BatchNorm1d(3, track_running_stats=False)
        ).eval(),
    }
    x = torch.randn(4, 3, 5)
    for why, model in models.items():
        folded = kz.fold_batchnorm(model)
        assert [type(m) for m in folded.modules()] == [type(m) for m in model.modules()], why
        assert torch.equal(folded(x), model(x)), why
    with pytest.raises(TypeError, match="fold_batchnorm: model must be a Module, got list"):
        kz.fold_batchnorm([])
