// Results that are streamed past the caches. After begin.h.

// Whether `bytes` of a row go past the caches, by whole lines: nothing then reads it from memory before it is written.
inline bool streams(bool wanted, const void* row, int64_t bytes) {
#if KERNELZOO_X86
  return wanted && ((reinterpret_cast<uintptr_t>(row) | bytes) & 63) == 0;
#else
  return false;
#endif
}

inline void stream(void* to, const void* from, int64_t bytes) {
#if KERNELZOO_X86
  for (int64_t i = 0; i < bytes; i += 64) {
    const char* f = static_cast<const char*>(from) + i;
    char* t = static_cast<char*>(to) + i;
#ifdef KERNELZOO_ISA_avx512
    _mm512_stream_si512(reinterpret_cast<__m512i*>(t), _mm512_loadu_si512(f));
#else
    for (int k = 0; k < 64; k += 16)
      _mm_stream_si128(reinterpret_cast<__m128i*>(t + k), _mm_loadu_si128(reinterpret_cast<const __m128i*>(f + k)));
#endif
  }
#endif
}

// Streamed stores are in no order with others until here.
inline void drain() {
#if KERNELZOO_X86
  _mm_sfence();
#endif
}
