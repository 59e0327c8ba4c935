#include <algorithm>

#include "kernels/cuda/common/error.hpp"
#include "kernels/cuda/common/selection/chain.cuh"
#include "kernels/cuda/common/selection/launch_limits.hpp"
#include "kernels/cuda/common/selection/mma.cuh"
#include "kernels/cuda/common/selection/split_scale.hpp"
#include "kernels/cuda/common/selection/tile.cuh"
#include "kernels/cuda/common/selection/walk_products.cuh"
#include "kernels/cuda/common/selection/walk_step.hpp"
#include "kernels/cuda/sm90/cluster.cuh"
#include "kernels/cuda/sm90/ptx.cuh"
#include "kernels/cuda/sm90/tensor_map.hpp"

namespace sw::cuda {
namespace {

// out = keep A + gain X A: a CTA makes 128 rows of `out`, 64 a warpgroup. Two CTAs below one
// another are a cluster and read the rows of A that both need once, half of them each.
constexpr int kRows = 128;
constexpr int kStepDepth = 32;     ///< contraction elements of a pipeline stage
constexpr int kThreads = 3 * 128;  ///< warpgroup 0 copies, the others multiply
constexpr int kWarpgroups = 2;
constexpr int kCtas = 2;
constexpr int kXRowBytes = kStepDepth * 2;
constexpr int kXPlane = kRows * kXRowBytes;
constexpr int kPanelCols = 64;  ///< columns of `out` whose rows of A are 128 bytes
constexpr int kPanelPlane = kStepDepth * kPanelCols * 2;

/// kPanels: 64 columns of `out` each. kTerms: 3 products of high and low parts, or 1.
template <int kPanels, int kTerms>
struct WalkMemory {
  static constexpr int kPlanes = kTerms == 3 ? 2 : 1;
  static constexpr int kStageBytes = kPlanes * (kXPlane + kPanels * kPanelPlane);
  static constexpr int kStages = std::min(8, 4 * 48 * 1024 / kStageBytes);

  struct Stage {
    unsigned char x[kPlanes][kXPlane];
    unsigned char a[kPanels][kPlanes][kPanelPlane];
  };
  Stage stages[kStages];
  std::uint64_t full[kStages];
  std::uint64_t empty[kStages];
};

struct TiledWalkArgs {
  CUtensorMap x;
  CUtensorMap a;
  WalkArgs walk;
};

/// A descriptor of X: rows of 64 bytes in the 64-byte swizzle, 8 of them 512 bytes.
__device__ inline std::uint64_t rows_descriptor(std::uint32_t address) {
  return static_cast<std::uint64_t>((address & 0x3ffff) >> 4) | std::uint64_t{1} << 16 |
         std::uint64_t{512 >> 4} << 32 | std::uint64_t{2} << 62;
}

template <class Memory>
__device__ void copy_steps(const TiledWalkArgs& args, Memory& m, int panels, int steps) {
  const auto rank = static_cast<int>(ptx::cluster_rank());
  const int row = static_cast<int>(blockIdx.x) * kRows;
  const int column = static_cast<int>(blockIdx.y) * panels * kPanelCols;
  for (int step = 0; step < steps; ++step) {
    const int slot = step % Memory::kStages;
    auto& stage = m.stages[slot];
    const std::uint32_t full = ptx::shared_address(&m.full[slot]);
    ptx::barrier_wait(ptx::shared_address(&m.empty[slot]), (step / Memory::kStages & 1) ^ 1);
    ptx::barrier_arrive_expect(full, Memory::kStageBytes);
    ptx::copy_box(ptx::shared_address(stage.x), args.x, full, step * kStepDepth, row, 0);
    if (panels == 1) {  // half of its rows each
      constexpr int kHalf = kStepDepth / kCtas;
      for (int plane = 0; plane < Memory::kPlanes; ++plane) {
        ptx::copy_box_to_many(
            ptx::shared_address(stage.a[0][plane]) + rank * kHalf * kPanelCols * 2, args.a, full,
            column, step * kStepDepth + rank * kHalf, plane, (1u << kCtas) - 1);
      }
    } else {
      for (int panel = rank; panel < panels; panel += kCtas) {
        ptx::copy_box_to_many(ptx::shared_address(stage.a[panel]), args.a, full,
                              column + panel * kPanelCols, step * kStepDepth, 0, (1u << kCtas) - 1);
      }
    }
  }
}

/// What a thread has of the tile of `out`: two rows, and two of every 8 columns.
template <int kPanels>
class WalkTile {
 public:
  static constexpr int kEights = kPanels * 8;

  __device__ WalkTile(const WalkArgs& args, int row, int lane)
      : p_(args),
        row_(static_cast<int>(blockIdx.x) * kRows + row + lane / 4),
        begin_(static_cast<int>(blockIdx.y) * kPanels * kPanelCols),
        column_(begin_ + lane % 4 * 2),
        odd_(lane % 2 == 1) {}

