#include "model/transformer.hpp"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <numeric>
#include <optional>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "model/row_kernels.hpp"

namespace sw {
namespace {

/// Rows that go through a layer together: what lies between its products stays in the cache.
constexpr std::int64_t kStripRows = 96;
/// Positions whose logits exist at a time.
constexpr std::int64_t kLogitRows = 128;

/// body(row) for every row, in parallel, a few rows at a time.
template <class F>
void each_row(std::int64_t rows, F&& body) {
  constexpr std::int64_t kBatch = 16;
  parallel_for((rows + kBatch - 1) / kBatch, [&](std::int64_t batch, int) {
    const std::int64_t end = std::min(rows, (batch + 1) * kBatch);
    for (std::int64_t row = batch * kBatch; row < end; ++row) body(row);
  });
}

/// body(begin, rows) for tiles of at most `tile` of `count` rows, one after the other.
template <class F>
void each_tile(std::int64_t count, std::int64_t tile, F&& body) {
  for (std::int64_t begin = 0; begin < count; begin += tile) {
    body(begin, std::min(tile, count - begin));
  }
}

std::byte* row_of(HeadsTensor& tensor, std::int64_t head, std::int64_t token) {
  const std::int64_t offset = (head * tensor.tokens() + token) * tensor.dim();
  return tensor.data() + static_cast<std::size_t>(offset) * dtype_size(tensor.dtype());
}

std::vector<float> load_vector(const StoredMatrix& stored) {
  std::vector<float> values(static_cast<std::size_t>(stored.row_elements));
  stored.load_row(0, values.data());
  return values;
}

/// Row of the file that holds row `row` of Q or K, in the order of Hugging Face.
std::int64_t stored_row(std::int64_t row, const ModelConfig& config) {
  if (!config.interleaved_qk_rows) return row;
  const std::int64_t half = config.head_dim / 2;
  const std::int64_t i = row % config.head_dim;
  return row - i + (i < half ? 2 * i : 2 * (i - half) + 1);
}

/// Where row `row` of a product's weights lies.
struct RowSource {
  const StoredMatrix* matrix;
  std::int64_t row;
};

/// The weights of one product, out of `stored` matrices.
template <class Source>
Linear load_linear(std::initializer_list<const StoredMatrix*> stored, const Source& source,
                   DType dtype, WeightArena& arena, std::vector<float> bias = {}) {
  const std::int64_t inputs = (*stored.begin())->row_elements;
  std::int64_t outputs = 0;
  std::optional<CodeFormat> format = code_format((*stored.begin())->type);
  for (const StoredMatrix* matrix : stored) {
    outputs += matrix->rows;
    const auto own = code_format(matrix->type);
    format = own && format ? std::optional(*format | *own) : std::nullopt;
  }
  Linear linear(
      inputs, outputs, dtype,
      [&](std::int64_t row, float* out) {
        const RowSource from = source(row);
        from.matrix->load_row(from.row, out);
      },
      arena, std::move(bias));
  if (format) {
    linear.keep_codes(
        *format,
        [&](std::int64_t row, const CodedRow& out) {
          const RowSource from = source(row);
          from.matrix->load_codes(from.row, out);
        },
        arena);
  }
  return linear;
}

Linear load_linear(const StoredMatrix& stored, DType dtype, WeightArena& arena) {
  return load_linear(
      {&stored},
      [&](std::int64_t row) {
        return RowSource{&stored, row};
      },
      dtype, arena);
}

Linear load_qkv(const Checkpoint& checkpoint, std::int64_t layer, DType dtype, WeightArena& arena) {
  const ModelConfig& config = checkpoint.config();
  const StoredMatrix& q = checkpoint.weight(WeightRole::kQuery, layer);
  const StoredMatrix& k = checkpoint.weight(WeightRole::kKey, layer);
  const StoredMatrix& v = checkpoint.weight(WeightRole::kValue, layer);
  std::vector<float> bias;
  if (config.qkv_bias) {
    for (const WeightRole role :
         {WeightRole::kQueryBias, WeightRole::kKeyBias, WeightRole::kValueBias}) {
      const std::vector<float> part = load_vector(checkpoint.weight(role, layer));
      bias.insert(bias.end(), part.begin(), part.end());
    }
  }
  const auto source = [&](std::int64_t row) -> RowSource {
    if (row < q.rows) return {&q, stored_row(row, config)};
    row -= q.rows;
    if (row < k.rows) return {&k, stored_row(row, config)};
    return {&v, row - k.rows};
  };
  return load_linear({&q, &k, &v}, source, dtype, arena, std::move(bias));
}

Linear load_gate_up(const Checkpoint& checkpoint, std::int64_t layer, DType dtype,
                    WeightArena& arena) {
  const StoredMatrix& gate = checkpoint.weight(WeightRole::kGate, layer);
  const StoredMatrix& up = checkpoint.weight(WeightRole::kUp, layer);
  const auto source = [&](std::int64_t row) {
    return row < gate.rows ? RowSource{&gate, row} : RowSource{&up, row - gate.rows};
  };
  return load_linear({&gate, &up}, source, dtype, arena);
}

}  // namespace

AttentionFunction dense_attention(const Backend& backend) {
  return [&backend](const AttentionProblem& problem, AttentionOutput& output) {
    require_supported(backend, problem);
    backend.attend(problem, BlockSelection::dense(problem.geometry(64)), output);
  };
}

Model::Model(std::shared_ptr<const Checkpoint> checkpoint, DType compute)
    : checkpoint_(std::move(checkpoint)), compute_(compute) {
  if (compute == DType::kF16) {
    throw Error(ErrorKind::kUnsupported, "models do not compute in f16", "use f32 or bf16");
  }
  const ModelConfig& c = config();
  const auto weight = [&](WeightRole role, std::int64_t layer = 0) -> const StoredMatrix& {
    return checkpoint_->weight(role, layer);
  };
  output_ = std::make_unique<const Linear>(load_linear(
      weight(c.tied_embeddings ? WeightRole::kEmbedding : WeightRole::kOutput), compute, arena_));
  output_norm_ = load_vector(weight(WeightRole::kOutputNorm));
  layers_.reserve(static_cast<std::size_t>(c.layers));
  for (std::int64_t i = 0; i < c.layers; ++i) {
    const auto head_norm = [&](WeightRole role) {
      return c.qk_norm ? load_vector(weight(role, i)) : std::vector<float>();
    };
    layers_.push_back({
        .attention_norm = load_vector(weight(WeightRole::kAttentionNorm, i)),
        .qkv = load_qkv(*checkpoint_, i, compute, arena_),
        .query_norm = head_norm(WeightRole::kQueryNorm),
        .key_norm = head_norm(WeightRole::kKeyNorm),
        .attention_out = load_linear(weight(WeightRole::kAttentionOut, i), compute, arena_),
        .ffn_norm = load_vector(weight(WeightRole::kFfnNorm, i)),
        .gate_up = load_gate_up(*checkpoint_, i, compute, arena_),
        .down = load_linear(weight(WeightRole::kDown, i), compute, arena_),
    });
  }
}

std::uint64_t Model::weight_bytes() const {
  return sum_weights([](const Linear& linear) { return linear.bytes(); });
}

std::uint64_t Model::decode_weight_bytes() const {
  return sum_weights([](const Linear& linear) { return linear.lone_row_bytes(); });
}

template <class F>
std::uint64_t Model::sum_weights(F&& bytes_of) const {
  std::uint64_t bytes = bytes_of(*output_) + output_norm_.size() * sizeof(float);
  for (const Layer& l : layers_) {
    bytes +=
        bytes_of(l.qkv) + bytes_of(l.attention_out) + bytes_of(l.gate_up) + bytes_of(l.down) +
        (l.attention_norm.size() + l.ffn_norm.size() + l.query_norm.size() + l.key_norm.size()) *
            sizeof(float);
  }
  return bytes;
}

void Model::logits(const float* residual, std::int64_t rows, float* logits) const {
  const std::int64_t hidden = config().hidden;
  // Where a lone row is added up in another way than several, the last of them is computed twice.
  const bool twice = !output_->lone_rows_equal_others() && (rows > 1 || !output_->has_codes());
  HeadsTensor normed(compute_, 1, std::max<std::int64_t>(2, std::min(rows, kLogitRows)), hidden);
  each_tile(rows, kLogitRows, [&](std::int64_t begin, std::int64_t count) {
    each_row(count, [&](std::int64_t r) {
      row_kernels().rms_norm(residual + (begin + r) * hidden, output_norm_.data(), hidden,
                             config().rms_epsilon, compute_, row_of(normed, 0, r));
    });
    float* out = logits + begin * config().vocabulary;
    if (count > 1 || !twice) return output_->apply(normed.data(), count, out);
    std::copy_n(row_of(normed, 0, 0), row_of(normed, 0, 1) - row_of(normed, 0, 0),
                row_of(normed, 0, 1));
    std::vector<float> both(static_cast<std::size_t>(2 * config().vocabulary));
    output_->apply(normed.data(), 2, both.data());
    std::copy_n(both.data(), config().vocabulary, out);
  });
}

std::uint64_t estimated_weight_bytes(const ModelConfig& config, DType compute) {
  const std::int64_t qkv = config.q_rows() + 2 * config.kv_rows();
  const std::int64_t weights_per_layer = config.hidden * (qkv + config.q_rows() + 3 * config.ffn);
  const std::int64_t floats_per_layer =
      2 * config.hidden + (config.qkv_bias ? qkv : 0) + (config.qk_norm ? 2 * config.head_dim : 0);
  const auto weights = static_cast<double>(config.vocabulary) * static_cast<double>(config.hidden) +
                       static_cast<double>(config.layers) * static_cast<double>(weights_per_layer);
  const auto floats = static_cast<double>(config.hidden + config.layers * floats_per_layer);
  return static_cast<std::uint64_t>(weights * static_cast<double>(dtype_size(compute)) +
                                    floats * sizeof(float));
}

std::uint64_t kv_cache_bytes(const ModelConfig& config, DType compute, std::int64_t capacity) {
  return 2 * static_cast<std::uint64_t>(config.layers * config.kv_rows()) *
         static_cast<std::uint64_t>(capacity) * dtype_size(compute);
}

Session::Session(const Model& model, AttentionFunction attention, SessionOptions options)
    : model_(model), attention_(std::move(attention)), options_(std::move(options)) {
  const ModelConfig& c = model.config();
  if (options_.capacity < 1 || options_.chunk_tokens < 1) {
    throw Error(ErrorKind::kUsage, "a session needs a capacity and chunks of at least one token");
  }
  options_.chunk_tokens = std::min(options_.chunk_tokens, options_.capacity);
  keys_ = HeadsTensor(model.compute(), c.layers * c.kv_heads, options_.capacity, c.head_dim);
  values_ = HeadsTensor(model.compute(), c.layers * c.kv_heads, options_.capacity, c.head_dim);
  queries_ = HeadsTensor(model.compute(), c.heads, options_.chunk_tokens, c.head_dim);
  attended_.out_only = true;
}

/// body(begin, rows, strip) for strips of the chunk's tokens, in parallel; a lone strip instead
/// leaves the threads to the loops inside.
template <class F>
void Session::each_strip(std::int64_t tokens, F&& body) {
  const ModelConfig& c = model_.config();
  strips_.resize(std::max(strips_.size(), static_cast<std::size_t>(num_threads())));
  parallel_for((tokens + kStripRows - 1) / kStripRows, [&](std::int64_t index, int thread) {
    Strip& strip = strips_[static_cast<std::size_t>(thread)];
    const std::int64_t most = std::min(kStripRows, options_.chunk_tokens);
    if (strip.product.empty()) {
      strip.activation =
          HeadsTensor(model_.compute(), 1, most, std::max({c.hidden, c.q_rows(), c.ffn}));
      strip.product.resize(
          static_cast<std::size_t>(most * std::max(c.q_rows() + 2 * c.kv_rows(), 2 * c.ffn)));
    }
    const std::int64_t begin = index * kStripRows;
    body(begin, std::min(kStripRows, tokens - begin), strip);
  });
}

void Session::run(std::span<const std::int32_t> tokens, const LogitsObserver& logits) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (count > options_.capacity - position_) {
    throw Error(ErrorKind::kUsage,
                std::to_string(position_) + " + " + std::to_string(count) +
                    " tokens do not fit the session's capacity of " +
                    std::to_string(options_.capacity),
                "use a shorter text or a larger capacity");
  }
  for (const std::int32_t id : tokens) {
    if (id < 0 || id >= model_.config().vocabulary) {
      throw Error(ErrorKind::kInput, "token id " + std::to_string(id) + " is not one of the " +
                                         std::to_string(model_.config().vocabulary) +
                                         " of the model");
    }
  }
  each_tile(count, options_.chunk_tokens, [&](std::int64_t begin, std::int64_t rows) {
    run_chunk(tokens.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(rows)),
              logits);
  });
}

