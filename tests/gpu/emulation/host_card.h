// card.cuh for a processor: a kernel's threads as fibers that run in turn until they have to meet.
//
// Whatever threads do together - barriers of block and cluster, shuffles, matrix instructions, reads
// of another block's shared memory - happens as PTX describes it, with nothing left to chance.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__
#define __align__(n) alignas(n)

struct uint4 {
  uint32_t x, y, z, w;
};
struct Index {
  int x;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
inline float __bfloat162float(__nv_bfloat16 v) {
  const uint32_t wide = static_cast<uint32_t>(v.bits) << 16;
  float f;
  memcpy(&f, &wide, 4);
  return f;
}
inline __nv_bfloat16 __float2bfloat16(float f) {
  uint32_t wide;
  memcpy(&wide, &f, 4);
  return {static_cast<uint16_t>((wide + 0x7fff + ((wide >> 16) & 1)) >> 16)};
}
inline float rsqrtf(float v) { return 1.0f / sqrtf(v); }
using std::min;

namespace host {

constexpr int kThreads = 256, kStack = 64 * 1024;

enum State { kRuns, kInWarp, kInBlock, kArrived, kDone };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  State state = kRuns;
  int block, thread;
  uint32_t given[10];    // to the warp
};

struct Cluster {
  int size, first_block;
  std::vector<std::vector<unsigned char>> shared;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  Fiber* now = nullptr;
};

struct Copy {
  Fiber* by;
  void* there;
  const void* from;
};

static std::vector<Copy> copies;
static Cluster* cluster = nullptr;
static std::function<void()>* body = nullptr;
static int blocks = 0;

inline void pause(State state) {
  cluster->now->state = state;
  swapcontext(&cluster->now->context, &cluster->scheduler);
}

inline Fiber* lane_of(int lane) {
  Fiber* now = cluster->now;
  return now - now->thread % 32 + lane;
}

inline void entry() {
  (*body)();
  cluster->now->state = kDone;
  setcontext(&cluster->scheduler);
}

// Whether all fibers of a group are in this state; those that are done never come.
inline bool all_in(std::vector<Fiber>& fibers, int from, int count, State state) {
  for (int i = from; i < from + count; i++)
    if (fibers[i].state != state) return false;
  return true;
}

// Run a warp for as long as it waits for no other: what it may not count on shows.
inline bool run_warp(std::vector<Fiber>& fibers, int from) {
  bool any = false;
  for (bool more = true; more;) {
    more = false;
    for (int i = from; i < from + 32; i++) {
      if (fibers[i].state != kRuns) continue;
      any = true;
      cluster->now = &fibers[i];
      swapcontext(&cluster->scheduler, &fibers[i].context);
    }
    if (all_in(fibers, from, 32, kInWarp)) {
      for (int i = from; i < from + 32; i++) fibers[i].state = kRuns;
      more = true;
    }
  }
  return any;
}

// False if the threads wait for each other in vain.
inline bool run_cluster() {
  auto& fibers = cluster->fibers;
  const int count = static_cast<int>(fibers.size());
  for (;;) {
    bool any = false;
    for (int at = 0; at < count; at += 32) any = run_warp(fibers, at) || any;
    if (all_in(fibers, 0, count, kDone)) return true;
    const auto release = [&](int from, int many, State state) {
      if (!all_in(fibers, from, many, state)) return;
      for (int i = from; i < from + many; i++) fibers[i].state = kRuns;
      any = true;
    };
    for (int at = 0; at < count; at += kThreads) release(at, kThreads, kInBlock);
    release(0, count, kArrived);
    if (!any) return false;
  }
}

// Run a kernel of `grid` blocks; what lies in shared memory at first is noise.
inline bool run(int grid, int split, int64_t shared_bytes, std::function<void()> kernel) {
  blocks = grid;
  body = &kernel;
  copies.clear();
  for (int first = 0; first < grid; first += split) {
    Cluster one;
    one.size = split;
    one.first_block = first;
    one.fibers.resize(static_cast<size_t>(split) * kThreads);
    one.shared.assign(split, std::vector<unsigned char>(shared_bytes + 16, 0xff));
    cluster = &one;
    for (size_t i = 0; i < one.fibers.size(); i++) {
      Fiber& fiber = one.fibers[i];
      fiber.block = static_cast<int>(i) / kThreads;
      fiber.thread = static_cast<int>(i) % kThreads;
      fiber.stack.reset(new char[kStack]);
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStack;
      fiber.context.uc_link = &one.scheduler;
      makecontext(&fiber.context, entry, 0);
    }
    if (!run_cluster()) return false;
  }
  return true;
}

inline unsigned char* shared() {
  auto& memory = cluster->shared[cluster->now->block];
  return reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(memory.data()) + 15) / 16 * 16);
}

}  // namespace host

