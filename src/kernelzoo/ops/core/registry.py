"""The torch ops: every launcher behind one opaque op, so that compile and export see a call and no kernel.

`torch.library.Library.define/impl` costs 2 us a call where `custom_op` costs 10 to 20.
"""

import functools
import importlib

import torch

from . import choice
from .choice import PLAIN

_library = torch.library.Library("kernelzoo", "DEF")


@functools.cache
def launcher(backend, module, name):
    return getattr(importlib.import_module(f"kernelzoo.kernels.{backend}.{module}"), name)


@choice._fixed
def product_wins(dtype):
    """Whether "auto"'s products of a dtype are faster than torch's on this CPU (kernels/product.py)."""
    module = "product" if choice.missing("cpp") else "cpp.product"
    return importlib.import_module(f"kernelzoo.kernels.{module}").products.wins(dtype)


def define(schema, module, fake, prepare=None):
    """Define `kernelzoo::<name>` and return what calls it: the launcher itself where nothing but the eager
    computation is watching, the torch op (6 us more) where a compiler, a mode or a fake tensor is.

    schema: the launcher's signature without the last argument, `str backend`, which is added here: the name
    of a kernel backend, or "auto", which is decided when the op runs (a compiled or exported graph stays
    free to move). module: the file in `kernels/<backend>/`. fake: the outputs' shapes, from the launcher's
    arguments. prepare: maps the arguments to what the launcher is promised (layout).
    """
    head, returns = schema.split(") ->")
    name = head.split("(")[0]

    def run(*args):
        *args, backend = args
        if backend == "auto":
            backend = choice.automatic(module, args[0].device.type, args[0].dtype)
            if backend is None:
                raise choice.BackendUnavailable(f"{name}: no kernel for {args[0].dtype} on {args[0].device}")
        if prepare:
            args = prepare(*args)
        with torch._C._AutoDispatchBelowAutograd():  # a graph that was exported may run in grad mode
            return launcher(backend, module, name)(*args)

    tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
    _library.define(f"{head}, str backend) ->{returns}", tags=tags)
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"kernelzoo::{name}", lambda *args: fake(*args[:-1]), lib=_library)
    op = getattr(torch.ops.kernelzoo, name).default

    def call(*args):
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or type(args[0]) not in PLAIN
        ):
            return op(*args)
        return run(*args)

    return call
