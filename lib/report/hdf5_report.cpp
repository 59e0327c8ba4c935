#include "report/hdf5_report.hpp"

#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <map>

#include "core/error.hpp"
#include "trace/hdf5.hpp"

namespace sw {
namespace {

using hdf5::check;

std::string padded(std::int64_t number, int digits) {
  char text[24];
  std::snprintf(text, sizeof text, "%0*lld", digits, static_cast<long long>(number));
  return text;
}

/// A creation list of `kind` without times of its objects: the same report is the same bytes.
hdf5::PropertyList timeless(hid_t kind) {
  hdf5::PropertyList creation(H5Pcreate(kind));
  check(H5Pset_obj_track_times(creation.get(), false));
  return creation;
}

hdf5::Group make_group(hid_t parent, const std::string& name) {
  const hdf5::PropertyList creation = timeless(H5P_GROUP_CREATE);
  return hdf5::Group(H5Gcreate2(parent, name.c_str(), H5P_DEFAULT, creation.get(), H5P_DEFAULT));
}

hid_t stored_type(float) { return H5T_IEEE_F32LE; }
hid_t stored_type(double) { return H5T_IEEE_F64LE; }
hid_t stored_type(std::int64_t) { return H5T_STD_I64LE; }
hid_t stored_type(std::int32_t) { return H5T_STD_I32LE; }
hid_t stored_type(std::uint8_t) { return H5T_STD_U8LE; }

/// A row-major array: a small one within its header, others shuffled and deflated in chunks of as
/// many last dimensions as fit. A sweep has many small ones, and chunks cost more than their data.
template <class T>
hdf5::Dataset write_array(hid_t parent, const std::string& name, std::span<const T> values,
                          const std::vector<hsize_t>& shape) {
  const auto rank = static_cast<int>(shape.size());
  const hdf5::Space space(H5Screate_simple(rank, shape.data(), nullptr));
  const hdf5::PropertyList creation = timeless(H5P_DATASET_CREATE);
  if (!values.empty()) {
    constexpr std::size_t kMostInHeader = 4096;
    if (values.size_bytes() <= kMostInHeader) {
      check(H5Pset_layout(creation.get(), H5D_COMPACT));
    } else {
      std::vector<hsize_t> chunk = shape;
      hsize_t room = hsize_t{1} << 18;  // elements
      for (std::size_t i = shape.size(); i-- > 0; room /= chunk[i]) {
        chunk[i] = std::clamp<hsize_t>(room, 1, shape[i]);
      }
      check(H5Pset_chunk(creation.get(), rank, chunk.data()));
      check(H5Pset_shuffle(creation.get()));
      check(H5Pset_deflate(creation.get(), 1));
    }
  }
  const hid_t type = stored_type(T{});
  hdf5::Dataset dataset(H5Dcreate2(parent, name.c_str(), type, space.get(), H5P_DEFAULT,
                                   creation.get(), H5P_DEFAULT));
  // The files are little-endian, and so are all machines that this project runs on.
  if (!values.empty()) {
    check(H5Dwrite(dataset.get(), type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()));
  }
  return dataset;
}

template <class T>
void write_list(hid_t parent, const std::string& name, const std::vector<T>& values) {
  write_array<T>(parent, name, values, {values.size()});
}

void write_metric(hid_t parent, const std::string& name, const MetricArray& array) {
  if (array.empty()) return;
  write_array<float>(parent, name, array.values,
                     {static_cast<hsize_t>(array.layers), static_cast<hsize_t>(array.units),
                      static_cast<hsize_t>(array.columns)});
}

void write_double_attribute(hid_t object, const std::string& name, double value) {
  const hdf5::Space space(H5Screate(H5S_SCALAR));
  const hdf5::Attribute attribute(
      H5Acreate2(object, name.c_str(), H5T_IEEE_F64LE, space.get(), H5P_DEFAULT, H5P_DEFAULT));
  check(H5Awrite(attribute.get(), H5T_NATIVE_DOUBLE, &value));
}

class CellWriter {
 public:
  explicit CellWriter(hid_t cells) : cells_(cells) {}

