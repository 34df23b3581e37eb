"""A file an op: `cases()` yields what to compile, as dicts with "module" (the file's name), "kernel" (which of the
kernels that the launcher launches), "target" (of cases.TARGETS), "dtype" and whatever else `launch(case, target)`
needs, which calls the launcher on tensors without storage (device="meta"). Optional keys of a case:
"tensor_core": the dot must become a tensor-core instruction; "wide": a load must take 16 bytes; "default": it
belongs to the default suite, the rest is `slow`.
"""