void Session::run_chunk(std::span<const std::int32_t> tokens, const LogitsObserver& logits) {
  const auto count = static_cast<std::int64_t>(tokens.size());
  embed(tokens);
  for (std::int64_t i = 0; i < std::min(model_.config().layers, options_.layers); ++i) {
    const Model::Layer& layer = model_.layers_[static_cast<std::size_t>(i)];
    project_qkv(layer, i, count);
    attend(i, count);
    feed_forward(layer, count);
    if (options_.residual) options_.residual(i, position_, count, hidden_.data());
  }
  if (logits) stream_logits(count, logits);
  last_hidden_.assign(hidden_.end() - model_.config().hidden, hidden_.end());
  position_ += count;
}

/// Fills hidden_ with the embeddings and rotation_ with the angles of the chunk's positions.
void Session::embed(std::span<const std::int32_t> tokens) {
  const ModelConfig& c = model_.config();
  const auto count = static_cast<std::int64_t>(tokens.size());
  const std::int64_t half = c.head_dim / 2;
  hidden_.resize(static_cast<std::size_t>(count * c.hidden));
  rotation_.resize(static_cast<std::size_t>(count * c.head_dim));
  const StoredMatrix& embedding = model_.checkpoint_->weight(WeightRole::kEmbedding);
  each_row(count, [&](std::int64_t t) {
    embedding.load_row(tokens[t], hidden_.data() + t * c.hidden);
    float* cos = rotation_.data() + t * c.head_dim;
    for (std::int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position_ + t) * c.inverse_frequencies[i];
      cos[i] = static_cast<float>(std::cos(angle));
      cos[half + i] = static_cast<float>(std::sin(angle));
    }
  });
}