  void write(const CellRecord& cell, std::size_t index, const std::string& input) {
    const hdf5::Group group = make_group(cells_, padded(static_cast<std::int64_t>(index), 4));
    const hid_t id = group.get();
    hdf5::write_attribute(id, "method", cell.method);
    write_double_attribute(id, "density",
                           cell.density.value_or(std::numeric_limits<double>::quiet_NaN()));
    hdf5::write_attribute(id, "input", input);
    hdf5::write_attribute(id, "phase", std::string(phase_name(cell.phase)));
    hdf5::write_attribute(id, "block", cell.block);
    hdf5::write_attribute(id, "row_sets", cell.row_sets);
    std::vector<std::int64_t> layers;
    std::vector<std::uint8_t> sparse;
    for (const LayerRecord& layer : cell.layers) {
      layers.push_back(layer.layer);
      sparse.push_back(layer.sparse ? 1 : 0);
    }
    write_list(id, "layer", layers);
    write_list(id, "sparse", sparse);
    for (const MetricInfo& metric : list_metrics()) {
      write_metric(id, std::string(metric.name), cell.metric(metric.metric));
    }
    write_metric(id, "density", cell.density_rows);
    write_metric(id, "answer_recall", cell.answer_recall);
    if (cell.attribution) {
      const hdf5::Group parts = make_group(id, "attribution");
      for (std::size_t v = 0; v < kNumVariants; ++v) {
        write_metric(parts.get(), variant_name(static_cast<Variant>(v)),
                     cell.attribution->recall[v]);
      }
      write_losses(parts.get(), cell);
    }
    write_times(id, cell);
    if (cell.saved.empty()) return;
    const hdf5::Group selections = make_group(id, "selection");
    for (const SavedLayer& layer : cell.saved) {
      const hdf5::Group saved = make_group(selections.get(), padded(layer.layer, 2));
      write_selection(saved.get(), layer);
    }
  }

 private:
  static void write_losses(hid_t group, const CellRecord& cell) {
    MetricArray losses(std::ssize(cell.layers), cell.heads(),
                       static_cast<std::int64_t>(kNumLossParts), 0.0f);
    const std::vector<AttributionSummary::Parts> parts = loss_of_heads(cell);
    for (std::size_t i = 0; i < parts.size(); ++i) {
      std::copy(parts[i].part.begin(), parts[i].part.end(),
                losses.values.begin() + static_cast<std::ptrdiff_t>(i * kNumLossParts));
    }
    write_metric(group, "loss", losses);
    std::string names;
    for (std::size_t p = 0; p < kNumLossParts; ++p) {
      names += (p > 0 ? "," : "") + std::string(loss_part_name(static_cast<LossPart>(p)));
    }
    hdf5::write_attribute(group, "loss_parts", names);
  }

  static void write_times(hid_t group, const CellRecord& cell) {
    if (cell.times.empty()) return;
    std::vector<double> seconds;
    std::vector<std::int64_t> layers;
    std::vector<std::int64_t> steps;
    for (const TimeSample& sample : cell.times) {
      seconds.insert(seconds.end(), sample.times.seconds.begin(), sample.times.seconds.end());
      if (!sample.attended) seconds.back() = std::numeric_limits<double>::quiet_NaN();
      layers.push_back(sample.layer);
      steps.push_back(sample.step);
    }
    static_assert(static_cast<int>(Stage::kAttention) == kNumStages - 1);
    const hdf5::Dataset dataset =
        write_array<double>(group, "seconds", seconds, {layers.size(), kNumStages});
    std::string stages;
    for (const char* name : kStageNames) stages += (stages.empty() ? "" : ",") + std::string(name);
    hdf5::write_attribute(dataset.get(), "stages", stages);
    write_list(group, "seconds_layer", layers);
    write_list(group, "seconds_step", steps);
  }

