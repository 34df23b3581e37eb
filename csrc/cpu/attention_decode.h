// ---- decoding: few queries against many keys, once read

// Lane i: the sum of x[i]'s lanes.
template <class T>
Vec<T> lane_sums(const Vec<T>* x) {
#ifdef KERNELZOO_ISA_avx512
  if constexpr (sizeof(T) == 4) {
    __m512 a[8], b[4], c[2];
    for (int i = 0; i < 8; ++i)
      a[i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]) + _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    for (int i = 0; i < 4; ++i) {
      const __m512d even = _mm512_castps_pd(a[2 * i]), odd = _mm512_castps_pd(a[2 * i + 1]);
      b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd)) + _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
    }
    for (int i = 0; i < 2; ++i)
      c[i] = _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0x88) + _mm512_shuffle_f32x4(b[2 * i], b[2 * i + 1], 0xdd);
    return _mm512_shuffle_f32x4(c[0], c[1], 0x88) + _mm512_shuffle_f32x4(c[0], c[1], 0xdd);
  }
#endif
  Vec<T> sums;
  for (int64_t i = 0; i < WIDTH<T>; ++i) {
    T sum = x[i][0];
    for (int64_t l = 1; l < WIDTH<T>; ++l) sum += x[i][l];
    sums[i] = sum;
  }
  return sums;
}

// s[j] = q k_j for n keys, up to a whole number of vectors; q and the keys' rows hold whole vectors.
template <class P, class T = typename P::T>
void dot_rows(const T* q, const T* k, int64_t row, int64_t n, int64_t units, T* s) {
  constexpr int64_t W = WIDTH<T>;
  for (int64_t j = 0; j < n; j += W) {
    Vec<T> acc[W] = {};
    const T* rows[W];
    for (int64_t l = 0; l < W; ++l) rows[l] = k + (j + l < n ? j + l : n - 1) * row;
    for (int64_t u = 0; u < units; u += W) {
      const Vec<T> x = loadv(q + u);
      for (int64_t l = 0; l < W; ++l) {
        __builtin_prefetch(rows[l] + 2 * W * row + u);
        acc[l] = P::dots(x, loadv(rows[l] + u), acc[l]);
      }
    }
    storev(s + j, lane_sums<T>(acc));
  }
}

// One query's weights of the keys j0 to j0 + n, keys along the lanes: p in s, or rounded in p. Returns the factor for
// what was summed before.
template <class P, class T = typename P::T>
T weigh(const Attention& a, int64_t position, T slope, int64_t j0, int64_t n, T* s, T* p, T& running_max,
        Vec<T>& running_sum) {
  constexpr int64_t W = WIDTH<T>;
  using Int = typename Lanes<T>::Int;
  Vec<T> top = splat(T(-INFINITY));
  IVec<T> lane;
  for (int64_t l = 0; l < W; ++l) lane[l] = static_cast<Int>(l);
  const Int low = static_cast<Int>(position - a.left - j0 > 0 ? position - a.left - j0 : 0);
  const Int high = static_cast<Int>(position - j0 < n - 1 ? position - j0 : n - 1);
  for (int64_t j = 0; j < n; j += W) {
    const IVec<T> key = lane + static_cast<Int>(j);
    Vec<T> x = loadv(s + j) * T(a.scale);
    if (a.softcap != 0) {
      for (int64_t l = 0; l < W; ++l) x[l] = T(a.softcap) * math::tanh(x[l] / T(a.softcap));
    }
    if (a.slopes) x -= slope * __builtin_convertvector(static_cast<Int>(position - j0) - key, Vec<T>);
    x = (key >= low) & (key <= high) ? x : splat(T(-INFINITY));
    storev(s + j, x);
    top = larger<T>(top, x);
  }
  T max = running_max;
  for (int64_t l = 0; l < W; ++l) max = top[l] > max ? top[l] : max;
  const T shift = max == T(-INFINITY) ? T(0) : max;
  const T factor = max == running_max ? T(1) : exp_scaled<P>(splat((running_max - shift) * LOG<T>))[0];
  running_max = max;
  running_sum *= factor;
  for (int64_t j = 0; j < n; j += W) {
    const Vec<T> x = exp_scaled<P>((loadv(s + j) - shift) * LOG<T>);
    running_sum += x;
    if constexpr (P::DOT) {
#ifdef KERNELZOO_ISA_avx512
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + j / 2), _mm512_castsi512_si256(rounded(x, x)));
#endif
    } else {
      storev(p + j, x);
    }
  }
  return factor;
}
