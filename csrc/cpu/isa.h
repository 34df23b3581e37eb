// Instruction sets: a file in isa/ is compiled once for each, and its kernels are reached through tables of function
// pointers, one a dtype, of the best set that the processor has.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

// `#pragma GCC target` is GCC's; other compilers and processors take the plain build.
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define KERNELZOO_X86 1
#else
#define KERNELZOO_X86 0
#endif

namespace kernelzoo {

enum Dtype { F64, F32, BF16, F16, DTYPES };
constexpr int64_t ITEM[DTYPES] = {8, 4, 2, 2};  // bytes

// The index of the set in use, in the order plain, avx2, avx512: the best there is, until set_isa asks for less.
int isa_level();
const char* isa();
bool set_isa(const char* name);

inline const void* at(const void* p, int dtype, int64_t i) {
  return p ? static_cast<const char*>(p) + i * ITEM[dtype] : nullptr;
}
inline void* at(void* p, int dtype, int64_t i) { return p ? static_cast<char*>(p) + i * ITEM[dtype] : nullptr; }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Elements below which a second thread costs more than it saves (a parallel region takes about 2 us).
constexpr int64_t SERIAL = 16384;

// Declares what isa/<name>.cpp ends with, KERNELZOO_EXPORT(type, name, tables), and name(dtype), which looks it up.
#if KERNELZOO_X86
#define KERNELZOO_TABLES(type, name)                                      \
  const type* name##_plain();                                             \
  const type* name##_avx2();                                              \
  const type* name##_avx512();                                            \
  inline const type& name(int dtype) {                                    \
    static const type* const tables[] = {name##_plain(), name##_avx2(), name##_avx512()}; \
    return tables[isa_level()][dtype];                                    \
  }
#else
#define KERNELZOO_TABLES(type, name) \
  const type* name##_plain();        \
  inline const type& name(int dtype) { return name##_plain()[dtype]; }
#endif

}  // namespace kernelzoo
