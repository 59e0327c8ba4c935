#include "shared.hpp"

#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "core/parallel.hpp"
#include "core/rng.hpp"
#include "core/text.hpp"
#include "report/files.hpp"
#include "report/hdf5_report.hpp"

namespace sw {
namespace {

/// Runs `command` in a shell and returns what it prints. Throws Error(kInput) when it fails.
std::string output_of(const std::string& command) {
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) {
    throw Error(ErrorKind::kResource, "cannot start '" + command + "'", "leave out --peer");
  }
  std::string text;
  char part[4096];
  for (std::size_t n = 0; (n = fread(part, 1, sizeof part, pipe)) > 0;) text.append(part, n);
  const int status = pclose(pipe);
  if (status == -1 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw Error(ErrorKind::kInput, "the peer failed: '" + command + "'",
                "its own message is above; leave out --peer to go without it");
  }
  return text;
}

template <class T>
void fill_normal(HeadsTensor& x, std::uint64_t seed, T (*convert)(float)) {
  parallel_for(x.heads(), [&](std::int64_t h, int) {
    SplitMix64 rng(seed + static_cast<std::uint64_t>(h) * 0x9E3779B97F4A7C15ULL);
    T* values = x.row<T>(h, 0);
    for (std::int64_t i = 0; i < x.tokens() * x.dim(); ++i) {
      values[i] = convert(static_cast<float>(rng.normal()));
    }
  });
}

}  // namespace

bool ProfileOptions::has_phase(const std::string& phase) const {
  return std::find(phases.begin(), phases.end(), phase) != phases.end();
}

void add_profile_options(CLI::App& command, ProfileOptions& options) {
  const auto positive = CLI::Range(std::int64_t{1}, std::int64_t{1} << 24);
  command.add_option("--tokens", options.tokens, "Context lengths")
      ->check(positive)
      ->capture_default_str();
  command
      .add_option("--density", options.densities, "Shares of the causal pairs to keep, in (0, 1]")
      ->capture_default_str();
  command.add_option("--method", options.method, "What selects, NAME or NAME:option=value,...")
      ->capture_default_str();
  command.add_option("--phase", options.phases, "What to time")
      ->check(CLI::IsMember({"prefill", "decode"}))
      ->capture_default_str();
  command.add_option("--heads", options.num_heads, "Query heads")
      ->check(positive)
      ->capture_default_str();
  command.add_option("--kv-heads", options.num_kv_heads, "Key and value heads")
      ->check(positive)
      ->capture_default_str();
  command.add_option("--head-dim", options.head_dim, "Head dimension")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command.add_option("--block", options.block, "Tokens of a block")
      ->check(positive)
      ->capture_default_str();
  command.add_option("--repeat", options.repeats, "Timed runs of each")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command.add_option("--warmup", options.warmup, "Runs before the timed ones")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  command.add_option("--peer", options.peer,
                     "Command that times dense attention of others at the same shapes, e.g. "
                     "\"python3 tests/bench/sdpa_peer.py --device cpu\"");
  command.add_option("-o,--output", options.output, "Report: writes OUT.json and OUT.h5")
      ->required();
}

void check_profile_options(const ProfileOptions& options, bool force) {
  if (options.num_heads % options.num_kv_heads != 0) {
    throw Error(ErrorKind::kUsage,
                "--heads " + std::to_string(options.num_heads) + " is no multiple of --kv-heads " +
                    std::to_string(options.num_kv_heads),
                "each KV head serves the same number of query heads");
  }
  for (const double density : options.densities) {
    if (!(density > 0.0 && density <= 1.0)) {
      throw Error(ErrorKind::kUsage, "density " + format_double(density) + " is outside (0, 1]",
                  "0.2 keeps a fifth of the causal pairs");
    }
  }
  check_report_paths(report_paths(options.output), force);
}

HeadsTensor random_heads(DType dtype, std::int64_t heads, std::int64_t tokens, std::int64_t dim,
                         std::uint64_t seed) {
  HeadsTensor x(dtype, heads, tokens, dim);
  switch (dtype) {
    case DType::kBf16:
      fill_normal<Bf16>(x, seed, to_bf16);
      break;
    case DType::kF16:
      fill_normal<F16>(x, seed, to_f16);
      break;
    case DType::kF32:
      fill_normal<float>(x, seed, [](float value) { return value; });
      break;
  }
  return x;
}

void run_rounds(const std::vector<Piece>& pieces, const ProfileOptions& options) {
  for (std::int64_t round = 0; round < options.warmup + options.repeats; ++round) {
    for (const Piece& piece : pieces) piece(round, round >= options.warmup);
  }
}

void add_peers(const ProfileOptions& options, ProfileReport& report) {
  if (options.peer.empty()) return;
  for (const std::string& phase : options.phases) {
    std::string command = options.peer + " --phase " + phase + " --tokens";
    for (const std::int64_t n : options.tokens) command += " " + std::to_string(n);
    command += " --heads " + std::to_string(options.num_heads) + " --kv-heads " +
               std::to_string(options.num_kv_heads) + " --head-dim " +
               std::to_string(options.head_dim) + " --dtype " + options.dtype + " --repeat " +
               std::to_string(options.repeats) + " --threads " + std::to_string(num_threads());
    const std::string text = output_of(command);
    try {
      for (const nlohmann::json& row : nlohmann::json::parse(text)) {
        Measurement m;
        m.phase = phase;
        m.part = "total";
        m.implementation = row.at("implementation").get<std::string>();
        m.peer = true;
        m.shape = {row.at("tokens").get<std::int64_t>(),
                   options.num_heads,
                   options.num_kv_heads,
                   options.head_dim,
                   options.block,
                   1,
                   options.dtype};
        m.method = "dense";
        m.seconds = row.at("seconds").get<std::vector<double>>();
        m.reason = row.value("reason", std::string());
        report.measurements.push_back(std::move(m));
      }
    } catch (const nlohmann::json::exception& error) {
      throw Error(ErrorKind::kInput,
                  "the peer printed something else than its times: " + std::string(error.what()),
                  "it must print a JSON list of {implementation, tokens, seconds}");
    }
  }
}

void finish_report(const ProfileOptions& options, const CommonOptions& common,
                   ProfileReport& report) {
  const ReportPaths paths = report_paths(options.output);
  write_report_files(
      paths, common.force, [&](const std::string& place) { write_hdf5(report, place, paths.hdf5); },
      profile_json_text(report));
  std::cout << profile_table(report) << "\nReport: " << paths.json << ", " << paths.hdf5
            << " (every run)\n";
}

}  // namespace sw
