"""The base Function: what every op gets once, for all.

Double backward differentiates the formula; torch.func transforms, forward-mode AD and tensor subclasses call
it; autocast casts as torch does for the mirrored name; the backend is chosen here and kept for the backward.
"""

from typing import ClassVar

import torch
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import choice

_PLAIN = (torch.Tensor, Parameter)


def below(size, limit):
    """size < limit, for the rules of "auto"; in a compiled graph only where no guard on the size is needed."""
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(size < limit)
    return size < limit


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
    - `inputs(ctx)`: the formula's arguments again, from `ctx` (for the double backward);
    - `autocast`: device type -> torch.dtype or "lower" (autocast's own dtype) that floating arguments get.

    and is called by `call(*args)`, tensors first.
    """

    module: str
    autocast: ClassVar[dict] = {}

    def __init_subclass__(cls):
        members = {"forward": staticmethod(cls.forward), "backward": staticmethod(_with_double_backward(cls))}
        cls._function = type(cls.__name__, (torch.autograd.Function,), members)

    @classmethod
    def label(cls, *args):
        return cls.module

    @classmethod
    def call(cls, *args):
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        compiling = torch.compiler.is_compiling()
        if not compiling and (reason := _needs_formula(tensors)):
            cls._record("torch", reason, args, tensors)
            return cls.formula(*args)
        if cls.autocast:
            args = cls._cast(args)
        backend, reason = choice.choose(cls, args)
        if not compiling:
            cls._record(backend, reason, args, tensors)
        if backend == "torch":
            return cls.formula(*args)
        if compiling and choice.state.chosen == "auto":
            backend = "auto"
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            return cls._function.apply(*args, backend)
        return cls.forward(_NoGrad(), *args, backend)

    @classmethod
    def _cast(cls, args):
        device = args[0].device.type
        to = cls.autocast.get(device)
        if to is None or not torch.is_autocast_enabled(device):
            return args
        to = torch.get_autocast_dtype(device) if to == "lower" else to
        return tuple(a.to(to) if _castable(a) else a for a in args)

    @classmethod
    def _record(cls, backend, reason, args, tensors):
        if choice.state.calls is not None:
            shapes = tuple(tuple(t.shape) for t in tensors)
            choice.state.calls.append(
                choice.Call(cls.label(*args), backend, reason, shapes, tensors[0].dtype)
            )

    @classmethod
    def _by_formula(cls, ctx, *grads):
        """The backward as a differentiable function: the formula's own, over the saved inputs."""
        # a fresh alias each: one tensor given twice would otherwise collect both gradients at both places
        args = [a.view_as(a) if isinstance(a, torch.Tensor) else a for a in cls.inputs(ctx)]
        wanted = [i for i, need in enumerate(ctx.needs_input_grad) if need]
        outputs = cls.formula(*args)
        found = torch.autograd.grad(
            outputs,
            [args[i] for i in wanted],
            grads,
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


def _castable(a):
    return isinstance(a, torch.Tensor) and a.is_floating_point() and a.dtype != torch.float64


def _fake_tensor():
    from torch._subclasses.fake_tensor import FakeTensor  # late: its import takes a second

    return FakeTensor


def _needs_formula(tensors):
    """Why kernels cannot see these tensors' values or tangents, or None."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0:
        return "forward-mode AD is active"
    for t in tensors:
        if type(t) not in _PLAIN and not isinstance(t, _fake_tensor()):
            return f"{type(t).__name__} is a tensor subclass"
    return None
