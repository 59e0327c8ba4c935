#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "core/tensor.hpp"
#include "model/checkpoint.hpp"
#include "model/config.hpp"
#include "model/linear.hpp"

/// The model runner: `Model` holds the weights and never changes; `Session` is one run over one
/// text, with its KV cache. Attention is injected, so the same run computes dense attention with
/// any backend, or any sparse method, and it sees exactly what a capture stores.
///
/// Q and K are rotated as Hugging Face does (halves of a head, cos and sin of position times the
/// inverse frequency in double), so they equal its tensors after RoPE for every architecture.
namespace sw {

/// Computes the attention of one layer over one chunk: problem.q holds the chunk's queries, k and v
/// the whole context so far, problem.layer the layer. Resizes and fills output.out; lse may be left
/// alone. Called once for each layer of each chunk, layers ascending.
using AttentionFunction = std::function<void(const AttentionProblem&, AttentionOutput&)>;

/// Dense causal attention of `backend`, which has to outlive the function. Throws
/// Error(kUnsupported) when the backend cannot compute a problem.
AttentionFunction dense_attention(const Backend& backend);

/// Called before the attention of each layer and chunk with what the attention is given.
using LayerObserver = std::function<void(const AttentionProblem&)>;

/// Called after each layer of each chunk with the residual stream [rows, hidden] of the positions
/// first, first + 1, ...; the memory is reused.
using ResidualObserver = std::function<void(std::int64_t layer, std::int64_t first,
                                            std::int64_t rows, const float* residual)>;

/// Receives logits [rows, vocabulary] of the positions first, first + 1, ...; the memory is reused.
using LogitsObserver =
    std::function<void(std::int64_t first, std::int64_t rows, const float* logits)>;

class Model {
 public:
  /// Loads the weights in `compute` (kF32 or kBf16: matrix products and KV cache; everything else
  /// is float) and keeps the checkpoint mapped for the embedding rows. Throws
  /// Error(kUnsupported) for another `compute`, Error(kResource) when the memory does not suffice.
  Model(std::shared_ptr<const Checkpoint> checkpoint, DType compute);

  const ModelConfig& config() const { return checkpoint_->config(); }
  DType compute() const { return compute_; }
  /// Bytes of the loaded weights, without the mapped files.
  std::uint64_t weight_bytes() const;
  /// Those that a decode step reads.
  std::uint64_t decode_weight_bytes() const;

  /// Output norm and vocabulary product of rows of the residual stream after the last layer:
  /// residual [rows, hidden], logits [rows, vocabulary]. The logits of a row do not depend, bit for
  /// bit, on the other rows, nor on how many there are. Safe from several threads.
  void logits(const float* residual, std::int64_t rows, float* logits) const;

 private:
  friend class Session;
  struct Layer {
    std::vector<float> attention_norm;  // [hidden]
    Linear qkv;                         // hidden -> q_rows + 2 kv_rows
    std::vector<float> query_norm;      // [head_dim], or empty
    std::vector<float> key_norm;        // [head_dim], or empty
    Linear attention_out;               // q_rows -> hidden
    std::vector<float> ffn_norm;        // [hidden]
    Linear gate_up;                     // hidden -> 2 ffn: gate, then up
    Linear down;                        // ffn -> hidden
  };

  template <class F>
  std::uint64_t sum_weights(F&& bytes_of) const;

  std::shared_ptr<const Checkpoint> checkpoint_;
  DType compute_;
  WeightArena arena_;
  std::vector<Layer> layers_;
  std::vector<float> output_norm_;
  std::unique_ptr<const Linear> output_;  // hidden -> vocabulary
};

/// Bytes that Model will allocate for the weights of a file at least: every parameter once in
/// `compute`, without the input embedding, which stays in the mapped file. Layouts of oneDNN may
/// pad small matrices, and quantised weights in bf16 are kept once more as integers for decode
/// steps, of 0.75 (4 bits) to 1.25 bytes each.
std::uint64_t estimated_weight_bytes(const ModelConfig& config, DType compute);
/// Bytes of the KV cache of a session with this capacity.
std::uint64_t kv_cache_bytes(const ModelConfig& config, DType compute, std::int64_t capacity);

struct SessionOptions {
  std::int64_t capacity = 0;         ///< longest context in tokens, >= 1
  std::int64_t chunk_tokens = 1024;  ///< queries of one attention call in prefill, >= 1
  /// Layers to run, all by default. With fewer the logits mean nothing, but what the observers see
  /// of those layers is the same.
  std::int64_t layers = std::numeric_limits<std::int64_t>::max();
  LayerObserver observer = {};       ///< may be empty
  ResidualObserver residual = {};    ///< may be empty
};

class Session {
 public:
  /// `model` has to outlive the session. Throws Error(kResource) when the cache does not fit.
  Session(const Model& model, AttentionFunction attention, SessionOptions options);

