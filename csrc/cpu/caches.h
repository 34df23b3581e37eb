// What results are worth keeping in the caches.
#pragma once

#include <cstdint>

namespace kernelzoo {

// Bytes of a call, read and written, that no last-level cache of a few cores holds: a result that would be gone before
// anyone reads it is streamed past the caches.
constexpr int64_t STREAMED = 32 << 20;

}  // namespace kernelzoo
