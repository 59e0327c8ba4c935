#include <algorithm>
#include <cmath>

#include "kernels/cuda/common/selection/scores.cuh"
#include "kernels/cuda/sm90/cluster.cuh"
#include "kernels/cuda/sm90/ptx.cuh"
#include "kernels/cuda/sm90/tensor_map.hpp"

namespace sw::cuda {
namespace {

// A cluster holds the scores of a strip of pooled queries with all keys, a head at a time: its CTAs
// tell one another the maxima and sums of their parts of the rows, so that each score is computed
// once and never leaves its register before it is a probability. The clusters share all pairs of a
// strip and a head evenly, in order; what a cluster sums up of a strip is a piece.
constexpr int kRows = kStripRows;
constexpr int kCols = 256;   ///< pooled keys of a CTA, half of them for each warpgroup
constexpr int kMaxCtas = 8;  ///< of a cluster: the most that every GPU allows
static_assert(kMaxCtas * kCols == kMaxStripBlocks);
constexpr int kQuerySlots = 4;     ///< of 64 dimensions of a strip's queries
constexpr int kThreads = 3 * 128;  ///< warpgroup 0 copies, the others multiply
constexpr int kWarpgroups = 2;
constexpr int kRowChunk = 128;  ///< bytes: 64 dimensions of a vector
constexpr int kQueryPlane = kRows * kRowChunk;
constexpr int kKeyPlane = kCols * kRowChunk;
// A CTA sends the part of item t + 1 when it has seen all parts of t - 1, whose senders had read
// those of t - 3.
constexpr int kPartBuffers = 4;
constexpr int kPartStride = kRows + 8;  ///< against bank conflicts
constexpr int kPartBytes = kRows * static_cast<int>(sizeof(float2));
// Named barriers. The warpgroups take turns at the tensor cores.
constexpr int kTurnBarrier = 1;   ///< and 2, of warpgroup 1
constexpr int kFirstBarrier = 3;  ///< and 4: warpgroup 0 has written its part of a row

template <int kChunks>
struct StripMemory {
  unsigned char keys[kChunks][2][kKeyPlane];
  unsigned char queries[kQuerySlots][2][kQueryPlane];
  float2 parts[kPartBuffers][kMaxCtas][kPartStride];  ///< maximum and sum of a row over 256 keys
  float2 first[2][kRows];                             ///< over the 128 of warpgroup 0
  float key_scale[2][kCols];
  std::uint64_t queries_full[kQuerySlots];
  std::uint64_t queries_empty[kQuerySlots];
  std::uint64_t keys_full[kChunks];
  std::uint64_t keys_empty[kChunks];
  std::uint64_t parts_full[kPartBuffers];
};

struct StripArgs {
  CUtensorMap q;
  CUtensorMap k;
  ScoreArgs scores;
  StripPieces pieces;
  int ctas;
};

/// The items of a cluster: pairs of a strip and a head.
struct StripWork {
  int rank;
  int v0;
  int cluster;
  int heads;
  int group;
  int begin;
  int items;

  __device__ explicit StripWork(const StripArgs& args)
      : rank(static_cast<int>(blockIdx.x)),
        v0(rank * kCols),
        cluster(static_cast<int>(blockIdx.y)),
        heads(args.scores.heads),
        group(args.scores.heads / args.scores.kv_heads),
        begin(args.pieces.begin(cluster)),
        items(args.pieces.begin(cluster + 1) - begin) {}
};

/// One item; goes on to the next without a division.
struct StripItem {
  int strip;
  int head;
  int kv_head;
  int in_group;

  __device__ explicit StripItem(const StripWork& work)
      : strip(work.begin / work.heads),
        head(work.begin % work.heads),
        kv_head(head / work.group),
        in_group(head % work.group) {}

