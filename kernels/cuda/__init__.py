"""CUDA C++ kernels (csrc/cuda), reached through the native module `kernelzoo._cuda`."""
