#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/cuda/common/buffer.hpp"
#include "kernels/cuda/common/decode/budget.hpp"
#include "kernels/cuda/common/launch.hpp"

/// Attention of one query token a sequence over selected key blocks of its cache (sketchwalk.md
/// section 4 and 5), for a batch of sequences of different lengths. The time is that of reading
/// the selected keys and values once: the query heads of a KV head share a matrix instruction, as
/// its 8 columns (keys and head dimensions are the rows, of which there are enough), the 64-token
/// tiles of all sequences and heads are dealt out evenly to a fixed number of thread blocks, and
/// the parts of a head are merged in a fixed order. Lengths, lists and counts are
/// read on the device, so a launch can be captured in a graph, and the same inputs give the same
/// bits.
///
/// A selection takes as long as reading its blocks does, so one sequence need not wait for it
/// (reads_ahead): it attends to the blocks that will be kept whatever the scores, and then, a few
/// together, to those that the step before chose, most of which are chosen again. When the list is
/// there, groups of which a block was dropped are left out, and what is missing is read. So the
/// result is that of the list, but its time depends on how many blocks stay, and its rounding on
/// which.
///
/// Thread blocks of a decode kernel wait for each other. They all fit on a GPU at once, but beside
/// those of another stream's decode step they might not: one stream at a time.
namespace sw::cuda {

/// Keys and values of a batch, [batch, kv_heads, tokens, head_dim] with strides in elements, equal
/// for K and V. Paged when `pages` is set: page p holds tokens of one block, and block j of
/// sequence s lies in page pages[s * pages_stride + j]; `page_stride` takes the place of
/// `sequence_stride`. Rows start at multiples of 16 bytes.
struct KvCache {
  Element element = Element::kBf16;
  int batch = 1;
  int kv_heads = 1;
  int head_dim = 128;  ///< 64, 128 or 256
  int block = 64;      ///< B: 64 or 128
  const void* k = nullptr;
  const void* v = nullptr;
  std::int64_t sequence_stride = 0;
  std::int64_t head_stride = 0;
  std::int64_t token_stride = 0;
  const std::int32_t* pages = nullptr;
  std::int64_t pages_stride = 0;
  std::int64_t page_stride = 0;
  /// Context length n of each sequence, on the device; the query stands at position n - 1.
  const std::int32_t* lengths = nullptr;
};

/// Lists of key blocks in device memory: set g of sequence s has counts[s * sets + g] entries at
/// blocks[(s * sets + g) * capacity]. An entry j >= 0 is a block with all of its tokens visible;
/// ~j (negative) is a block of which only the tokens below `token_sink` are. In any order, unique.
struct DecodeList {
  const std::int32_t* blocks = nullptr;
  const std::int32_t* counts = nullptr;
  int sets = 1;  ///< 1, kv_heads or num_heads
  int capacity = 0;
  /// Whether the list of the step before is kept beside that of this one (also unique, of at most
  /// `capacity` entries; a count of 0 = none): blocks and counts are then [2, batch, sets] of them,
  /// and a sequence of n tokens has its list at index n % 2.
  bool twice = false;
};

/// Which blocks a launch attends to.
struct DecodeBlocks {
  enum class Kind {
    kDense,     ///< all
    kList,      ///< those of `list`
    kSelected,  ///< those of `list`, of which sink and window of `budget` come first: these, and
                ///< the last step's where reads_ahead() says so, are attended to while the kernel
                ///< before in the stream still makes the list
  };
  Kind kind = Kind::kDense;
  DecodeList list;
  DecodeBudget budget;      ///< kSelected, and the token-level sink of kList
  bool token_sink = false;  ///< kList: whether the list has partly visible blocks
};

class DecodeAttention {
 public:
  /// Allocates the workspace: 4 partial results of num_heads / kv_heads x head_dim floats for each
  /// multiprocessor, another 2 where it reads ahead, and 2 for each KV head of each sequence.
  /// `shape` gives element, batch, kv_heads, head_dim and block. Throws Error(kUnsupported) for a
  /// head_dim, block or number of heads that is not supported (at most 16 query heads a KV head),
  /// and for a GPU below compute capability 8.0.
  DecodeAttention(const KvCache& shape, int num_heads);

  /// q and out: [batch, num_heads, head_dim] of the cache's element type, contiguous. lse, natural
  /// logarithm, [batch, num_heads], may be null. Launches one kernel on `stream` and returns.
  /// With kSelected the kernel before must be that of DecodeSelector::run: from compute capability
  /// 9.0 on the two overlap. Throws Error(kResource) when the launch fails.
  void run(const KvCache& cache, const void* q, const DecodeBlocks& blocks, void* out, float* lse,
           cudaStream_t stream);

  /// Whether run() attends to the last step's blocks before it knows those of this one: one
  /// sequence, kSelected with `twice` and one set, a budget that fixes the number of blocks, head
  /// dimensions 64 and 128, at most 8192 blocks, KV heads that divide the multiprocessors well,
  /// compute capability 9.0.
  bool reads_ahead(const DecodeBlocks& blocks) const;

  /// Bytes of the selected keys and values (kept blocks a head and sequence), q and out; FLOPs of
  /// the two products. What is read ahead and then dropped does not count.
  KernelCost cost(std::int64_t blocks) const;
  int num_heads() const { return num_heads_; }

 private:
  KvCache shape_;
  int num_heads_ = 0;
  int multiprocessors_ = 0;
  bool starts_early_ = false;       ///< the GPU can start a kernel while the one before runs
  bool reads_ahead_ = false;        ///< there is a kernel for it
  DeviceBuffer<float> partial_;     ///< [slots, rows, head_dim] unnormalised sums
  DeviceBuffer<float> partial_ml_;  ///< [slots, rows, 2] maximum and sum
  // For one sequence beside its selection (attention_beside.cu):
  DeviceBuffer<float> exchange_;     ///< [2, multiprocessors, rows, head_dim] parts of heads
  DeviceBuffer<float> exchange_ml_;  ///< [2, multiprocessors, rows, 2] maximum and sum
  DeviceBuffer<unsigned> launches_;  ///< [kv_heads]
  DeviceBuffer<unsigned> arrivals_;  ///< [batch * num_heads] parts that are complete
};

}  // namespace sw::cuda
