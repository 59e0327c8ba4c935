#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "common/cli.hpp"
#include "core/tensor.hpp"
#include "report/profile_report.hpp"

/// What the subcommands of sw-profile do alike: the grid, random data, peers and the report.
namespace sw {

struct ProfileOptions {
  std::vector<std::int64_t> tokens;
  std::vector<double> densities{0.1, 0.2};
  std::string method = "sketchwalk";
  std::vector<std::string> phases{"prefill", "decode"};
  std::int64_t num_heads = 0;
  std::int64_t num_kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t block = 64;
  std::string dtype = "bf16";
  std::int64_t warmup = 1;
  std::int64_t repeats = 5;
  std::string peer;
  std::string output;

  bool has_phase(const std::string& phase) const;
};

/// The options of the grid and the report; defaults are those in `options`.
void add_profile_options(CLI::App& command, ProfileOptions& options);

/// Throws Error(kUsage) for shapes that make no sense, and Error(kOutput) early when the report
/// cannot be written.
void check_profile_options(const ProfileOptions& options, bool force);

/// Standard normal numbers [heads, tokens, dim], the same for the same seed.
HeadsTensor random_heads(DType dtype, std::int64_t heads, std::int64_t tokens, std::int64_t dim,
                         std::uint64_t seed);

/// Calls every piece once a round, so that a machine that grows slower or faster does so for all of
/// them. The first rounds warm up: there `timed` is false, and a piece is not to keep its time.
using Piece = std::function<void(std::int64_t round, bool timed)>;
void run_rounds(const std::vector<Piece>& pieces, const ProfileOptions& options);

/// Runs the command of --peer with the grid as options (--phase, --tokens, --heads, --kv-heads,
/// --head-dim, --dtype, --repeats) for each phase and appends what it prints, a JSON list of
/// {"phase", "implementation", "tokens", "seconds": [...]}. Throws Error(kInput) when it fails or
/// prints anything else.
void add_peers(const ProfileOptions& options, ProfileReport& report);

/// Writes the two files and prints the table.
void finish_report(const ProfileOptions& options, const CommonOptions& common,
                   ProfileReport& report);

}  // namespace sw
