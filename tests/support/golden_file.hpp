#pragma once

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "attention/problem.hpp"
#include "support/golden_inputs.hpp"

/// Reading of tests/golden/*.json and building of the problems that they describe.
namespace sw::testing {

inline nlohmann::json golden_file(const std::string& name) {
  std::ifstream file(std::string(SW_TEST_DIR) + "/golden/" + name);
  return nlohmann::json::parse(file);
}

/// Q, K and V of one layer of a golden case, for `tokens` tokens.
struct GoldenLayer {
  HeadsTensor q, k, v;

  GoldenLayer(const nlohmann::json& test_case, std::int64_t layer, std::int64_t tokens) {
    const auto& shape = test_case.at("shape");
    const auto seed = test_case.at("input_seed").get<std::uint64_t>();
    const double offset = test_case.at("offset_scale");
    const double noise = test_case.at("noise_scale");
    const std::int64_t heads = shape.at("num_heads");
    const std::int64_t kv_heads = shape.at("num_kv_heads");
    const std::int64_t dim = shape.at("head_dim");
    q = golden_tensor(seed, layer, 0, heads, tokens, dim, offset, noise);
    k = golden_tensor(seed, layer, 1, kv_heads, tokens, dim, offset, noise);
    v = golden_tensor(seed, layer, 2, kv_heads, tokens, dim, offset, noise);
  }

  /// Queries [begin, end) over the keys [0, end).
  AttentionProblem problem(std::int64_t layer, std::int64_t begin, std::int64_t end) const {
    return {q.view().tokens_slice(begin, end), k.view().tokens_slice(0, end),
            v.view().tokens_slice(0, end), layer};
  }
};

}  // namespace sw::testing
