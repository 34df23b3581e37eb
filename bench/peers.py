"""Peer libraries: what each has of our ops. One that is not installed is named in the row as not here."""

import importlib

# The largest set of activations that attorch's fused linear and its modules know.
ATTORCH = ("sigmoid", "tanh", "relu", "gelu", "silu")


def _optional(library, build):
    """build(), a function of the op's tensors, or the reason why the library cannot serve."""
    try:
        importlib.import_module(library)
    except ImportError:
        return f"{library} is not installed"
    try:
        return build()
    except (ImportError, AttributeError) as error:
        return f"{library} is installed, but {error}"


def linear(act):
    """Fused linear + activation of peers, as functions of (x, w, b)."""
    found = {}
    if act in ATTORCH or act is None:

        def attorch():
            module = importlib.import_module("attorch.linear_layer")
            function = getattr(module, "LinearAutoGrad", None) or module.LinearAutograd
            return lambda x, w, b: function.apply(x, w.t(), b, act)

        found["attorch"] = _optional("attorch", attorch)
    if act is None:

        def flash_attn():
            return importlib.import_module("flash_attn.ops.fused_dense").fused_dense_func

        found["flash_attn"] = _optional("flash_attn", flash_attn)
    return found


def activation(name):
    """Activations of peers, as functions of x."""
    if name not in ATTORCH:
        return {}

    def attorch():
        modules = importlib.import_module("attorch.act_layers")
        names = {"relu": "ReLU", "gelu": "GELU", "silu": "SiLU"}
        return getattr(modules, names.get(name, name.title()))()

    return {"attorch": _optional("attorch", attorch)}


def softmax(log):
    """Softmax over the last dimension of peers, as functions of x."""
    if log:
        return {}

    def liger():
        return importlib.import_module("liger_kernel.ops.softmax").LigerSoftmaxFunction.apply

    def quack():
        return importlib.import_module("quack.softmax").softmax

    return {"liger_kernel": _optional("liger_kernel", liger), "quack": _optional("quack", quack)}
