// Convolutions of one channel each.
//
// Where a channel's elements are neighbours (`first`), a unit's x is copied to a tile, padded and sorted by the phases of
// the stride, so that one loop over all of the unit's outputs, and one load a tap, do for every size, stride and
// dilation. Where the channels are neighbours, x serves as it lies: an output's taps are a list of rows of channels.
#include "../conv.h"

#include "begin.h"

#include "../tile.h"

#include "vectors.h"

// Of functions whose sums must stay in registers whatever the compiler thinks of their size.
#if defined(__GNUC__)
#define KERNELZOO_INLINE inline __attribute__((always_inline))
#else
#define KERNELZOO_INLINE inline
#endif

template <class T>
inline void zero(T* t, int64_t n) {
  std::memset(t, 0, n * sizeof(T));
}

// The same as load and store, without a call for the few elements that a line often has.
template <class From, class To>
inline void copy(const From* s, To* t, int64_t n) {
#ifdef KERNELZOO_ISA_avx512
  if constexpr (sizeof(From) == 4 && sizeof(To) == 4) {
    if (n <= 64) {
      int64_t i = 0;
      for (; i + 16 <= n; i += 16) _mm512_storeu_ps(t + i, _mm512_loadu_ps(s + i));
      const __mmask16 rest = static_cast<__mmask16>((1u << (n - i)) - 1);
      _mm512_mask_storeu_ps(t + i, rest, _mm512_maskz_loadu_ps(rest, s + i));
      return;
    }
  }
#endif
  if constexpr (sizeof(From) < sizeof(To)) load(s, t, n);
  else store(s, t, n);
}

inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

#include "../conv_first.h"

#include "../conv_last.h"

template <class S, class T>
void fwd(const Depthwise& a, int64_t unit, void* z, void* scratch) {
  const DepthwisePart u(a, unit);
  if (a.first) fwd_first(a, u, static_cast<S*>(z), static_cast<T*>(scratch));
  else fwd_last<S, T>(a, u, static_cast<S*>(z), static_cast<char*>(scratch));
}

template <class S, class T>
void bwd_weight(const Depthwise& a, int64_t unit, const void* dz, void* sums, void* scratch) {
  const DepthwisePart u(a, unit);
  if (a.first) bwd_weight_first(a, u, static_cast<const S*>(dz), static_cast<T*>(sums), static_cast<T*>(scratch));
  else bwd_weight_last(a, u, static_cast<const S*>(dz), static_cast<T*>(sums), static_cast<char*>(scratch));
}

template <class S, class T>
constexpr ConvKernels table() {
  return {fwd<S, T>, bwd_weight<S, T>};
}

const ConvKernels TABLES[DTYPES] = {table<double, double>(), table<float, float>(), table<Bf16, float>(),
                                    table<Fp16, float>()};

KERNELZOO_EXPORT(ConvKernels, conv, TABLES)
