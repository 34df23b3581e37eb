"""Triton kernels: CUDA and ROCm devices; CPU tensors only when TRITON_INTERPRET=1 was set before import."""
