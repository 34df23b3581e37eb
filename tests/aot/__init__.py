"""Ahead-of-time compiles of the Triton kernels: what the compiler made of them, with no device."""
