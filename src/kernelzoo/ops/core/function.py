"""The base Function: what every op gets once, for all.

Double backward differentiates the formula; torch.func transforms, forward-mode AD and tensor subclasses call
it; autocast casts as torch does for the mirrored name; the backend is chosen here and kept for the backward.
"""

import torch
from torch.autograd import forward_ad

from . import choice
from .registry import PLAIN


def autocast_dtype(t):
    """torch.autocast's dtype where it is on for t's device, else None."""
    if not torch._C._is_any_autocast_enabled():  # a sixth of the cost of asking for a device
        return None
    device = t.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class _NoGrad:
    """Stands in for `ctx` where no gradient can be asked for: nothing is saved."""

    needs_input_grad = (False,) * 32

    def save_for_backward(self, *tensors):
        pass


class KernelFunction:
    """An op, made into a torch.autograd.Function here (torch.compile reads no attribute of such a class,
    so the op is none itself). A subclass gives

    - `module`: its file in `kernels/<backend>/`; `label(*args)`: what errors and traces call it;
    - `formula(*args)`: plain torch, differentiable: oracle, fallback, double backward and transform rule;
    - `rule(*args)`: why "auto" takes torch's own call for these arguments, or None where a kernel is taken;
    - `forward(ctx, *args, backend)`: saves for the backward and calls the forward op;
    - `backward(ctx, *grads)`: the gradients of the leading tensor arguments, by the backward op;
    - `inputs(ctx)`: the formula's arguments again, from `ctx`, for the double backward; or, where not all of
      them are saved, `_by_formula(ctx, *grads)`: the backward as a differentiable function;
    - `autocast(*args)`: the dtype that floating arguments get under torch.autocast, or None;
    - `mixed = True` where its launchers take floating tensors of different dtypes;
    - `unserved(*args)`: why no kernel of any backend takes these arguments, or None; `unserved_by(backend, *args)`:
      why this backend's kernels do not, where they serve less than others';
    - `torch_call(*args)`: what runs where no kernel does: the formula, or torch's own call where it has one,

    and is called by `call(*args)`, tensors first, of which the first is floating and decides device and dtype.
    An op with several results returns a tuple from `forward` and `formula`.
    """

    module: str
    mixed = False

    def __init_subclass__(cls):
        members = {"forward": staticmethod(cls.forward), "backward": staticmethod(_with_double_backward(cls))}
        cls._function = type(cls.__name__, (torch.autograd.Function,), members)

    @classmethod
    def label(cls, *args):
        return cls.module

    @staticmethod
    def autocast(*args):
        return None

    @staticmethod
    def unserved(*args):
        return None

    @staticmethod
    def unserved_by(backend, *args):
        return None

    @classmethod
    def torch_call(cls, *args):
        return cls.formula(*args)

    @classmethod
    def call(cls, *args):
        state = choice.state
        ruled = state.chosen == "auto" and state.calls is None
        if ruled and cls.rule(*args):
            return cls.torch_call(*args)  # a small call ends here, whatever else is true of it
        compiling = torch.compiler.is_compiling()
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        reason = transform() or (None if compiling else _foreign(tensors))
        if reason is None:
            to = cls.autocast(*args)
            if to is not None:
                ruled = False
                args = tuple(a.to(to) if _castable(a) else a for a in args)
                tensors = [a for a in args if isinstance(a, torch.Tensor)]
            backend, reason = choice.choose(cls, tensors, args, ruled)
        else:
            backend = "torch"
        if not compiling and state.calls is not None:
            shapes = tuple(() if t.is_nested else tuple(t.shape) for t in tensors)
            state.calls.append(choice.Call(cls.label(*args), backend, reason, shapes, tensors[0].dtype))
        if backend == "torch":
            return cls.torch_call(*args)
        if compiling and state.chosen == "auto":
            backend = "auto"
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return cls._function.apply(*args, backend)
        return cls.forward(_NoGrad(), *args, backend)

    @classmethod
    def _by_formula(cls, ctx, *grads):
        """The backward as a differentiable function: the formula's own, over the saved inputs."""
        # a fresh alias each: one tensor given twice would otherwise collect both gradients at both places
        args = [a.view_as(a) if isinstance(a, torch.Tensor) else a for a in cls.inputs(ctx)]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
        outputs = cls.formula(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        # an output that nobody used has no gradient; one that no wanted argument reaches passes none on
        used = [(y, dy) for y, dy in zip(outputs, grads, strict=True) if dy is not None and y.requires_grad]
        found = torch.autograd.grad(
            [y for y, _ in used],
            [args[i] for i in wanted],
            [dy for _, dy in used],
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        return [found[wanted.index(i)] if i in wanted else None for i in range(len(args))]


def _with_double_backward(cls):
    def backward(ctx, *grads):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # create_graph=True
            found = cls._by_formula(ctx, *grads)
        else:
            found = cls.backward(ctx, *grads)
        return (*found, *(None,) * (len(ctx.needs_input_grad) - len(found)))

    return backward


def torch_serves(label, reason, *tensors):
    """Called where torch's own call serves arguments that no kernel takes: a line in the trace, and
    `BackendUnavailable` where a kernel backend was asked for. Empty tensors and transforms are torch's anywhere."""
    state = choice.state
    asked = state.chosen not in ("auto", "torch")
    if not asked and state.calls is None:
        return
    tensors = [t for t in tensors if isinstance(t, torch.Tensor)]
    if transform() or any(choice.below(t.numel(), 1) for t in tensors):
        return
    if asked:
        raise choice.BackendUnavailable(f"{label}: backend {state.chosen!r} was asked for, but {reason}")
    if not torch.compiler.is_compiling():
        shapes = tuple(() if t.is_nested else tuple(t.shape) for t in tensors)
        state.calls.append(choice.Call(label, "torch", reason, shapes, tensors[0].dtype))


def _castable(a):
    return isinstance(a, torch.Tensor) and a.is_floating_point() and a.dtype != torch.float64


def _fake_tensor():
    from torch._subclasses.fake_tensor import FakeTensor  # late: its import takes a second

    return FakeTensor


def transform():
    """Which transform is active that an op without derivative rules is opaque to, or None."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "forward-mode AD is active"
    return None


transform._dynamo_marked_constant = True  # torch.compile asks it while it traces, with the transform on


def _foreign(tensors):
    """Why a kernel cannot read these tensors' memory, or None."""
    for t in tensors:
        if type(t) not in PLAIN and not isinstance(t, _fake_tensor()):
            return f"{type(t).__name__} is a tensor subclass"
        if t.layout is not torch.strided or t.is_nested:
            return f"its layout is {'nested' if t.is_nested else t.layout}"
    return None
