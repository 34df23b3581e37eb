"""What the backends' launchers of gated activations share: rows, results, and the halves of torch's glu."""

from . import memory


def size(*tensors):
    """(M, N) of these tensors' rows: one long row where all are contiguous."""
    M, N = tensors[0].shape
    return (1, M * N) if all(t.stride(0) == N or M == 1 for t in tensors) else (M, N)


def _empty(like, shape):
    return memory.empty(shape, like.dtype) if like.is_cpu else like.new_empty(shape)


def launchers(fwd, bwd):
    """glu_fwd, glu_bwd, glu_split_fwd, glu_split_bwd over a backend's fwd(gate, up, y, act) and
    bwd(dy, gate, up, dgate, dup, act), which fill what they are given."""

    def glu_fwd(gate, up, act):
        """y = act(gate) * up. gate, up (M, N) of adjacent columns; y contiguous."""
        y = _empty(gate, gate.shape)
        fwd(gate, up, y, act)
        return y

    def glu_bwd(dy, gate, up, act):
        """dgate = dy * up * act'(gate), dup = dy * act(gate), contiguous. dy, gate, up (M, N) of adjacent columns."""
        dgate, dup = (_empty(gate, gate.shape) for _ in range(2))
        bwd(dy, gate, up, dgate, dup, act)
        return dgate, dup

    def glu_split_fwd(x):
        """y = a * sigmoid(b), the halves a, b of each row of x (M, 2 N); y (M, N) contiguous."""
        up, gate = x.chunk(2, 1)
        return glu_fwd(gate, up, "sigmoid")

    def glu_split_bwd(dy, x):
        """dx (M, 2 N), contiguous, from dy (M, N)."""
        dx = _empty(x, x.shape)
        up, gate = x.chunk(2, 1)
        dup, dgate = dx.chunk(2, 1)
        bwd(dy, gate, up, dgate, dup, "sigmoid")
        return dx

    return glu_fwd, glu_bwd, glu_split_fwd, glu_split_bwd
