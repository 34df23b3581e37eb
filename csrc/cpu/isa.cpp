#include "isa.h"

namespace kernelzoo {
namespace {

struct Isa {
  const char* name;
  bool here;
};

// In the order of isa.h's tables.
const Isa* isas() {
  static const Isa list[] = {
      {"plain", true},
#if KERNELZOO_X86
      // every processor with avx2 and fma has f16c
      {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {"avx512", __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
  };
  return list;
}

constexpr int SETS = KERNELZOO_X86 ? 3 : 1;

int best() {
  int level = 0;
  for (int i = 0; i < SETS; ++i)
    if (isas()[i].here) level = i;
  return level;
}

int& chosen() {
  static int level = best();
  return level;
}

}  // namespace

int isa_level() { return chosen(); }

const char* isa() { return isas()[chosen()].name; }

bool set_isa(const char* name) {
  for (int i = 0; i < SETS; ++i)
    if (isas()[i].here && !std::strcmp(isas()[i].name, name)) {
      chosen() = i;
      return true;
    }
  return false;
}

}  // namespace kernelzoo
