// The head of a file of serial kernels, after every other header. setup.py compiles each such file once per
// instruction set, with KERNELZOO_ISA naming the set; what it defines lies in a namespace of that name, and shares
// no inline function with the other builds: nothing here may use a template or inline function of the standard
// library.
#if KERNELZOO_X86
#include <immintrin.h>
#ifdef KERNELZOO_ISA_avx512
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#define KERNELZOO_F16C
#elif defined(KERNELZOO_ISA_avx2)
#pragma GCC target("avx2,fma,f16c")
#define KERNELZOO_F16C
#endif
#endif

// Ends the file: the tables, one a dtype, that isa.h's KERNELZOO_TABLES(type, name) declares.
#define KERNELZOO_EXPORT_AS(type, name, isa, tables) \
  }                                                  \
  }                                                  \
  const type* name##_##isa() { return isa::tables; } \
  }
#define KERNELZOO_EXPORT_IN(type, name, isa, tables) KERNELZOO_EXPORT_AS(type, name, isa, tables)
#define KERNELZOO_EXPORT(type, name, tables) KERNELZOO_EXPORT_IN(type, name, KERNELZOO_ISA, tables)

namespace kernelzoo {
namespace KERNELZOO_ISA {
namespace {

#include "../math.h"

#include "../convert.h"

#include "../random.h"

// Of a register. Longer vectors than that GCC takes apart: what it compares or chooses, element by element.
#if defined(KERNELZOO_ISA_avx512)
constexpr int64_t VECTOR_BYTES = 64;
#elif defined(KERNELZOO_ISA_avx2)
constexpr int64_t VECTOR_BYTES = 32;
#else
constexpr int64_t VECTOR_BYTES = 16;
#endif

// Whole vectors only: a tail goes through a padded block, so that an element's result does not depend on where
// in a call it stands, nor therefore on how the work was divided. For double the functions are libm's anyway.
template <class T>
constexpr int64_t LANES = sizeof(T) == 4 ? 16 : 8;

template <class T>
constexpr int64_t whole(int64_t n) {
  return n & ~(LANES<T> - 1);
}

template <class T>
constexpr int64_t padded(int64_t n) {
  return whole<T>(n + LANES<T> - 1);
}

// T's blocks of memory: the memory itself where it holds T, else a converted copy.
template <class S, class T>
inline const T* loaded(const S* s, T* buffer, int64_t n) {
  if constexpr (sizeof(S) == sizeof(T)) {
    return s;
  } else {
    load(s, buffer, n);
    return buffer;
  }
}
