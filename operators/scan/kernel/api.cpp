// The C interface that `native.py` calls.
#include "pool.h"
#include "scan.h"

#define MNO_EXPORT extern "C" __attribute__((visibility("default")))

namespace mno {
namespace {

// The channel blocks of each sample, cut into parts.
struct Split {
  int64_t blocks, parts;
  Split(const Scan& s, const Kernel& kernel, int64_t items, int64_t smallest) {
    blocks = (s.width + kernel.lanes - 1) / kernel.lanes;
    const int64_t wanted = s.batch > 0 ? (items + s.batch - 1) / s.batch : 1, most = (blocks + smallest - 1) / smallest;
    parts = wanted < most ? wanted : most;
    if (parts < 1) parts = 1;
  }
  int64_t first(int64_t part) const { return blocks * part / parts; }
  int64_t size(int64_t part) const { return first(part + 1) - first(part); }
  int64_t largest() const { return (blocks + parts - 1) / parts; }
};

// Forward, no sum runs over channels, so the cut may follow the number of threads.
Split forward_split(const Scan& s, const Kernel& kernel, int64_t threads) {
  return Split(s, kernel, threads > 1 ? 2 * threads : 1, 1);
}

// Backward, dB and dC are sums over the channels of a part and then over the parts. The cut depends on the sizes
// alone, so that every sum has one order, whatever the number of threads. A part has at least 64 channels: each
// writes a dB and a dC of its own.
Split backward_split(const Scan& s, const Kernel& kernel) { return Split(s, kernel, 8, 64 / kernel.lanes); }

const Kernel* const kernels[] = {
#if defined(__x86_64__)
    &avx512_kernel,
    &avx2_kernel,
#endif
    &generic_kernel,
};

bool supported(const Kernel& kernel) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (&kernel == &avx512_kernel)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (&kernel == &avx2_kernel) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
  return &kernel == &generic_kernel;
}

struct ForwardCall {
  const Forward& f;
  const Kernel& kernel;
  Split split;
};

struct BackwardCall {
  const Backward& b;
  const Kernel& kernel;
  Split split;
};

void forward_item(const void* context, float* scratch, int64_t item) {
  const ForwardCall& c = *static_cast<const ForwardCall*>(context);
  const int64_t part = item % c.split.parts;
  c.kernel.forward(c.f, item / c.split.parts, c.split.first(part), c.split.size(part), scratch);
}

void backward_item(const void* context, float* scratch, int64_t item) {
  const BackwardCall& c = *static_cast<const BackwardCall*>(context);
  const int64_t part = item % c.split.parts;
  c.kernel.backward(c.b, item / c.split.parts, c.split.first(part), c.split.size(part), part, scratch);
}

}  // namespace
}  // namespace mno

using namespace mno;

// the names of the instruction sets, best first; empty where this processor lacks it, null beyond the last
MNO_EXPORT const char* mno_scan_isa(int64_t isa) {
  if (isa < 0 || isa >= static_cast<int64_t>(sizeof kernels / sizeof *kernels)) return nullptr;
  return supported(*kernels[isa]) ? kernels[isa]->name : "";
}

// how many times dB and dC are written for a batch of this size and width
MNO_EXPORT int64_t mno_scan_backward_parts(int64_t isa, int64_t batch, int64_t width) {
  Scan s{};
  s.batch = batch;
  s.width = width;
  return backward_split(s, *kernels[isa]).parts;
}

MNO_EXPORT int64_t mno_scan_forward(int64_t isa, const Forward* f, int64_t threads) {
  const ForwardCall call{*f, *kernels[isa], forward_split(f->scan, *kernels[isa], threads)};
  const size_t scratch = call.kernel.forward_scratch(f->scan, call.split.largest());
  return run(forward_item, &call, f->scan.batch * call.split.parts, scratch, threads);
}

MNO_EXPORT int64_t mno_scan_backward(int64_t isa, const Backward* b, int64_t threads) {
  const BackwardCall call{*b, *kernels[isa], backward_split(b->scan, *kernels[isa])};
  const size_t scratch = call.kernel.backward_scratch(b->scan, call.split.largest());
  return run(backward_item, &call, b->scan.batch * call.split.parts, scratch, threads);
}
