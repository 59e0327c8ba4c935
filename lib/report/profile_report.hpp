#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "eval/summary.hpp"
#include "report/environment.hpp"

/// The report of `sw-profile` as a value, and two of its forms: JSON as results/profile_schema.json
/// describes it, and a table. Everything but the measurements themselves is computed from
/// them (metrics.md, Latency).
namespace sw {

struct ProfileShape {
  std::int64_t tokens = 0;  ///< of the context
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t block = 64;
  std::int64_t batch = 1;  ///< sequences
  std::string dtype;       ///< "f32", "bf16" or "f16"

  bool operator==(const ProfileShape&) const = default;
};

/// One piece of code at one shape, with the seconds of every timed run. Dense attention has the
/// method "dense" and no density.
struct Measurement {
  std::string phase;  ///< "prefill" or "decode"
  /// "total", "attention", "selection" or a stage of it, or "masses": dense attention with masses.
  std::string part;
  std::string implementation;  ///< what ran: "avx512", "sm90", "torch flash"
  bool peer = false;           ///< code of others, for comparison
  ProfileShape shape;
  std::string method;             ///< canonical SPEC, or "dense"
  std::optional<double> density;  ///< as requested
  std::optional<double> realised_density;
  /// Of the selected blocks, for one run; of a selection the sum over its stages; 0 = not stated.
  double flops = 0.0;
  /// Each input read once, each output written once; sums likewise; 0 = not stated.
  double bytes = 0.0;
  std::vector<double> seconds;  ///< empty when skipped
  std::string reason;           ///< why it was skipped
};

/// What the machine can do, measured in the same run.
struct Roofline {
  std::string product;  ///< which matrix product, e.g. "oneDNN bf16 4096^3"
  double flops_per_second = 0.0;
  std::string copy;  ///< which copy
  double bytes_per_second = 0.0;
};

struct ProfileReport {
  std::string created;               ///< UTC, ISO 8601
  std::vector<std::string> command;  ///< argv
  Environment environment;
  std::int64_t warmup = 0;         ///< runs before the timed ones, which are not counted
  std::int64_t repeats = 0;        ///< timed runs of each
  std::string timer;               ///< "steady clock", "CUDA events"
  std::string cache;               ///< how caches were kept from helping
  std::vector<std::string> notes;  ///< clocks before and after, throttling
  Roofline roofline;
  std::vector<Measurement> measurements;
};

inline constexpr int kProfileReportVersion = 1;

/// One method at one density and shape against dense attention.
struct ProfileComparison {
  std::string phase;
  ProfileShape shape;
  std::string implementation;
  std::string method;
  double density = 0.0;
  Timing total;  ///< selection and attention
  struct Ratio {
    std::string implementation;  ///< of dense attention: our own first, then the peers'
    bool peer = false;
    double times = 0.0;  ///< its median over the median of `total`: above 1, sparse is quicker
  };
  std::vector<Ratio> dense;
};

/// Where a method starts to beat our own dense attention, over the lengths that were measured.
struct Crossover {
  std::string phase;
  std::string shape;  ///< "32/8/128 bf16": query heads, KV heads, head dim; " x8" with a batch of 8
  std::string implementation;
  std::string method;
  double density = 0.0;
  /// Shortest measured length from which on every longer one is quicker; none when the longest is
  /// not.
  std::optional<std::int64_t> tokens;
};

/// In the order of the measurements; needs a "total" of the method and one of dense attention.
std::vector<ProfileComparison> compare_with_dense(const ProfileReport& report);
std::vector<Crossover> crossovers(const ProfileReport& report);

/// Bytes that are not UTF-8 (of paths, say) become U+FFFD.
std::string profile_json_text(const ProfileReport& report);
/// The totals with their selection and attention in milliseconds, the kernels that they are made
/// of, ratios to dense attention, and crossovers.
std::string profile_table(const ProfileReport& report);

}  // namespace sw