  void write_selection(hid_t group, const SavedLayer& layer) {
    const std::int64_t groups = layer.selections.front().groups();
    hdf5::write_attribute(group, "groups", groups);
    std::vector<std::int64_t> row_ptr = {0};
    std::vector<std::int32_t> blocks;
    std::vector<std::int64_t> token_ptr = {0};
    std::vector<std::int32_t> tokens;
    std::vector<std::int64_t> token_window;
    std::vector<std::int64_t> token_sink;
    for (std::int64_t g = 0; g < groups; ++g) {
      for (const BlockSelection& selection : layer.selections) {
        for (std::int64_t r = 0; r < selection.rows(); ++r) {
          const auto row = selection.blocks(g, r);
          blocks.insert(blocks.end(), row.begin(), row.end());
          row_ptr.push_back(static_cast<std::int64_t>(blocks.size()));
          const auto singles = selection.tokens(g, r);
          tokens.insert(tokens.end(), singles.begin(), singles.end());
          token_ptr.push_back(static_cast<std::int64_t>(tokens.size()));
        }
      }
    }
    for (const BlockSelection& selection : layer.selections) {
      token_window.push_back(selection.token_window());
      token_sink.push_back(selection.token_sink());
    }
    write_list(group, "row_ptr", row_ptr);
    write_list(group, "block", blocks);
    if (!tokens.empty()) {
      write_list(group, "token_ptr", token_ptr);
      write_list(group, "token", tokens);
    }
    write_list(group, "token_window", token_window);
    write_list(group, "token_sink", token_sink);
    if (layer.scores == nullptr) return;
    // The densities of a method share their scores: stored once, with a hard link from each cell.
    const auto found = scores_.find(layer.scores.get());
    if (found != scores_.end()) {
      check(
          H5Lcreate_hard(cells_, found->second.c_str(), group, "score", H5P_DEFAULT, H5P_DEFAULT));
      return;
    }
    const Matrix& matrix = layer.scores->values;
    const std::vector<float> values(matrix.values().begin(), matrix.values().end());
    write_array<float>(group, "score", values,
                       {static_cast<hsize_t>(matrix.rows()), static_cast<hsize_t>(matrix.cols())});
    std::string path(static_cast<std::size_t>(check(H5Iget_name(group, nullptr, 0))), '\0');
    check(H5Iget_name(group, path.data(), path.size() + 1));
    scores_[layer.scores.get()] = path + "/score";
  }

  hid_t cells_;
  std::map<const BlockScores*, std::string> scores_;
};

/// The arrays of one cell of a model evaluation.
void write_model_cell(hid_t group, const ModelCell& cell) {
  const auto n = static_cast<hsize_t>(cell.entries.size());
  const auto layers = static_cast<hsize_t>(cell.entries.front()->usage.size());
  std::vector<std::int64_t> samples, prompt_tokens, decode_steps, scored_from;
  std::vector<std::int64_t> reply_ptr = {0}, window_ptr = {0};
  std::vector<std::int32_t> reply_ids;
  std::vector<double> prefill_seconds, decode_seconds, scores;
  std::vector<float> nll, kl, delta_p;
  std::vector<std::uint8_t> same_top;
  std::vector<float> density(layers * n), density_decode(layers * n);
  std::vector<double> hidden_error(layers * n);
  const auto append = [](auto& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  for (std::size_t i = 0; i < n; ++i) {
    const RunEntry& entry = *cell.entries[i];
    samples.push_back(entry.sample);
    prompt_tokens.push_back(entry.prompt.tokens);
    prefill_seconds.push_back(entry.prefill_seconds);
    decode_seconds.push_back(entry.decode_seconds);
    decode_steps.push_back(entry.decode_steps);
    for (std::size_t l = 0; l < layers; ++l) {
      const LayerUsage& usage = entry.usage[l];
      density[l * n + i] = static_cast<float>(usage.pairs.density());
      density_decode[l * n + i] = usage.kv_tokens_context > 0
                                      ? static_cast<float>(usage.kv_tokens_read) /
                                            static_cast<float>(usage.kv_tokens_context)
                                      : std::numeric_limits<float>::quiet_NaN();
    }
    if (entry.reply) {
      scores.push_back(entry.reply->score);
      append(reply_ids, entry.reply->ids);
      reply_ptr.push_back(std::ssize(reply_ids));
    }
    if (entry.window) {
      const WindowResult& window = *entry.window;
      append(nll, window.nll);
      append(kl, window.kl);
      append(delta_p, window.delta_p);
      append(same_top, window.same_top);
      window_ptr.push_back(std::ssize(nll));
      scored_from.push_back(window.scored_from);
      for (std::size_t l = 0; l < window.hidden_error.size(); ++l) {
        hidden_error[l * n + i] = window.hidden_error[l];
      }
    }
  }
  write_list(group, "sample", samples);
  write_list(group, "prompt_tokens", prompt_tokens);
  write_list(group, "prefill_seconds", prefill_seconds);
  write_list(group, "decode_seconds", decode_seconds);
  write_list(group, "decode_steps", decode_steps);
  write_array<float>(group, "density", density, {layers, n});
  write_array<float>(group, "density_decode", density_decode, {layers, n});
  if (!scores.empty()) {
    write_list(group, "score", scores);
    write_list(group, "reply_ids", reply_ids);
    write_list(group, "reply_ptr", reply_ptr);
  }
  if (nll.empty()) return;
  write_list(group, "nll", nll);
  write_list(group, "window_ptr", window_ptr);
  write_list(group, "scored_from", scored_from);
  if (kl.empty()) return;
  write_list(group, "kl", kl);
  write_list(group, "delta_p", delta_p);
  write_list(group, "same_top", same_top);
  write_array<double>(group, "hidden_error", hidden_error, {layers, n});
}

/// Creates the file `path`, calls body(group /cells) and closes it; `name` is for messages.
template <class F>
void write_file_of_cells(const std::string& created, const std::string& path,
                         const std::string& name, F&& body) {
  hdf5::initialise();
  try {
    const hdf5::PropertyList access(H5Pcreate(H5P_FILE_ACCESS));
    check(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG));
    check(H5Pset_file_locking(access.get(), false, true));
    check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110));
    const hdf5::PropertyList creation = timeless(H5P_FILE_CREATE);
    hdf5::File file(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation.get(), access.get()));
    hdf5::write_attribute(file.get(), "format", std::string("sketchwalk-report"));
    hdf5::write_attribute(file.get(), "version", std::int64_t{kReportVersion});
    hdf5::write_attribute(file.get(), "created", created);
    hdf5::Group cells = make_group(file.get(), "cells");
    body(cells.get());
    cells.close();
    file.close();
  } catch (const hdf5::Failure& failure) {
    throw Error(ErrorKind::kOutput, "cannot write '" + name + "': " + failure.reason,
                "check the space on that disk, or choose another place with -o");
  }
}

}  // namespace

