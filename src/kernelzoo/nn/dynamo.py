"""torch.compile refuses every torch.nn.LSTM, GRU and RNN, and so their subclasses, unless `allow_rnn` is set in
`torch._dynamo.config`. Ours compile: the flag is set, for the process, once the first of them is built.
"""

import functools
import importlib.util
import sys

CONFIG = "torch._dynamo.config"


@functools.cache
def allow_rnn():
    """Set the flag now, or when torch._dynamo is imported: its import takes seconds."""
    if CONFIG in sys.modules:
        _set(sys.modules[CONFIG])
    else:
        sys.meta_path.insert(0, _Waiting())


def _set(config):
    config.allow_rnn = True
    # what is set holds for this thread alone: others see the default
    entry = getattr(config, "_config", {}).get("allow_rnn")
    if hasattr(entry, "default"):
        entry.default = True


class _Waiting:
    """A finder that sets the flag behind the module's own import, and finds nothing else."""

    def find_spec(self, name, path=None, target=None):
        if name != CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def execute_and_set(module):
            execute(module)
            _set(module)

        spec.loader.exec_module = execute_and_set
        return spec
