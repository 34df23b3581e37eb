// Vectors of the arithmetic's type, loaded from and stored to the types in memory. After tile.h.

template <class T>
using Choice = typename Lanes<T>::Int;

template <class T>
inline Vec<T> widened(const T* p) {
  return loadv(p);
}

inline Vec<float> widened(const Bf16* p) {
  typedef uint16_t Half __attribute__((vector_size(VECTOR_BYTES / 2)));
  typedef uint32_t Word __attribute__((vector_size(VECTOR_BYTES)));
  Half half;
  std::memcpy(&half, p, sizeof half);
  return (Vec<float>)(__builtin_convertvector(half, Word) << 16);
}

inline Vec<float> widened(const Fp16* p) {
  float wide[WIDTH<float>];
  load(p, wide, WIDTH<float>);
  return loadv(wide);
}

template <class T>
inline void narrowed(Vec<T> v, T* p) {
  storev(p, v);
}

template <class S>
inline void narrowed(Vec<float> v, S* p) {
  float wide[WIDTH<float>];
  storev(wide, v);
  store(wide, p, WIDTH<float>);
}

inline double widened_one(const double* p) { return *p; }
inline float widened_one(const float* p) { return *p; }
template <class S>
inline float widened_one(const S* p) {
  float x;
  load(p, &x, 1);
  return x;
}

template <class S, class T>
inline void narrowed_one(T x, S* p) {
  store(&x, p, 1);
}
