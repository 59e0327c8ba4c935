#include "report/report_arrays.hpp"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/error.hpp"
#include "trace/hdf5.hpp"

namespace sw {

using hdf5::check;

struct ReportArrays::State {
  std::string path;
  std::uint64_t bytes = 0;
  hdf5::File file;

  Error failed(const std::string& what) const {
    return Error(ErrorKind::kInput, "'" + path + "': " + what,
                 "make the report again, or move this file away to go on without its arrays");
  }
};

namespace {

constexpr std::int64_t kMaxSelection = std::int64_t{1} << 27;

std::string place_of(const ReportCell& cell, const std::string& name) {
  return "/cells/" + cell.id + "/" + name;
}

/// Whether every part of an absolute path is there, without links, which may lead out of the file.
bool exists(hid_t file, const std::string& place) {
  for (std::size_t at = place.find('/', 1);; at = place.find('/', at + 1)) {
    if (!hdf5::has_member(file, place.substr(0, at))) return false;
    if (at == std::string::npos) return true;
  }
}

}  // namespace

ReportArrays::ReportArrays(const ReportFile& report) : state_(std::make_unique<State>()) {
  state_->path = report.arrays_path().value_or("");
  hdf5::initialise();
  try {
    state_->bytes = std::filesystem::file_size(state_->path);
    const hdf5::PropertyList access(H5Pcreate(H5P_FILE_ACCESS));
    check(H5Pset_file_locking(access.get(), false, true));
    state_->file = hdf5::File(H5Fopen(state_->path.c_str(), H5F_ACC_RDONLY, access.get()));
    const auto created = hdf5::read_text_attribute(state_->file.get(), "created");
    if (created.value_or("") != report.created()) {
      throw state_->failed("is of another run than '" + report.path() + "'");
    }
  } catch (const hdf5::Failure& failure) {
    throw state_->failed("cannot be read: " + failure.reason);
  }
}

ReportArrays::~ReportArrays() = default;
ReportArrays::ReportArrays(ReportArrays&&) noexcept = default;

std::optional<ReportArray> ReportArrays::read(const ReportCell& cell, const std::string& name,
                                              std::int64_t max_values) const {
  return read_at(place_of(cell, name), max_values);
}

std::optional<ReportArray> ReportArrays::read_at(const std::string& place,
                                                 std::int64_t max_values) const {
  try {
    if (!exists(state_->file.get(), place)) return std::nullopt;
    const hdf5::Dataset dataset = hdf5::open_dataset(state_->file.get(), place, state_->bytes);
    const hdf5::Space space(H5Dget_space(dataset.get()));
    ReportArray array;
    array.shape = hdf5::extents(space);
    const auto count = static_cast<std::int64_t>(check(H5Sget_simple_extent_npoints(space.get())));
    if (count > max_values) throw state_->failed(place + " is too large");
    array.values.resize(static_cast<std::size_t>(count));
    if (count > 0) {
      check(H5Dread(dataset.get(), H5T_NATIVE_DOUBLE, H5S_ALL, H5S_ALL, H5P_DEFAULT,
                    array.values.data()));
    }
    return array;
  } catch (const hdf5::Failure& failure) {
    throw state_->failed(place + " cannot be read: " + failure.reason);
  }
}

std::vector<std::int64_t> ReportArrays::selection_layers(const ReportCell& cell) const {
  const std::string place = place_of(cell, "selection");
  std::vector<std::int64_t> layers;
  try {
    if (!exists(state_->file.get(), place)) return layers;
    const hdf5::Group group(H5Gopen2(state_->file.get(), place.c_str(), H5P_DEFAULT));
    const auto visit = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
      char* end = nullptr;
      const long long layer = std::strtoll(name, &end, 10);
      if (*end == '\0') static_cast<std::vector<std::int64_t>*>(data)->push_back(layer);
      return 0;
    };
    hsize_t start = 0;
    check(H5Literate(group.get(), H5_INDEX_NAME, H5_ITER_NATIVE, &start, visit, &layers));
  } catch (const hdf5::Failure& failure) {
    throw state_->failed(place + " cannot be read: " + failure.reason);
  }
  std::ranges::sort(layers);
  return layers;
}

