"""What the launchers of batch_norm and instance_norm share: how x lies in memory, and the shares of its rows."""

# Shares of an instance's rows that have moments and sums of their own: enough for threads. Never dependent on their
# number, so that the sums are the same everywhere.
STRIPES = 64
ROWS = 64  # the fewest of a share


def sizes(x, instances):
    """(I, N, C, L) of the memory of x (N, C, *), contiguous or channels-last: I instances that are normalised alone, N
    and L what is normalised together, on either side of the channels. L is 1 where the memory holds rows of C."""
    N, C = x.shape[:2]
    L = x.numel() // (N * C)
    if L == 1 or x.is_contiguous():
        return (N, 1, C, L) if instances else (1, N, C, L)
    return (N, L, C, 1) if instances else (1, N * L, C, 1)


def stripes_of(N, L):
    """Into how many shares the rows of an instance are cut."""
    return 1 if L > 1 else max(1, min(STRIPES, N // ROWS))
