#include "kernels.h"

#if KERNELZOO_X86
#include <immintrin.h>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define KERNELZOO_ISA avx512
#define KERNELZOO_F16C
#include "kernels_impl.h"

const kernelzoo::Kernels* kernelzoo::kernels_avx512() { return avx512::TABLES; }
#endif
