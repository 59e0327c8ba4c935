#include "eval/attribution.hpp"

#include <cmath>
#include <utility>
#include <vector>

#include "core/text.hpp"
#include "metric/mass_recall.hpp"
#include "metric/oracle_gap.hpp"
#include "policy/options.hpp"
#include "policy/sketchwalk.hpp"

namespace sw {
namespace {

using Changes = std::vector<std::pair<std::string, std::string>>;

/// `spec` with some options set to other values.
MethodSpec changed(MethodSpec spec, const Changes& changes) {
  for (const auto& change : changes) {
    std::erase_if(spec.options, [&](const auto& option) { return option.first == change.first; });
    spec.options.push_back(change);
  }
  return spec;
}

std::string text_of(const MethodSpec& spec) {
  std::string text = spec.name;
  char separator = ':';
  for (const auto& [name, value] : spec.options) {
    text.append(1, separator).append(name).append("=").append(value);
    separator = ',';
  }
  return text;
}

}  // namespace

std::optional<std::array<std::string, kNumVariants>> attribution_specs(const Policy& policy,
                                                                       std::int64_t head_dim) {
  const auto form = sketchwalk_form(policy.spec(), 0);
  if (!form) return std::nullopt;
  const SketchParams& method = form->sketch;
  const MethodSpec spec = MethodSpec::parse(policy.spec());
  const auto yes_no = [](bool value) { return std::string(value ? "true" : "false"); };

  const Changes no_walk = {{"walk", "none"}};
  const Changes exact = {{"sketch", "exact"}, {"walk", "none"}};
  // Dividing by it turns the scale of exact scores, 1 / sqrt(d'), into that of attention.
  const double natural =
      std::sqrt(static_cast<double>(head_dim) / static_cast<double>(next_power_of_two(head_dim)));
  const MethodSpec pooled = changed(changed(spec, exact), {{"hadamard", "unbiased"},
                                                           {"temperature", format_double(natural)},
                                                           {"causal_sketch", "true"},
                                                           {"aggregation", "per_head"},
                                                           {"sharpness", "1"},
                                                           {"normalize_walk", "true"}});
  const bool head_mean = method.aggregation == SketchParams::Aggregation::kHeadMean;
  std::array<std::string, kNumVariants> specs;
  const auto set = [&](Variant variant, const MethodSpec& value) {
    specs[static_cast<std::size_t>(variant)] = text_of(value);
  };
  set(Variant::kTokenKeys, changed(pooled, {{"key_pool", "1"}}));
  set(Variant::kPooledKeys, pooled);
  set(Variant::kMask, changed(pooled, {{"causal_sketch", yes_no(method.causal)}}));
  set(Variant::kTemperature,
      changed(pooled, {{"hadamard", method.unbiased ? "unbiased" : "unnormalized"},
                       {"temperature", format_double(method.temperature)}}));
  set(Variant::kAggregation, changed(pooled, {{"aggregation", head_mean ? "head_mean" : "per_head"},
                                              {"sharpness", format_double(method.sharpness)},
                                              {"normalize_walk", yes_no(method.normalize)}}));
  set(Variant::kExact, changed(spec, exact));
  set(Variant::kSketchOnly, changed(spec, no_walk));
  return specs;
}

BlockGrid recall_best_per_head(const BlockMass& mass, const BlockSelection& selection) {
  BlockSelection of_heads(selection.geometry(), mass.heads);
  for (std::int64_t h = 0; h < mass.heads; ++h) {
    const std::int64_t group = selection.group_of_head(h, mass.heads);
    for (std::int64_t r = 0; r < mass.rows; ++r) {
      of_heads.append_row(selection.blocks(group, r), selection.parts(group, r));
    }
  }
  of_heads.set_token_parts(selection.token_window(), selection.token_sink());
  return mass_recall(mass, best_selection(mass, of_heads));
}

}  // namespace sw