/// Fills queries_ and the chunk's part of the KV cache, both after RoPE.
void Session::project_qkv(const Model::Layer& layer, std::int64_t layer_index,
                          std::int64_t tokens) {
  const ModelConfig& c = model_.config();
  const RowKernels& kernels = row_kernels();
  const DType dtype = model_.compute();
  const std::int64_t half = c.head_dim / 2;
  const std::int64_t first_head = layer_index * c.kv_heads;
  each_strip(tokens, [&](std::int64_t begin, std::int64_t rows, Strip& strip) {
    each_row(rows, [&](std::int64_t r) {
      kernels.rms_norm(hidden_.data() + (begin + r) * c.hidden, layer.attention_norm.data(),
                       c.hidden, c.rms_epsilon, dtype, strip.row(r, c.hidden));
    });
    layer.qkv.apply(strip.activation.data(), rows, strip.product.data());
    each_row(rows, [&](std::int64_t r) {
      const std::int64_t t = begin + r;
      const float* cos = rotation_.data() + t * c.head_dim;
      float* x = strip.product.data() + r * layer.qkv.outputs();
      const auto place_head = [&](const std::vector<float>& norm, std::byte* out) {
        if (c.qk_norm) {
          kernels.rms_norm(x, norm.data(), c.head_dim, c.rms_epsilon, DType::kF32, x);
        }
        kernels.rotate(x, cos, cos + half, half, dtype, out);
        x += c.head_dim;
      };
      for (std::int64_t h = 0; h < c.heads; ++h) {
        place_head(layer.query_norm, row_of(queries_, h, t));
      }
      for (std::int64_t h = 0; h < c.kv_heads; ++h) {
        place_head(layer.key_norm, row_of(keys_, first_head + h, position_ + t));
      }
      for (std::int64_t h = 0; h < c.kv_heads; ++h, x += c.head_dim) {
        kernels.convert(x, c.head_dim, dtype, row_of(values_, first_head + h, position_ + t));
      }
    });
  });
}

