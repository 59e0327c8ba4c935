#include "policy/query_lines.hpp"

#include <algorithm>
#include <cmath>

#include "core/parallel.hpp"
#include "policy/head_scores.hpp"

namespace sw {

void last_query_probabilities(const AttentionProblem& problem, std::int64_t count,
                              const ProbabilityRow& body) {
  const std::int64_t queries = std::min(count, problem.queries());
  const std::int64_t dim = problem.head_dim();
  parallel_for(problem.num_kv_heads(), [&](std::int64_t g, int) {
    const std::vector<float> keys = load_tokens(problem.k, g, 0, problem.tokens());
    std::vector<double> p;
    for (std::int64_t h = g * problem.group(); h < (g + 1) * problem.group(); ++h) {
      const std::vector<float> rows =
          load_tokens(problem.q, h, problem.queries() - queries, problem.queries());
      for (std::int64_t i = 0; i < queries; ++i) {
        p.resize(static_cast<std::size_t>(problem.tokens() - queries + i + 1));
        for (std::size_t t = 0; t < p.size(); ++t) {
          const float* key = keys.data() + static_cast<std::int64_t>(t) * dim;
          p[t] = problem.scale() * dot(rows.data() + i * dim, key, dim);
        }
        softmax(p);
        body(h, i, p);
      }
    }
  });
}

std::vector<LineMass> last_query_lines(const AttentionProblem& problem, std::int64_t count) {
  const auto tokens = static_cast<std::size_t>(problem.tokens());
  std::vector<LineMass> lines(static_cast<std::size_t>(problem.num_heads()),
                              {std::vector<double>(tokens), std::vector<double>(tokens)});
  const auto queries = static_cast<double>(std::min(count, problem.queries()));
  last_query_probabilities(problem, count,
                           [&](std::int64_t head, std::int64_t, std::span<const double> p) {
                             LineMass& line = lines[static_cast<std::size_t>(head)];
                             for (std::size_t t = 0; t < p.size(); ++t) {
                               line.vertical[t] += p[t] / queries;
                               line.slash[p.size() - 1 - t] += p[t] / queries;
                             }
                           });
  return lines;
}

Matrix attention_received(const AttentionProblem& problem, const Backend& backend) {
  const std::int64_t tokens = problem.tokens();
  const std::int64_t dim = problem.head_dim();
  const std::int64_t group = problem.group();
  constexpr std::int64_t kBlock = 64;
  Matrix received(problem.num_heads(), tokens);
  AttentionOutput output;
  for (std::int64_t g = 0; g < problem.num_kv_heads(); ++g) {
    const AttentionProblem part{problem.q.heads_slice(g * group, (g + 1) * group),
                                problem.k.heads_slice(g, g + 1), problem.v.heads_slice(g, g + 1),
                                problem.layer};
    backend.attend(part, BlockSelection::dense(part.geometry(kBlock)), output);
    HeadsTensor keys(DType::kF32, 1, tokens, dim + 1);
    HeadsTensor queries(DType::kF32, group, tokens, dim + 1);
    // The backend divides logits by sqrt(dim + 1).
    const double undo = std::sqrt(static_cast<double>(dim + 1));
    const auto scale = static_cast<float>(undo * problem.scale());
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t reversed = tokens - 1 - t;
      float* key = keys.row<float>(0, reversed);
      part.k.load_row(0, t, key);
      key[dim] = 1.0f;
      for (std::int64_t h = 0; h < group; ++h) {
        float* query = queries.row<float>(h, reversed);
        part.q.load_row(h, t, query);
        for (std::int64_t x = 0; x < dim; ++x) query[x] *= scale;
        query[dim] =
            static_cast<float>(-undo * output.lse[static_cast<std::size_t>(h * tokens + t)]);
      }
    }
    HeadsView askers = keys.view();
    askers.heads = group;
    askers.head_stride = 0;
    const AttentionProblem transposed{askers, queries.view(), queries.view(), problem.layer};
    backend.attend(transposed, BlockSelection::dense(transposed.geometry(kBlock)), output);
    for (std::int64_t h = 0; h < group; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        received(g * group + h, t) =
            std::exp(output.lse[static_cast<std::size_t>(h * tokens + tokens - 1 - t)]);
      }
    }
  }
  return received;
}

std::vector<double> block_sums(std::span<const double> x, std::int64_t block) {
  const auto size = static_cast<std::size_t>(block);
  std::vector<double> sums((x.size() + size - 1) / size, 0.0);
  for (std::size_t t = 0; t < x.size(); ++t) sums[t / size] += x[t];
  return sums;
}

}  // namespace sw