void ReportArrays::add_single_keys(const ReportCell& cell, const std::string& place,
                                   SelectionMap& map) const {
  const auto ptr = read_at(place + "/token_ptr", kMaxSelection);
  const auto token = read_at(place + "/token", kMaxSelection);
  if (!ptr || !token) return;
  const std::int64_t block = cell.json->at("block").get<std::int64_t>();
  const auto bin = [&](std::int64_t b) {
    return static_cast<std::size_t>(b * map.bins / map.blocks);
  };
  for (std::size_t row = 0; row + 1 < ptr->values.size(); ++row) {
    const double begin = ptr->values[row];
    const double end = ptr->values[row + 1];
    if (!(0 <= begin && begin <= end && end <= static_cast<double>(token->values.size()))) {
      throw state_->failed(place + "/token_ptr does not ascend within the keys");
    }
    const std::int64_t query = static_cast<std::int64_t>(row) % map.blocks;
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      const double key = token->values[i];
      if (!(0 <= key && key < static_cast<double>((query + 1) * block))) {
        throw state_->failed(place + "/token names a key that a row cannot see");
      }
      map.kept[bin(query) * static_cast<std::size_t>(map.bins) +
               bin(static_cast<std::int64_t>(key) / block)] += 1.0 / static_cast<double>(block);
    }
  }
}

SelectionMap ReportArrays::selection(const ReportCell& cell, std::int64_t layer,
                                     std::int64_t blocks, std::int64_t max_bins) const {
  const std::string digits = std::to_string(layer);
  const std::string place = place_of(cell, "selection/") + (digits.size() < 2 ? "0" : "") + digits;
  const auto row_ptr = read_at(place + "/row_ptr", kMaxSelection);
  const auto block = read_at(place + "/block", kMaxSelection);
  const auto rows = row_ptr ? std::ssize(row_ptr->values) - 1 : -1;
  if (!block || rows < 1 || blocks < 1 || rows % blocks != 0) {
    throw state_->failed(place + " is not a selection of " + std::to_string(blocks) +
                         " query blocks");
  }
  SelectionMap map;
  map.layer = layer;
  map.blocks = blocks;
  map.bins = std::min(blocks, max_bins);
  const auto bins = static_cast<std::size_t>(map.bins);
  map.kept.assign(bins * bins, 0.0);
  std::vector<double> pairs(bins * bins, 0.0);
  const auto bin = [&](std::int64_t b) { return static_cast<std::size_t>(b * map.bins / blocks); };
  const auto row_sets = static_cast<double>(rows / blocks);
  for (std::int64_t q = 0; q < blocks; ++q) {
    for (std::int64_t k = 0; k <= q; ++k) pairs[bin(q) * bins + bin(k)] += row_sets;
  }
  for (std::int64_t row = 0; row < rows; ++row) {
    const double begin = row_ptr->values[static_cast<std::size_t>(row)];
    const double end = row_ptr->values[static_cast<std::size_t>(row) + 1];
    if (!(0 <= begin && begin <= end && end <= static_cast<double>(block->values.size()))) {
      throw state_->failed(place + "/row_ptr does not ascend within the blocks");
    }
    for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
      const double key = block->values[i];
      if (!(0 <= key && key <= static_cast<double>(row % blocks))) {
        throw state_->failed(place + "/block names a block that a row cannot see");
      }
      map.kept[bin(row % blocks) * bins + bin(static_cast<std::int64_t>(key))] += 1.0;
    }
  }
  add_single_keys(cell, place, map);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    if (pairs[i] > 0) map.kept[i] /= pairs[i];
  }
  return map;
}

}  // namespace sw