void Session::attend(std::int64_t layer_index, std::int64_t tokens) {
  const auto context = [&](const HeadsTensor& cache) {
    const std::int64_t heads = model_.config().kv_heads;
    return cache.view()
        .heads_slice(layer_index * heads, (layer_index + 1) * heads)
        .tokens_slice(0, position_ + tokens);
  };
  const AttentionProblem problem{queries_.view().tokens_slice(0, tokens), context(keys_),
                                 context(values_), layer_index};
  if (options_.observer) options_.observer(problem);
  attention_(problem, attended_);
  assert(attended_.out.dtype() == DType::kF32 && attended_.out.heads() == problem.num_heads() &&
         attended_.out.tokens() == tokens && attended_.out.dim() == problem.head_dim());
}

/// Adds the attention's projection and then the SwiGLU block to hidden_.
void Session::feed_forward(const Model::Layer& layer, std::int64_t tokens) {
  const ModelConfig& c = model_.config();
  const RowKernels& kernels = row_kernels();
  const DType dtype = model_.compute();
  each_strip(tokens, [&](std::int64_t begin, std::int64_t rows, Strip& strip) {
    float* hidden = hidden_.data() + begin * c.hidden;
    each_row(rows, [&](std::int64_t r) {
      std::byte* out = strip.row(r, c.q_rows());
      for (std::int64_t h = 0; h < c.heads; ++h) {
        kernels.convert(attended_.out.row<float>(h, begin + r), c.head_dim, dtype,
                        out + static_cast<std::size_t>(h * c.head_dim) * dtype_size(dtype));
      }
    });
    layer.attention_out.add(strip.activation.data(), rows, hidden);
    each_row(rows, [&](std::int64_t r) {
      kernels.rms_norm(hidden + r * c.hidden, layer.ffn_norm.data(), c.hidden, c.rms_epsilon, dtype,
                       strip.row(r, c.hidden));
    });
    layer.gate_up.apply(strip.activation.data(), rows, strip.product.data());
    each_row(rows, [&](std::int64_t r) {
      const float* gate = strip.product.data() + r * 2 * c.ffn;
      kernels.swiglu(gate, gate + c.ffn, c.ffn, dtype, strip.row(r, c.ffn));
    });
    layer.down.add(strip.activation.data(), rows, hidden);
  });
}

