// Rotary embedding.
#include "../rotary.h"
#include "begin.h"

constexpr int64_t PAIRS = 256;  // pairs converted at once: two float blocks of it take 2 KB

template <class T>
inline void halves(const T* a, const T* b, const T* cos, const T* sin, T sign, T* ya, T* yb, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T c = cos[i], s = sign * sin[i], p = a[i], q = b[i];
    ya[i] = p * c - q * s;
    yb[i] = q * c + p * s;
  }
}

template <class T>
inline void neighbours(const T* x, const T* cos, const T* sin, T sign, T* y, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const T c = cos[i], s = sign * sin[i], p = x[2 * i], q = x[2 * i + 1];
    y[2 * i] = p * c - q * s;
    y[2 * i + 1] = q * c + p * s;
  }
}

template <class S, class T>
void turn_row(const Turn& turn, const S* x, const T* cos, const T* sin, S* y) {
  const T sign = turn.inverse ? T(-1) : T(1);
  const int64_t half = turn.half;
  if constexpr (sizeof(S) == sizeof(T)) {
    if (turn.interleaved)
      neighbours(x, cos, sin, sign, y, half);
    else
      halves(x, x + half, cos, sin, sign, y, y + half, half);
  } else {
    T block[2 * PAIRS];
    for (int64_t j = 0; j < half; j += PAIRS) {
      const int64_t n = half - j < PAIRS ? half - j : PAIRS;
      if (turn.interleaved) {
        load(x + 2 * j, block, 2 * n);
        neighbours(block, cos + j, sin + j, sign, block, n);
        store(block, y + 2 * j, 2 * n);
      } else {
        load(x + j, block, n);
        load(x + half + j, block + PAIRS, n);
        halves(block, block + PAIRS, cos + j, sin + j, sign, block, block + PAIRS, n);
        store(block, y + j, n);
        store(block + PAIRS, y + half + j, n);
      }
    }
  }
  std::memcpy(y + 2 * half, x + 2 * half, (turn.width - 2 * half) * sizeof(S));
}

template <class S, class T>
void rows(const Turn& turn, const void* x_, int64_t stride_x, void* y_, int64_t stride_y, const int64_t* ids,
          int64_t stride_ids, int64_t first, int64_t rows) {
  const S* x = static_cast<const S*>(x_);
  S* y = static_cast<S*>(y_);
  for (int64_t i = 0; i < rows; ++i) {
    int64_t position = ids ? ids[i * stride_ids] : first + i;
    position = position < 0 ? 0 : position < turn.positions ? position : turn.positions - 1;
    turn_row<S, T>(turn, x + i * stride_x, static_cast<const T*>(turn.cos) + position * turn.half,
                   static_cast<const T*>(turn.sin) + position * turn.half, y + i * stride_y);
  }
}

const RotaryKernels TABLES[DTYPES] = {{rows<double, double>}, {rows<float, float>}, {rows<Bf16, float>},
                                      {rows<Fp16, float>}};

KERNELZOO_EXPORT(RotaryKernels, rotary, TABLES)
