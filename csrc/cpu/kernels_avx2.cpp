#include "kernels.h"

#if KERNELZOO_X86
#include <immintrin.h>
#pragma GCC target("avx2,fma,f16c")
#define KERNELZOO_ISA avx2
#define KERNELZOO_F16C
#include "kernels_impl.h"

const kernelzoo::Kernels* kernelzoo::kernels_avx2() { return avx2::TABLES; }
#endif
