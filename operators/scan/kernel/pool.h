// Threads that wait, asleep, for work. No OpenMP: torch brings its own run time, and two in one process spin
// against each other.
#pragma once
#include <cstdint>

namespace mno {

// Runs work(context, participant-local scratch of `scratch` floats, item) for all items on at most `threads`
// threads, the caller among them. Several callers may come at the same time. False: out of memory.
using Work = void (*)(const void* context, float* scratch, int64_t item);
bool run(Work work, const void* context, int64_t items, uint64_t scratch, int64_t threads);

}  // namespace mno