void write_hdf5(const Report& report, const std::string& path, const std::string& name) {
  write_file_of_cells(report.created, path, name, [&](hid_t cells) {
    CellWriter writer(cells);
    for (std::size_t i = 0; i < report.cells.size(); ++i) {
      const CellRecord& cell = report.cells[i];
      if (cell.status == CellStatus::kOk) writer.write(cell, i, report.inputs[cell.input].path);
    }
  });
}

void write_hdf5(const ModelReport& report, const ModelSummary& summary, const std::string& path,
                const std::string& name) {
  write_file_of_cells(report.created, path, name, [&](hid_t cells) {
    for (std::size_t i = 0; i < summary.cells.size(); ++i) {
      const ModelCell& cell = summary.cells[i];
      if (cell.samples == 0) continue;
      const ArmInfo& arm = report.arms[cell.arm];
      const hdf5::Group group = make_group(cells, padded(static_cast<std::int64_t>(i), 4));
      hdf5::write_attribute(group.get(), "method", arm.method);
      write_double_attribute(group.get(), "density",
                             arm.density.value_or(std::numeric_limits<double>::quiet_NaN()));
      hdf5::write_attribute(group.get(), "input", report.tasks[cell.task].name);
      hdf5::write_attribute(group.get(), "arm", arm.label);
      write_model_cell(group.get(), cell);
    }
  });
}

void write_hdf5(const ProfileReport& report, const std::string& path, const std::string& name) {
  write_file_of_cells(report.created, path, name, [&](hid_t cells) {
    for (std::size_t i = 0; i < report.measurements.size(); ++i) {
      const Measurement& m = report.measurements[i];
      if (m.seconds.empty()) continue;
      const hdf5::Group group = make_group(cells, padded(static_cast<std::int64_t>(i), 4));
      hdf5::write_attribute(group.get(), "method", m.method);
      write_double_attribute(group.get(), "density",
                             m.density.value_or(std::numeric_limits<double>::quiet_NaN()));
      hdf5::write_attribute(group.get(), "phase", m.phase);
      hdf5::write_attribute(group.get(), "part", m.part);
      hdf5::write_attribute(group.get(), "implementation", m.implementation);
      hdf5::write_attribute(group.get(), "tokens", m.shape.tokens);
      write_list(group.get(), "seconds", m.seconds);
    }
  });
}

}  // namespace sw
