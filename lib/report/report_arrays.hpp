#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "report/report_file.hpp"

/// The HDF5 file beside a report, for the programs that only read reports.
namespace sw {

/// Values of a cell in row-major order, [layer, head, query block or step] for metrics.
struct ReportArray {
  std::vector<std::int64_t> shape;
  std::vector<double> values;
};

/// Which key blocks the rows of one layer keep: a square of bins, each with the share of its
/// (row set, query block, key block) triples that is kept. A single key counts as its share of a
/// block.
struct SelectionMap {
  std::int64_t layer = 0;
  std::int64_t blocks = 0;   ///< query blocks of the layer
  std::int64_t bins = 0;     ///< min(blocks, most bins)
  std::vector<double> kept;  ///< [bins, bins]: query, key
};

class ReportArrays {
 public:
  /// Opens the file beside `report`. Throws Error(kInput) when it is damaged or was written by
  /// another run.
  explicit ReportArrays(const ReportFile& report);
  ~ReportArrays();
  ReportArrays(ReportArrays&&) noexcept;
  ReportArrays& operator=(ReportArrays&&) = delete;

  /// A dataset of a cell as numbers; nothing when the cell or the dataset is absent. Throws
  /// Error(kInput) when it cannot be read or is larger than `max_values`.
  std::optional<ReportArray> read(const ReportCell& cell, const std::string& name,
                                  std::int64_t max_values = std::int64_t{1} << 27) const;

  /// Layers whose selection was saved for a prefill cell with `blocks` query blocks, ascending.
  std::vector<std::int64_t> selection_layers(const ReportCell& cell) const;
  /// Throws Error(kInput) when the arrays of the layer contradict each other.
  SelectionMap selection(const ReportCell& cell, std::int64_t layer, std::int64_t blocks,
                         std::int64_t max_bins) const;

 private:
  struct State;
  void add_single_keys(const ReportCell& cell, const std::string& place, SelectionMap& map) const;
  std::optional<ReportArray> read_at(const std::string& place, std::int64_t max_values) const;

  std::unique_ptr<State> state_;
};

}  // namespace sw