  /// Asks for A of row `half`.
  __device__ void load(int half) {
    if (p_.a == nullptr || !inside(half)) {
#pragma unroll
      for (float2& x : a_) x = float2{};
      return;
    }
    const float* from = p_.a + offset(half);
    each_16([&](int n) {
      a_[n] = *reinterpret_cast<const float2*>(from + n * 8);
      a_[n + 1] = *reinterpret_cast<const float2*>(from + n * 8 + 8);
    });
  }

  /// Writes `out` for the products of the tile; A of row 0 has been asked for.
  template <class T>
  __device__ void write(float (&acc)[kEights * 4]) {
    const float gain = p_.gain / (kSplitScale<T> * kSplitScale<T>);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 out[kEights];
#pragma unroll
      for (int n = 0; n < kEights; ++n) {
        out[n].x = fmaf(p_.keep, a_[n].x, gain * acc[n * 4 + half * 2]);
        out[n].y = fmaf(p_.keep, a_[n].y, gain * acc[n * 4 + half * 2 + 1]);
      }
      if (half == 0) load(1);
      if (begin_ + kPanels * kPanelCols > p_.blocks) {
#pragma unroll
        for (int n = 0; n < kEights; ++n) {
          if (column_ + n * 8 >= p_.blocks) out[n].x = 0.0f;
          if (column_ + n * 8 + 1 >= p_.blocks) out[n].y = 0.0f;
        }
      }
      if (p_.values != nullptr) {
        float* to = p_.values + offset(half);
        each_16([&](int n) {
          if (!inside(half)) return;
          *reinterpret_cast<float2*>(to + n * 8) = out[n];
          *reinterpret_cast<float2*>(to + n * 8 + 8) = out[n + 1];
        });
      }
      if (p_.high != nullptr) write_operands<T>(out, half);
    }
  }

 private:
  __device__ bool inside(int half) const { return row_ + half * 8 < p_.blocks; }
  __device__ std::int64_t offset(int half) const { return (row_ + half * 8) * p_.stride + column_; }
  /// Calls use(n) for every other 8 columns, up to the stride: a multiple of 128.
  template <class Use>
  __device__ void each_16(Use use) const {
#pragma unroll
    for (int n = 0; n < kEights; n += 2) {
      if (n == 16 && begin_ + 128 >= p_.stride) break;
      use(n);
    }
  }
  /// Neighbouring lanes trade words, so that each writes 8 bytes and four of them 32.
  template <class T>
  __device__ void write_operands(const float2 (&out)[kEights], int half) const {
    const std::int64_t first = offset(half) + (odd_ ? 8 - 2 : 0);
    each_16([&](int n) {
      std::uint32_t high[2];
      std::uint32_t low[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 x = out[n + i];
        split<T>(float2{x.x * kSplitScale<T>, x.y * kSplitScale<T>}, high[i], low[i]);
      }
      const auto store = [&](std::uint16_t* to, const std::uint32_t(&words)[2]) {
        const std::uint32_t other = __shfl_xor_sync(0xffffffffu, odd_ ? words[0] : words[1], 1);
        if (!inside(half)) return;
        *reinterpret_cast<uint2*>(to + first + n * 8) =
            odd_ ? uint2{other, words[1]} : uint2{words[0], other};
      };
      store(p_.high, high);
      if (p_.low != nullptr) store(p_.low, low);
    });
  }