  __device__ StripItem next(const StripWork& work) const {
    StripItem n = *this;
    ++n.head;
    ++n.in_group;
    if (n.in_group == work.group) n.in_group = 0, ++n.kv_head;
    if (n.head == work.heads) n.head = 0, n.kv_head = 0, ++n.strip;
    return n;
  }
};

template <int kChunks>
__device__ void copy_strips(const StripArgs& args, const StripWork& work, StripMemory<kChunks>& m) {
  const ScoreArgs& p = args.scores;
  const auto mask = static_cast<std::uint16_t>((1u << args.ctas) - 1);
  const int part = kRows / args.ctas;  // rows of the queries that this CTA gives to all
  const auto scale_bytes =
      static_cast<std::uint32_t>(max(0, min(kCols, p.padded_keys - work.v0))) * 4;
  int key_turn = -1;
  int kv_head = -1;  // whose keys are there
  StripItem item(work);
  for (int t = 0; t < work.items; ++t, item = item.next(work)) {
    const int k_row = item.kv_head * p.padded_keys + work.v0;
    const int q_row = item.head * p.padded_queries + item.strip * kRows;
    const bool new_keys = item.kv_head != kv_head;
    kv_head = item.kv_head;
    key_turn += new_keys;
    for (int c = 0; c < kChunks; ++c) {
      if (new_keys) {
        const std::uint32_t full = ptx::shared_address(&m.keys_full[c]);
        ptx::barrier_wait(ptx::shared_address(&m.keys_empty[c]), (key_turn & 1) ^ 1);
        ptx::barrier_arrive_expect(full, 2 * kKeyPlane + (c == 0 ? scale_bytes : 0));
        for (int plane = 0; plane < 2; ++plane) {
          ptx::copy_box(ptx::shared_address(m.keys[c][plane]), args.k, full, c * 64, k_row, plane);
        }
        if (c == 0 && scale_bytes > 0) {
          ptx::copy_bytes(ptx::shared_address(m.key_scale[key_turn & 1]), p.k_scale + k_row,
                          scale_bytes, full);
        }
      }
      const int turn = t * kChunks + c;
      const int slot = turn % kQuerySlots;
      const std::uint32_t full = ptx::shared_address(&m.queries_full[slot]);
      ptx::barrier_wait(ptx::shared_address(&m.queries_empty[slot]), (turn / kQuerySlots & 1) ^ 1);
      ptx::barrier_arrive_expect(full, 2 * kQueryPlane);
      for (int plane = 0; plane < 2; ++plane) {
        ptx::copy_box_to_many(
            ptx::shared_address(m.queries[slot][plane]) + work.rank * part * kRowChunk, args.q,
            full, c * 64, q_row + work.rank * part, plane, mask);
      }
    }
  }
}

/// One warpgroup's 64 x 128 scores of every item, and the sum of their probabilities over heads.
template <int kChunks>
__device__ void multiply_strips(const StripArgs& args, const StripWork& work,
                                StripMemory<kChunks>& m) {
  const ScoreArgs& p = args.scores;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128 - 1;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32;
  const int row = thread / 32 * 16 + lane / 4;  // and row + 8
  const int column = warpgroup * 128;           // of this CTA's
  const int pair = lane % 4 * 2;                // of each 8 columns
  int key_turn = -1;
  const bool one_group = p.kv_heads == 1;
  StripItem item(work);
  int strip = item.strip;  // of the item whose probabilities are added next
  int heads_left = work.heads - item.head;
  float row_scale[2];
  float sum[64] = {};

  const auto multiply = [&](float(&acc)[64], int t) {
    const bool new_keys = t == 0 || (item.in_group == 0 && !one_group);
    key_turn += new_keys;
    const float* scale = p.q_scale + item.head * p.padded_queries + item.strip * kRows + row;
    row_scale[0] = scale[0];
    row_scale[1] = scale[8];
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int turn = t * kChunks + c;
      const int slot = turn % kQuerySlots;
      if (new_keys) ptx::barrier_wait(ptx::shared_address(&m.keys_full[c]), key_turn & 1);
      ptx::barrier_wait(ptx::shared_address(&m.queries_full[slot]), turn / kQuerySlots & 1);
      if (c == 0) {
        ptx::named_sync(kTurnBarrier + warpgroup, kWarpgroups * 128);
        ptx::pin(acc);
      }
      ptx::mma_fence();
      const std::uint32_t q = ptx::shared_address(m.queries[slot][0]);
      const std::uint32_t k = ptx::shared_address(m.keys[c][0]) + column * kRowChunk;
#pragma unroll
      for (int step = 0; step < 4; ++step) {
        const std::uint64_t qh = ptx::matrix_descriptor(q + step * 32);
        const std::uint64_t kh = ptx::matrix_descriptor(k + step * 32);
        ptx::mma_shared<__half>(acc, qh, kh, c > 0 || step > 0);
        ptx::mma_shared<__half>(acc, qh, ptx::matrix_descriptor(k + kKeyPlane + step * 32), true);
        ptx::mma_shared<__half>(acc, ptx::matrix_descriptor(q + kQueryPlane + step * 32), kh, true);
      }
      ptx::mma_commit();
    }
    if (warpgroup == 0 || t + 1 < work.items) {
      ptx::named_arrive(kTurnBarrier + (warpgroup ^ 1), kWarpgroups * 128);
    }
    const bool last_of_keys = t + 1 < work.items && item.in_group + 1 == work.group && !one_group;
    const auto release = [&](int c) {
      const int slot = (t * kChunks + c) % kQuerySlots;
      if (thread < args.ctas) {
        ptx::barrier_arrive_in_cluster(
            ptx::address_in(ptx::shared_address(&m.queries_empty[slot]), thread));
      }
      if (thread == 0 && last_of_keys) ptx::barrier_arrive(ptx::shared_address(&m.keys_empty[c]));
    };
    if constexpr (kChunks == 2) {
      ptx::mma_wait<1>();
      release(0);
    }
    ptx::mma_wait<0>();
    release(kChunks - 1);
    ptx::pin(acc);
  };
  // acc becomes 2 to the power of the logits less `base`, their maximum over this part of the row.
  const auto exponentiate = [&](float(&acc)[64], float(&base)[2], int t) {
    const float* scale = m.key_scale[key_turn & 1] + column + pair;
#pragma unroll
    for (int n = 0; n < 16; ++n) {
      const float2 key_scale = *reinterpret_cast<const float2*>(scale + n * 8);
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[n * 4 + e] *= e % 2 == 0 ? key_scale.x : key_scale.y;
    }
    const int u0 = item.strip * kRows;
    const int v0 = work.v0 + column;
    if (u0 + kRows > p.queries || v0 + 128 > p.keys || (p.causal && v0 + 127 > u0)) {
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        if (!visible(p, u0 + row + i / 2 % 2 * 8, v0 + i / 4 * 8 + pair + i % 2)) {
          acc[i] = -INFINITY;
        }
      }
    }
    float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int i = 0; i < 64; ++i) largest[i / 2 % 2] = fmaxf(largest[i / 2 % 2], acc[i]);
    float subtract[2];
    float total[2] = {0.0f, 0.0f};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int offset = 1; offset < 4; offset *= 2) {
        largest[half] = fmaxf(largest[half], __shfl_xor_sync(0xffffffffu, largest[half], offset));
      }
      base[half] = largest[half] * row_scale[half];
      subtract[half] = largest[half] == -INFINITY ? 0.0f : base[half];
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) {
      acc[i] = exp2_fast(fmaf(acc[i], row_scale[i / 2 % 2], -subtract[i / 2 % 2]));
      total[i / 2 % 2] += acc[i];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      for (int offset = 1; offset < 4; offset *= 2) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], offset);
      }
    }
    // Warpgroup 1 adds the part of warpgroup 0, which is ahead, and tells all CTAs.
    if (warpgroup == 0) {
      if (lane % 4 == 0) {
        m.first[t & 1][row] = float2{base[0], total[0]};
        m.first[t & 1][row + 8] = float2{base[1], total[1]};
      }
      ptx::named_arrive(kFirstBarrier + (t & 1), kWarpgroups * 128);
      return;
    }
    ptx::named_sync(kFirstBarrier + (t & 1), kWarpgroups * 128);
    float2 part[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 other = m.first[t & 1][row + half * 8];
      part[half].x = fmaxf(other.x, base[half]);
      const float from = part[half].x == -INFINITY ? 0.0f : part[half].x;
      part[half].y =
          other.y * exp2_fast(other.x - from) + total[half] * exp2_fast(base[half] - from);
    }
    const int buffer = t % kPartBuffers;
    const std::uint32_t to = ptx::shared_address(&m.parts[buffer][work.rank][row]);
    const std::uint32_t barrier = ptx::shared_address(&m.parts_full[buffer]);
    for (int cta = lane % 4; cta < args.ctas; cta += 4) {
      const std::uint32_t mapped = ptx::address_in(to, cta);
      const std::uint32_t mapped_barrier = ptx::address_in(barrier, cta);
      ptx::store_in_cluster(mapped, part[0].x, part[0].y, mapped_barrier);
      ptx::store_in_cluster(mapped + 8 * sizeof(float2), part[1].x, part[1].y, mapped_barrier);
    }
  };
  // Adds the probabilities of item t, and writes the sum when it is the last of its piece.
  const auto add = [&](const float(&acc)[64], const float(&base)[2], int t) {
    const int buffer = t % kPartBuffers;
    const std::uint32_t barrier = ptx::shared_address(&m.parts_full[buffer]);
    ptx::barrier_wait(barrier, t / kPartBuffers & 1);
    if (warpgroup == 0 && thread == 0) {  // for the item that uses the buffer next
      ptx::barrier_arrive_expect(barrier, args.ctas * kPartBytes);
    }
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 parts[kMaxCtas / 4];
      float largest = -INFINITY;
#pragma unroll
      for (int i = 0; i < kMaxCtas / 4; ++i) {
        const int cta = i * 4 + lane % 4;
        parts[i] = cta < args.ctas ? m.parts[buffer][cta][row + half * 8] : float2{-INFINITY, 0.0f};
        largest = fmaxf(largest, parts[i].x);
      }
      for (int offset = 1; offset < 4; offset *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
      }
      if (largest == -INFINITY) largest = 0.0f;
      float total = 0.0f;
#pragma unroll
      for (int i = 0; i < kMaxCtas / 4; ++i) {
        total = fmaf(parts[i].y, exp2_fast(parts[i].x - largest), total);
      }
      for (int offset = 1; offset < 4; offset *= 2) {
        total += __shfl_xor_sync(0xffffffffu, total, offset);
      }
      factor[half] = total == 0.0f ? 0.0f : exp2_fast(base[half] - largest) / total;
    }
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] = fmaf(acc[i], factor[i / 2 % 2], sum[i]);

    if (--heads_left > 0 && t + 1 < work.items) return;
    const int piece = work.cluster - args.pieces.cluster_of(strip * work.heads);
    float* out = p.sums + piece * (p.blocks * p.sum_stride) + work.v0 + column + pair;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::int64_t u = strip * kRows + row + half * 8;
      if (u < p.blocks && work.v0 + column < p.sum_stride) {
#pragma unroll
        for (int n = 0; n < 16; ++n) {
          *reinterpret_cast<float2*>(out + u * p.sum_stride + n * 8) =
              float2{sum[n * 4 + half * 2], sum[n * 4 + half * 2 + 1]};
        }
      }
    }
    ++strip;
    heads_left = work.heads;
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] = 0.0f;
  };

  // The other CTAs have the time of the next item to tell what the probabilities of one need.
  float even[64];
  float odd[64];
  float even_base[2];
  float odd_base[2];
  const auto take_turn = [&](float(&acc)[64], float(&base)[2], int t) {
    if (t >= 2 && t - 2 < work.items) add(acc, base, t - 2);
    if (t < work.items) {
      multiply(acc, t);
      exponentiate(acc, base, t);
      item = item.next(work);
    }
  };
  if (warpgroup == 1) ptx::named_arrive(kTurnBarrier, kWarpgroups * 128);
  for (int t = 0; t < work.items + 2; t += 2) {
    take_turn(even, even_base, t);
    take_turn(odd, odd_base, t + 1);
  }
}

