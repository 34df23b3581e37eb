"""Embedding: row i of the result is row index_i of the weight.

Backward: each row of dw is the sum, in the order of the indices, of the rows of dy that took it; nothing is added
atomically. The indices are sorted once (stably), so that each row of dw has one owner.
"""

import torch
from torch.nn import functional as T

from .core import FRESH, ArgumentTypeError, KernelFunction, below, define, torch_serves

aten = torch.ops.aten

embedding_fwd = define(
    "embedding_fwd(Tensor weight, Tensor indices) -> Tensor",
    "embedding",
    fake=lambda weight, indices: weight.new_empty(indices.shape[0], weight.shape[1]),
    prepare=lambda weight, indices: (_rows(weight), _checked(indices.long().contiguous(), weight.shape[0])),
)
embedding_bwd = define(
    "embedding_bwd(Tensor dy, Tensor indices, SymInt num_weights, int padding_idx, bool scale_grad_by_freq) -> Tensor",
    "embedding",
    fake=lambda dy, indices, num_weights, padding_idx, scale: dy.new_empty(num_weights, dy.shape[1]),
    prepare=lambda dy, indices, *rest: (_rows(dy), indices.long().contiguous(), *rest),
)


def _rows(t):
    return t if t.stride(1) == 1 or t.shape[1] == 1 else t.contiguous()


def _checked(indices, rows):
    """torch's error on a CPU; on other devices a look would wait for the device."""
    if indices.device.type == "cpu" and indices.numel():
        low, high = indices.aminmax()
        if low < 0 or high >= rows:
            raise IndexError(
                f"embedding: index out of range in self: indices go from {int(low)} to {int(high)} but weight has "
                f"{rows} rows; expected indices in [0, {rows})"
            )
    return indices


class EmbeddingFunction(KernelFunction):
    """Saved for the backward: the indices."""

    module = "embedding"

    @staticmethod
    def formula(weight, indices, padding_idx, scale_grad_by_freq):
        return torch.embedding(weight, indices, padding_idx, scale_grad_by_freq, False)

    @staticmethod
    def rule(weight, indices, padding_idx, scale_grad_by_freq):
        if weight.device.type != "cpu":
            return "torch's own kernels move the same bytes; no GPU has been measured yet"
        # Only in fresh memory, C++ over eager, forward and backward: 30000x768 of 128 runs at 4.3, 50257x768 at 2.6,
        # 1000x256 of 65536 at 0.9 to 2.0; below, 4096x256 of 256 at 0.55 and 50257x64 of 512 at 0.67
        least = FRESH // weight.dtype.itemsize
        if below(indices.numel() * weight.size(1), least) and (
            not weight.requires_grad or below(weight.numel(), least)
        ):
            return "few elements for its cost on a CPU"
        return None

    @staticmethod
    def forward(ctx, weight, indices, padding_idx, scale_grad_by_freq, backend):
        ctx.save_for_backward(indices)
        ctx.num_weights, ctx.padding_idx, ctx.scale = weight.shape[0], padding_idx, scale_grad_by_freq
        ctx.backend = backend
        y = embedding_fwd(weight, indices.reshape(-1), backend)
        return aten._unsafe_view(
            y, (*indices.shape, weight.shape[1])
        )  # no view: users may write to it in place

    @staticmethod
    def backward(ctx, dy):
        (indices,) = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        return (
            embedding_bwd(
                rows, indices.reshape(-1), ctx.num_weights, ctx.padding_idx, ctx.scale, ctx.backend
            ),
        )

    @classmethod
    def _by_formula(cls, ctx, dy):
        (indices,) = ctx.saved_tensors
        if ctx.scale:  # torch's own double backward leaves it out
            dy = dy / indices.reshape(-1).bincount()[indices].to(dy.dtype).unsqueeze(-1)
        return [aten.embedding_dense_backward(dy, indices, ctx.num_weights, ctx.padding_idx, False)]


def embedding(
    input,
    weight,
    padding_idx=None,
    max_norm=None,
    norm_type=2.0,
    scale_grad_by_freq=False,
    sparse=False,
):
    """Rows of a table: torch.nn.functional.embedding.

    Args:
        input: int64 or int32 indices in [0, num_embeddings), any shape.
        weight: of shape (num_embeddings, embedding_dim).
        padding_idx: a row that gets no gradient (negative: from the end).
        max_norm: rows that are looked up and whose norm (of order norm_type) exceeds it are scaled down to it, in
            place, as torch does.
        scale_grad_by_freq: divide a row's gradient by how often the row was looked up.
        sparse: torch's own call, whose gradient is sparse.

    Returns:
        y, of shape (*input.shape, embedding_dim), in weight's dtype. The weight's gradient is summed in float32
        (float64 for float64) in the order of the indices, without atomics, and rounded once.

    Saved for the backward: the indices. Raises torch's own errors; an index out of range is an IndexError on a CPU,
    and elsewhere what torch does on that device.
    """
    if not (
        isinstance(input, torch.Tensor)
        and isinstance(weight, torch.Tensor)
        and input.dtype in (torch.int64, torch.int32)
        and weight.dim() == 2
        and weight.is_floating_point()
        and weight.device == input.device
        and not (sparse or input.is_nested or weight.is_nested)
    ):
        _explain(input, weight)
        y = T.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        torch_serves(
            "embedding",
            "its kernels take a dense matrix and whole numbers, and no sparse=True",
            weight,
            input,
        )
        return y
    if padding_idx is None:
        padding_idx = -1
    else:
        rows = weight.size(0)
        if not (padding_idx == 0 or -rows <= padding_idx < rows):
            raise AssertionError(
                f"Padding_idx must be within num_embeddings: embedding got padding_idx {padding_idx} for {rows} rows"
            )
        padding_idx = padding_idx + rows if padding_idx < 0 else padding_idx
    if max_norm is not None:
        input = input.contiguous()
        T._no_grad_embedding_renorm_(weight, input, max_norm, norm_type)
    return EmbeddingFunction.call(weight, input, padding_idx, bool(scale_grad_by_freq))


def _explain(input, weight):
    for name, t in (("input", input), ("weight", weight)):
        if not isinstance(t, torch.Tensor) and not hasattr(t, "__torch_function__"):
            raise ArgumentTypeError(f"embedding: {name} must be a Tensor, got {type(t).__name__}")
