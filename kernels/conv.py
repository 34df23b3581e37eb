"""What the CPU backends' convolutions share: the order of memory, and padding that differs at the two ends.

Tensors are (N, D, H, W, C), their memory in that order or (N, C, D, H, W); results have the order of the first operand.
"""

from . import memory


def channels_first(x):
    return not x.is_contiguous() and swapped(x).is_contiguous()


def swapped(t):
    """(N, D, H, W, C) as (N, C, D, H, W), which torch's convolutions take: a view."""
    return t.permute(0, 4, 1, 2, 3)


def back(t):
    """(N, C, D, H, W) as (N, D, H, W, C): a view."""
    return t.permute(0, 2, 3, 4, 1)


def empty_as(x, N, size, C):
    """Uninitialised, (N, *size, C) in x's order."""
    if channels_first(x):
        return back(memory.empty((N, C, *size), x.dtype))
    return memory.empty((N, *size, C), x.dtype)


def ordered(t, first):
    """t in one of the two orders, copied where it is not."""
    return back(swapped(t).contiguous()) if first else t.contiguous()


def depthwise(w, channels, groups):
    """Whether each channel has one filter of its own."""
    return w.shape[0] == groups and channels == groups and w.shape[4] == 1


def even(sizes, kernel, out, stride, padding, dilation):
    """(ends, padding): torch's convolutions pad both ends alike, so that what one end has more goes before, into x.

    ends: torch.nn.functional.pad's list, the last dimension's first: all 0 but for padding="same" with an odd sum, for
    causal padding, and (below 0) where x has elements behind that no output sees.
    """
    ends, both = [], []
    for n, k, o, s, p, d in zip(sizes, kernel, out, stride, padding, dilation, strict=True):
        span = d * (k - 1) + 1
        behind = p if (n + 2 * p - span) // s + 1 == o else (o - 1) * s + span - n - p
        both.append(max(0, min(p, behind)))
        ends = [p - both[-1], behind - both[-1], *ends]
    return ends, both