template <int kChunks>
__global__ void __launch_bounds__(kThreads, 1)
    score_strips(const __grid_constant__ StripArgs args) {
  extern __shared__ unsigned char unaligned[];
  auto& m = *reinterpret_cast<StripMemory<kChunks>*>(align_shared(unaligned));
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < kQuerySlots; ++slot) {
      ptx::barrier_init(ptx::shared_address(&m.queries_full[slot]), 1);
      ptx::barrier_init(ptx::shared_address(&m.queries_empty[slot]), kWarpgroups * args.ctas);
    }
    for (int c = 0; c < kChunks; ++c) {
      ptx::barrier_init(ptx::shared_address(&m.keys_full[c]), 1);
      ptx::barrier_init(ptx::shared_address(&m.keys_empty[c]), kWarpgroups);
    }
    for (auto& barrier : m.parts_full) ptx::barrier_init(ptx::shared_address(&barrier), 1);
    ptx::fence_barrier_init();
    for (auto& barrier : m.parts_full) {
      ptx::barrier_arrive_expect(ptx::shared_address(&barrier), args.ctas * kPartBytes);
    }
    ptx::prefetch_map(args.q);
    ptx::prefetch_map(args.k);
  }
  __syncthreads();
  ptx::cluster_sync();
  wait_for_previous();
  const StripWork work(args);
  if (threadIdx.x < 128) {
    ptx::shrink_registers<24>();
    if (threadIdx.x == 0) copy_strips<kChunks>(args, work, m);
    __syncwarp();
  } else {
    ptx::grow_registers<240>();
    multiply_strips<kChunks>(args, work, m);
  }
  ptx::cluster_sync();  // others still arrive at this CTA's barriers
}