  const WalkArgs& p_;
  int row_;
  int begin_;  ///< first column of the tile
  int column_;
  bool odd_;
  float2 a_[kEights] = {};
};

template <class T, int kPanels, int kTerms>
__device__ void multiply_steps(const WalkArgs& p, WalkMemory<kPanels, kTerms>& m, int steps) {
  using Memory = WalkMemory<kPanels, kTerms>;
  const int warpgroup = static_cast<int>(threadIdx.x) / 128 - 1;
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int lane = thread % 32;
  const auto release = [&](int step) {
    if (thread < kCtas) {
      ptx::barrier_arrive_in_cluster(
          ptx::address_in(ptx::shared_address(&m.empty[step % Memory::kStages]), thread));
    }
  };
  WalkTile<kPanels> tile(p, warpgroup * 64 + thread / 32 * 16, lane);
  tile.load(0);  // long before it is needed
  float acc[kPanels * 32];
  for (int step = 0; step < steps; ++step) {
    auto& stage = m.stages[step % Memory::kStages];
    ptx::barrier_wait(ptx::shared_address(&m.full[step % Memory::kStages]),
                      step / Memory::kStages & 1);
    const std::uint32_t x = ptx::shared_address(stage.x) + warpgroup * 64 * kXRowBytes;
    const std::uint32_t a = ptx::shared_address(stage.a);
    ptx::mma_fence();
#pragma unroll
    for (int k = 0; k < kStepDepth / 16; ++k) {
      const auto x_part = [&](int plane) { return rows_descriptor(x + plane * kXPlane + k * 32); };
      const auto a_part = [&](int plane) {
        return ptx::matrix_descriptor(a + plane * kPanelPlane + k * 16 * kPanelCols * 2,
                                      Memory::kPlanes * kPanelPlane);
      };
      ptx::mma_shared<T, true>(acc, x_part(0), a_part(0), step > 0 || k > 0);
      if constexpr (kTerms == 3) {
        ptx::mma_shared<T, true>(acc, x_part(0), a_part(1), true);
        ptx::mma_shared<T, true>(acc, x_part(1), a_part(0), true);
      }
    }
    ptx::mma_commit();
    ptx::mma_wait<1>();
    if (step > 0) release(step - 1);
  }
  ptx::mma_wait<0>();
  ptx::pin(acc);
  tile.template write<T>(acc);
}

template <class T, int kPanels, int kTerms>
__global__ void __launch_bounds__(kThreads, 1)
    walk_tiles(const __grid_constant__ TiledWalkArgs args) {
  using Memory = WalkMemory<kPanels, kTerms>;
  extern __shared__ unsigned char unaligned[];
  auto& m = *reinterpret_cast<Memory*>(align_shared(unaligned));
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Memory::kStages; ++slot) {
      ptx::barrier_init(ptx::shared_address(&m.full[slot]), 1);
      ptx::barrier_init(ptx::shared_address(&m.empty[slot]), kWarpgroups * kCtas);
    }
    ptx::fence_barrier_init();
    ptx::prefetch_map(args.x);
    ptx::prefetch_map(args.a);
  }
  __syncthreads();
  ptx::cluster_sync();
  wait_for_previous();
  const int steps = (args.walk.blocks + kStepDepth - 1) / kStepDepth;
  if (threadIdx.x < 128) {
    ptx::shrink_registers<24>();
    if (threadIdx.x == 0) copy_steps(args, m, kPanels, steps);
    __syncwarp();
  } else {
    ptx::grow_registers<240>();
    multiply_steps<T, kPanels, kTerms>(args.walk, m, steps);
  }
  ptx::cluster_sync();  // the other CTA still writes to this one's memory
}

template <class T, int kPanels, int kTerms>
void launch(const WalkArgs& walk, cudaStream_t stream) {
  using Memory = WalkMemory<kPanels, kTerms>;
  TiledWalkArgs args{};
  args.walk = walk;
  const auto stride = static_cast<std::uint64_t>(walk.stride);
  const auto map = [&](const std::uint16_t* high, const std::uint16_t* low, std::uint32_t cols,
                       std::uint32_t rows, std::uint32_t planes) {
    return make_tensor_map({std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                            high,
                            {stride, stride, 2},
                            {stride * 2, static_cast<std::uint64_t>(low - high) * 2},
                            {cols, rows, planes}});
  };
  constexpr auto kPlanes = static_cast<std::uint32_t>(Memory::kPlanes);
  args.x = map(walk.x_high, walk.x_low, kStepDepth, kRows, kPlanes);
  args.a = kPanels == 1 ? map(walk.a_high, walk.a_low, kPanelCols, kStepDepth / kCtas, 1)
                        : map(walk.a_high, walk.a_low, kPanelCols, kStepDepth, kPlanes);
  const auto kernel = walk_tiles<T, kPanels, kTerms>;
  const int shared = static_cast<int>(sizeof(Memory)) + kAlignment;
  const char* name = "launch of walk_tiles";
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), name);
  constexpr int kCols = kPanels * kPanelCols;
  const dim3 grid(
      static_cast<unsigned>((walk.blocks + kCtas * kRows - 1) / (kCtas * kRows) * kCtas),
      static_cast<unsigned>((walk.blocks + kCols - 1) / kCols));
  ChainedLaunch(grid, kThreads, static_cast<std::size_t>(shared), stream, kCtas)
      .run(name, kernel, args);
}

/// The largest tiles that fill most of the GPU.
template <class T, int kTerms>
void launch_sized(const WalkArgs& args, cudaStream_t stream) {
  const auto tiles = [&](int cols) {
    return (args.blocks + kRows - 1) / kRows * ((args.blocks + cols - 1) / cols);
  };
  const int enough = multiprocessors() * 3 / 4;
  if (tiles(256) >= enough) return launch<T, 4, kTerms>(args, stream);
  if (tiles(128) >= enough) return launch<T, 2, kTerms>(args, stream);
  launch<T, 1, kTerms>(args, stream);
}

}  // namespace

void launch_walk_hopper(const WalkArgs& args, Split split, bool single, cudaStream_t stream) {
  for_products(split, single,
               [&]<class T, int kTerms>() { launch_sized<T, kTerms>(args, stream); });
}

}  // namespace sw::cuda
