// What the kernels here ask of a card, one function an instruction. Tests put a processor's own
// version of this file in its place.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]

namespace card {

// Sixteen bytes that no kernel writes, read once: they pass by the first cache.
__device__ __forceinline__ uint4 read_constant(const void* from) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(from));
  return v;
}

// Sixteen bytes on their way to shared memory, as the kernel before has left them.
__device__ __forceinline__ void copy_to_shared(void* there, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(there))),
               "l"(from)
               : "memory");
}

// Wait for the copies that this thread has begun.
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// What the kernel before may have written while this one had begun.
template <typename T>
__device__ __forceinline__ T read_fresh(const T* from) {
  return __ldcg(from);
}

// Ask for a line of 128 bytes to be brought to the second cache.
__device__ __forceinline__ void prefetch(const void* from) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
}

// Ask for many bytes, a multiple of 16, to be brought to the second cache.
__device__ __forceinline__ void prefetch_many(const void* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

// sums += a * b: sixteen rows, sixteen deep, eight columns, spread over a warp as PTX has it.
__device__ __forceinline__ void multiply(float (&sums)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, uint32_t b0, uint32_t b1) {
  asm(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Let the next kernel of the stream begin, as far as it does not wait for this one.
__device__ __forceinline__ void let_next_begin() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

// Wait until the kernel before has ended and what it wrote is there.
__device__ __forceinline__ void wait_for_previous() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

__device__ __forceinline__ int cluster_size() {
  uint32_t n;
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(n));
  return static_cast<int>(n);
}

__device__ __forceinline__ int cluster_rank() {
  uint32_t n;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(n));
  return static_cast<int>(n);
}

// All threads of the cluster's blocks meet; what they wrote is there for the others.
__device__ __forceinline__ void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// A float that lies in the shared memory of another block of the cluster where `here` lies in ours.
__device__ __forceinline__ float read_shared(const float* here, int rank) {
  uint32_t there;
  float v;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(there)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(here))), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(there));
  return v;
}

// Sum over the lanes of a warp.
__device__ __forceinline__ float sum_lanes(float v) {
#pragma unroll
  for (int far = 16; far; far /= 2) v += __shfl_xor_sync(0xffffffffu, v, far);
  return v;
}

__device__ __forceinline__ uint8_t to_fp8(float v) {
  return __nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3);
}

}  // namespace card
