// What the Python side hands to the kernels. Every field is eight bytes wide, so that `native.py` can fill the
// structs from a flat list of integers.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__clang__)
#define MNO_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MNO_UNROLL _Pragma("GCC unroll 16")
#endif

namespace mno {

// An array with strides, counted in floats. `direction` is 0 for what all directions share.
struct View {
  float* data;
  int64_t batch, direction, token, inner;
};

// The order in which a direction visits the tokens: token = start + segment * segment_stride + step * token_stride.
struct Path {
  int64_t segments, length;
  int64_t start, segment_stride, token_stride;
  int64_t resets;      // 1: each segment is a sequence of its own; 0: the state is carried over
  int64_t checkpoint;  // row of its first checkpoint
  int64_t last;        // row of its last state, -1 for none
};

// Sizes and inputs: x, z [batch token channel]; dt [batch direction token channel]; A [direction channel state];
// B, C [batch direction token state]; D, bias [direction channel]. D, z, bias may be null.
struct Scan {
  int64_t batch, tokens, width, states, directions, chunk, checkpoints, lasts, softplus;
  const Path* paths;
  View x, dt, B, C, z;
  const float *A, *D, *bias;
  float* checkpoint;  // [batch checkpoint state channel], null: not wanted
};

struct Forward {
  Scan scan;
  float* y;     // [batch token channel]
  float* last;  // [batch last channel state]
};

// Gradients. Sums over the batch are kept apart per sample, and those over channels per split, and are reduced
// in a fixed order afterwards, so that the result does not depend on who computed what.
struct Backward {
  Scan scan;
  View dy;
  float *dx, *ddt, *dz;  // contiguous, like x, dt, z
  float *dB, *dC;        // [split batch direction token state]
  double* dA;            // [batch direction channel state]
  double *dD, *dbias;    // [batch direction channel]
};

// One instruction set: the number of channels that it treats at once, and the work on a range of channel blocks
// of one sample. `scratch` has the number of floats that `*_scratch` asks for, aligned to 64 bytes.
struct Kernel {
  const char* name;
  int64_t lanes;
  size_t (*forward_scratch)(const Scan&, int64_t blocks);
  size_t (*backward_scratch)(const Scan&, int64_t blocks);
  void (*forward)(const Forward&, int64_t batch, int64_t first, int64_t blocks, float* scratch);
  void (*backward)(const Backward&, int64_t batch, int64_t first, int64_t blocks, int64_t split, float* scratch);
};

extern const Kernel generic_kernel;
#if defined(__x86_64__)
extern const Kernel avx2_kernel, avx512_kernel;
#endif

}  // namespace mno