  /// Tokens run so far.
  std::int64_t position() const { return position_; }

  /// Runs `tokens` at the positions position(), position() + 1, ...: a prefill, or with one token a
  /// decode step. Each chunk goes through all layers before the next one. `logits`, when given,
  /// gets the logits of every position, a few rows at a time. Throws Error(kUsage) when the
  /// capacity is exceeded, Error(kInput) for an id outside the vocabulary.
  void run(std::span<const std::int32_t> tokens, const LogitsObserver& logits = {});

  /// Logits [vocabulary] of the last position, computed when asked for. Throws Error(kUsage) when
  /// nothing was run since the begin or the last rewind().
  std::vector<float> last_logits() const;

  /// Forgets the tokens at and after `position`, so that the next run continues there. Throws
  /// Error(kUsage) outside 0 .. position().
  void rewind(std::int64_t position);

 private:
  /// What a strip of rows needs between the products of a layer.
  struct Strip {
    HeadsTensor activation;      // input of a product, [1, rows, widest input] in `compute`
    std::vector<float> product;  // its result, [rows, widest result]

    /// Row r of an input of `width` elements.
    std::byte* row(std::int64_t r, std::int64_t width) {
      return activation.data() +
             static_cast<std::size_t>(r * width) * dtype_size(activation.dtype());
    }
  };

  template <class F>
  void each_strip(std::int64_t tokens, F&& body);
  void run_chunk(std::span<const std::int32_t> tokens, const LogitsObserver& logits);
  void embed(std::span<const std::int32_t> tokens);
  void project_qkv(const Model::Layer& layer, std::int64_t layer_index, std::int64_t tokens);
  void attend(std::int64_t layer_index, std::int64_t tokens);
  void feed_forward(const Model::Layer& layer, std::int64_t tokens);
  void stream_logits(std::int64_t tokens, const LogitsObserver& logits) const;

  const Model& model_;
  AttentionFunction attention_;
  SessionOptions options_;
  std::int64_t position_ = 0;
  HeadsTensor keys_;  // [layers * kv_heads, capacity, head_dim]
  HeadsTensor values_;
  std::vector<float> hidden_;    // the chunk's residual stream [tokens, hidden]
  std::vector<float> rotation_;  // of the chunk: [tokens, 2, head_dim / 2], cos and sin
  HeadsTensor queries_;          // [heads, tokens, head_dim]
  AttentionOutput attended_;
  std::vector<float> last_hidden_;  // residual stream of the last position [hidden], or empty
  std::vector<Strip> strips_;       // of each thread
};

/// -ln softmax(logits)[token]: exponentials in float, their sum in double.
double negative_log_likelihood(std::span<const float> logits, std::int32_t token);

/// Collects the likelihood of a text while its logits are streamed.
class TextLikelihood {
 public:
  /// At least two tokens, or Error(kUsage).
  TextLikelihood(std::span<const std::int32_t> tokens, std::int64_t vocabulary);

  /// A LogitsObserver: logits [rows, vocabulary] of the positions first, first + 1, ...
  void add(std::int64_t first, std::int64_t rows, const float* logits);
  /// Negative log-likelihoods of tokens 1..n-1.
  const std::vector<double>& losses() const { return losses_; }
  /// exp of their mean.
  double perplexity() const;

 private:
  std::vector<std::int32_t> tokens_;
  std::int64_t vocabulary_;
  std::vector<double> losses_;
};

/// Negative log-likelihoods of tokens 1..n-1 given those before them, in one window of n tokens.
/// Throws Error(kUsage) for fewer than two tokens.
std::vector<double> negative_log_likelihoods(const Model& model,
                                             std::span<const std::int32_t> tokens,
                                             const AttentionFunction& attention);

/// exp of the mean negative log-likelihood.
double perplexity(const Model& model, std::span<const std::int32_t> tokens,
                  const AttentionFunction& attention);

/// Index of the largest logit, the lowest one among equals: the greedy choice.
std::int32_t argmax(std::span<const float> logits);

}  // namespace sw
