"""What the CPU backends' loss launchers share."""


def reduced(total, outside, x, target, reduction):
    """The scalar result of a sum over x's elements, or torch's error for a bce's elements outside [0, 1]."""
    if outside:
        name = "target" if bool(((x >= 0) & (x <= 1)).all()) else "input"
        raise RuntimeError(f"all elements of {name} should be between 0 and 1")
    return x.new_tensor(total / x.numel() if reduction == "mean" else total)


def factor(dy, x, reduction):
    """The one incoming gradient of every element."""
    return dy.item() / x.numel() if reduction == "mean" else dy.item()