void Session::stream_logits(std::int64_t tokens, const LogitsObserver& logits) const {
  const ModelConfig& c = model_.config();
  HeadsTensor values(DType::kF32, 1, std::min(tokens, kLogitRows), c.vocabulary);
  auto* out = values.row<float>(0, 0);
  each_tile(tokens, kLogitRows, [&](std::int64_t begin, std::int64_t rows) {
    model_.logits(hidden_.data() + begin * c.hidden, rows, out);
    logits(position_ + begin, rows, out);
  });
}

std::vector<float> Session::last_logits() const {
  if (last_hidden_.empty()) {
    throw Error(ErrorKind::kUsage, "a session has no logits before its first token is run");
  }
  std::vector<float> logits(static_cast<std::size_t>(model_.config().vocabulary));
  model_.logits(last_hidden_.data(), 1, logits.data());
  return logits;
}

void Session::rewind(std::int64_t position) {
  if (position < 0 || position > position_) {
    throw Error(ErrorKind::kUsage, "a session of " + std::to_string(position_) +
                                       " tokens cannot go back to position " +
                                       std::to_string(position));
  }
  position_ = position;
  last_hidden_.clear();
}

double negative_log_likelihood(std::span<const float> logits, std::int32_t token) {
  const float largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0.0;
  for (const float x : logits) sum += double{std::exp(x - largest)};
  return std::log(sum) + largest - logits[static_cast<std::size_t>(token)];
}

TextLikelihood::TextLikelihood(std::span<const std::int32_t> tokens, std::int64_t vocabulary)
    : tokens_(tokens.begin(), tokens.end()), vocabulary_(vocabulary) {
  if (tokens.size() < 2) {
    throw Error(ErrorKind::kUsage, "a perplexity needs a text of at least two tokens",
                "use a longer text");
  }
  losses_.resize(tokens.size() - 1);
}

void TextLikelihood::add(std::int64_t first, std::int64_t rows, const float* logits) {
  each_row(std::min(rows, std::ssize(losses_) - first), [&](std::int64_t r) {
    losses_[first + r] = negative_log_likelihood(
        {logits + r * vocabulary_, static_cast<std::size_t>(vocabulary_)}, tokens_[first + r + 1]);
  });
}

double TextLikelihood::perplexity() const {
  return std::exp(std::accumulate(losses_.begin(), losses_.end(), 0.0) /
                  static_cast<double>(losses_.size()));
}

namespace {

TextLikelihood run_text(const Model& model, std::span<const std::int32_t> tokens,
                        const AttentionFunction& attention) {
  TextLikelihood likelihood(tokens, model.config().vocabulary);
  Session session(model, attention, {.capacity = std::ssize(tokens)});
  session.run(tokens, [&](std::int64_t first, std::int64_t rows, const float* logits) {
    likelihood.add(first, rows, logits);
  });
  return likelihood;
}

}  // namespace

std::vector<double> negative_log_likelihoods(const Model& model,
                                             std::span<const std::int32_t> tokens,
                                             const AttentionFunction& attention) {
  return run_text(model, tokens, attention).losses();
}

double perplexity(const Model& model, std::span<const std::int32_t> tokens,
                  const AttentionFunction& attention) {
  return run_text(model, tokens, attention).perplexity();
}

std::int32_t argmax(std::span<const float> logits) {
  return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

}  // namespace sw