#define threadIdx (Index{host::cluster->now->thread})
#define blockIdx (Index{host::cluster->first_block + host::cluster->now->block})
#define gridDim (Index{host::blocks})
#define SHARED_MEMORY(name) unsigned char* name = host::shared()

inline void __syncthreads() { host::pause(host::kInBlock); }

namespace card {

inline uint4 read_constant(const void* from) {
  uint4 v;
  memcpy(&v, from, 16);
  return v;
}
inline void copy_to_shared(void* there, const void* from) {
  host::copies.push_back({host::cluster->now, there, from});
}
inline void wait_for_copies() {  // what is copied is not there before
  const auto own = std::partition(host::copies.begin(), host::copies.end(), [](const auto& copy) {
    return copy.by != host::cluster->now;
  });
  for (auto copy = own; copy != host::copies.end(); copy++) memcpy(copy->there, copy->from, 16);
  host::copies.erase(own, host::copies.end());
}
inline void prefetch(const void*) {}
template <typename T>
inline T read_fresh(const T* from) {
  return *from;
}
inline void prefetch_many(const void*, uint32_t) {}
inline void let_next_begin() {}
inline void wait_for_previous() {}
inline int cluster_size() { return host::cluster->size; }
inline int cluster_rank() { return host::cluster->now->block; }
inline void cluster_barrier() { host::pause(host::kArrived); }

inline float read_shared(const float* here, int rank) {
  const auto& own = host::cluster->shared[host::cluster->now->block];
  auto& theirs = host::cluster->shared[rank];
  const auto align = [](const std::vector<unsigned char>& v) {
    return (reinterpret_cast<uintptr_t>(v.data()) + 15) / 16 * 16;
  };
  const uintptr_t at = align(theirs) + (reinterpret_cast<uintptr_t>(here) - align(own));
  float v;
  memcpy(&v, reinterpret_cast<const void*>(at), 4);
  return v;
}

inline float bfloat(uint32_t pair, int which) {
  return __bfloat162float({static_cast<uint16_t>(which ? pair >> 16 : pair)});
}

// The layout of fragments is PTX's for mma.m16n8k16 with elements of 16 bits.
inline void multiply(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                     uint32_t b0, uint32_t b1) {
  host::Fiber* now = host::cluster->now;
  const uint32_t given[] = {a0, a1, a2, a3, b0, b1};
  memcpy(now->given, given, sizeof given);
  host::pause(host::kInWarp);
  const int lane = now->thread % 32;
  for (int i = 0; i < 4; i++) {
    const int row = lane / 4 + (i >= 2 ? 8 : 0), column = lane % 4 * 2 + i % 2;
    float sum = sums[i];
    for (int k = 0; k < 16; k++) {
      const host::Fiber* left = host::lane_of(row % 8 * 4 + k % 8 / 2);
      const host::Fiber* right = host::lane_of(column * 4 + k % 8 / 2);
      const float a = bfloat(left->given[row / 8 + (k >= 8 ? 2 : 0)], k % 2);
      sum += a * bfloat(right->given[4 + (k >= 8 ? 1 : 0)], k % 2);
    }
    sums[i] = sum;
  }
  host::pause(host::kInWarp);  // nobody gives anew before all have read
}

inline float sum_lanes(float v) {
  host::Fiber* now = host::cluster->now;
  memcpy(now->given, &v, 4);
  host::pause(host::kInWarp);
  float sum = 0;
  for (int lane = 0; lane < 32; lane++) {
    float one;
    memcpy(&one, host::lane_of(lane)->given, 4);
    sum += one;
  }
  host::pause(host::kInWarp);
  return sum;
}

inline uint8_t to_fp8(float v) {  // e4m3, to the nearest, at most 448
  const uint8_t sign = signbit(v) ? 0x80 : 0;
  const float size = min(fabsf(v), 448.0f);
  int best = 0;
  float least = INFINITY;
  for (int code = 0; code < 0x7f; code++) {
    const int exponent = code >> 3, mantissa = code & 7;
    const float value = exponent ? ldexpf(8 + mantissa, exponent - 10) : ldexpf(mantissa, -9);
    const float far = fabsf(value - size);
    if (far < least || (far == least && code % 2 == 0)) {
      least = far;
      best = code;
    }
  }
  return sign | best;
}

}  // namespace card