template <int kChunks>
StripPieces launch(StripArgs args, std::int64_t capacity, cudaStream_t stream) {
  const ScoreArgs& p = args.scores;
  const auto kernel = score_strips<kChunks>;
  const int shared = static_cast<int>(sizeof(StripMemory<kChunks>)) + kAlignment;
  const char* name = "launch of score_strips";
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), name);
  const int strips = (p.queries + kRows - 1) / kRows;
  ChainedLaunch launch(dim3(static_cast<unsigned>(args.ctas)), kThreads,
                       static_cast<std::size_t>(shared), stream, static_cast<unsigned>(args.ctas));
  int clusters = 0;
  check(cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config()), name);
  args.pieces.heads = p.heads;
  args.pieces.items = strips * p.heads;
  const auto most_pieces = [&] {
    int most = 0;
    for (int strip = 0; strip < strips; ++strip) most = std::max(most, args.pieces.count(strip));
    return most;
  };
  args.pieces.clusters = std::clamp(clusters, 1, args.pieces.items);
  while (most_pieces() > capacity) --args.pieces.clusters;
  launch.config().gridDim.y = static_cast<unsigned>(args.pieces.clusters);
  launch.run(name, kernel, args);
  return args.pieces;
}

}  // namespace

bool fits_strips(const ScoreArgs& p) {
  return p.keys > kTile && p.keys <= kMaxStripBlocks && p.padded_dim <= 128 && p.query_shift == 0 &&
         p.key_shift == 0;
}

StripPieces launch_score_strips(const ScoreArgs& p, std::int64_t capacity, cudaStream_t stream) {
  StripArgs args{};
  args.scores = p;
  args.ctas = 2;  // what is said in a cluster cannot be said without one
  while (args.ctas * kCols < p.keys) args.ctas *= 2;
  const auto map = [&](const std::uint16_t* data, std::int64_t plane, int rows, int box_rows) {
    const auto row_bytes = static_cast<std::uint64_t>(p.padded_dim) * 2;
    return make_tensor_map(
        {CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
         data,
         {static_cast<std::uint64_t>(p.padded_dim), static_cast<std::uint64_t>(rows), 2},
         {row_bytes, static_cast<std::uint64_t>(plane) * 2},
         {64, static_cast<std::uint32_t>(box_rows), 1}});
  };
  args.q = map(p.q, p.q_plane, p.heads * p.padded_queries, kRows / args.ctas);
  args.k = map(p.k, p.k_plane, p.kv_heads * p.padded_keys, kCols);
  return p.padded_dim == 64 ? launch<1>(args, capacity, stream) : launch<2>(args, capacity, stream);
}

}  // namespace sw::cuda
