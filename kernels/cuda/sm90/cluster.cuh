#pragma once

#include <cuda.h>

#include <cstdint>

/// Hopper's instructions for the CTAs of a cluster, beside those of ptx.cuh: each function is one
/// instruction or a pair that belongs together (PTX ISA 8.x). Device only.
namespace sw::cuda::ptx {

/// Barrier `id` (1..15) of `threads` threads: arrives, and waits for the others.
__device__ inline void named_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/// Arrives only.
__device__ inline void named_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
/// Number of this CTA in its cluster.
__device__ inline std::uint32_t cluster_rank() {
  std::uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// Barrier of all threads of the cluster; what was written before it can be seen after it.
__device__ inline void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
/// The address of the same place in the shared memory of another CTA.
__device__ inline std::uint32_t address_in(std::uint32_t address, std::uint32_t rank) {
  std::uint32_t mapped;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}
/// Arrives at a barrier of any CTA of the cluster. Orders nothing but what this CTA's threads did:
/// the wider scope costs a fence of all memory, and what waits for such a barrier here is the copy
/// engine's next write.
__device__ inline void barrier_arrive_in_cluster(std::uint32_t mapped_barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(mapped_barrier) : "memory");
}
/// Makes ordinary writes to shared memory visible to warpgroup products and the copy engine.
__device__ inline void fence_shared_writes() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
/// Writes 8 bytes to any CTA of the cluster, whose barrier counts them.
__device__ inline void store_in_cluster(std::uint32_t mapped, float x, float y,
                                        std::uint32_t mapped_barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(
          mapped),
      "f"(x), "f"(y), "r"(mapped_barrier)
      : "memory");
}
/// As copy_box(), to the same place in every CTA of `mask`, whose own barriers count the bytes.
__device__ inline void copy_box_to_many(std::uint32_t destination, const CUtensorMap& map,
                                        std::uint32_t barrier, int x, int y, int z,
                                        std::uint16_t mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%3, %4, %5}], [%2], %6;" ::"r"(destination),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z), "h"(mask)
      : "memory");
}
/// Copies `bytes` (a multiple of 16) from global to shared memory; the barrier counts them.
__device__ inline void copy_bytes(std::uint32_t destination, const void* source,
                                  std::uint32_t bytes, std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

}  // namespace sw::cuda::ptx
