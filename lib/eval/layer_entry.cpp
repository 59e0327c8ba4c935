#include "eval/layer_entry.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "core/base64.hpp"
#include "core/error.hpp"

namespace sw {
namespace {

using Json = nlohmann::json;

static_assert(std::endian::native == std::endian::little);

/// Layers, units or tokens of anything: more is damage.
constexpr std::int64_t kMost = std::int64_t{1} << 31;
/// Values of all arrays of an entry: 1 GiB, as much as its text may have.
constexpr std::int64_t kMostValues = (std::int64_t{1} << 30) / sizeof(float);

[[noreturn]] void fail(const std::string& what) {
  throw Error(ErrorKind::kInput, "a journal entry is not one of a layer: " + what,
              "delete the journal, or choose another -o");
}

template <class T>
std::string pack(std::span<const T> values) {
  return to_base64(std::as_bytes(values));
}

template <class T>
std::vector<T> unpack(const Json& json) {
  const auto bytes = from_base64(json.get_ref<const std::string&>());
  if (!bytes || bytes->size() % sizeof(T) != 0) fail("an array is not whole");
  std::vector<T> values(bytes->size() / sizeof(T));
  if (!values.empty()) std::memcpy(values.data(), bytes->data(), bytes->size());
  return values;
}

std::int64_t integer(const Json& json) {
  if (!json.is_number_integer()) fail("a number is not whole");
  return json.get<std::int64_t>();
}

std::int64_t count(const Json& json) {
  const std::int64_t value = integer(json);
  if (value < 0 || value > kMost) fail("a count is out of range");
  return value;
}

Json array_json(const MetricArray& array) {
  if (array.empty()) return nullptr;
  const float first = array.values.front();
  Json json = {array.units, array.columns};
  const auto same = [&](float x) {
    return std::bit_cast<std::uint32_t>(x) == std::bit_cast<std::uint32_t>(first);
  };
  if (std::isfinite(first) && std::all_of(array.values.begin(), array.values.end(), same)) {
    json.push_back(first);
  } else {
    json.push_back(pack<float>(array.values));
  }
  return json;
}

/// Reads the arrays of one entry.
class ArrayReader {
 public:
  explicit ArrayReader(const LayerShape& shape) : shape_(shape) {}

  MetricArray operator()(const Json& json) {
    MetricArray array;
    if (json.is_null()) return array;
    array.layers = 1;
    array.units = count(json.at(0));
    array.columns = count(json.at(1));
    if (array.units < 1 || array.columns < 1) fail("an array has no shape");
    if (array.units > shape_.heads || array.columns > shape_.columns) {
      fail("an array of " + std::to_string(array.units) + " x " + std::to_string(array.columns) +
           " is larger than the " + std::to_string(shape_.heads) + " heads x " +
           std::to_string(shape_.columns) + " blocks or steps of its input");
    }
    if (array.units > left_ / array.columns) fail("its arrays take more than 1 GiB");
    left_ -= array.units * array.columns;
    const auto size = static_cast<std::size_t>(array.units * array.columns);
    if (json.at(2).is_number()) {
      array.values.assign(size, json.at(2).get<float>());
    } else {
      array.values = unpack<float>(json.at(2));
      if (array.values.size() != size) fail("an array does not fill its shape");
    }
    return array;
  }

 private:
  LayerShape shape_;
  std::int64_t left_ = kMostValues;
};

Json layer_json(const LayerRecord& layer) {
  const auto& kept = layer.pairs.kept;
  return {layer.sparse,
          layer.pairs.causal,
          kept[0],
          kept[1],
          kept[2],
          kept[3],
          layer.kv_tokens_read,
          layer.kv_tokens_context,
          layer.calibrated_shares};
}

LayerRecord layer_from_json(const Json& json, std::int64_t index) {
  LayerRecord layer;
  layer.layer = index;
  layer.sparse = json.at(0).get<bool>();
  layer.pairs.causal = integer(json.at(1));
  for (std::size_t i = 0; i < kNumParts; ++i) layer.pairs.kept[i] = integer(json.at(2 + i));
  layer.kv_tokens_read = integer(json.at(6));
  layer.kv_tokens_context = integer(json.at(7));
  json.at(8).get_to(layer.calibrated_shares);
  return layer;
}

Json times_json(const std::vector<TimeSample>& times) {
  Json json = Json::array();
  for (const TimeSample& sample : times) {
    Json row = {sample.step, sample.attended};
    for (double seconds : sample.times.seconds) row.push_back(seconds);
    json.push_back(std::move(row));
  }
  return json;
}

std::vector<TimeSample> times_from_json(const Json& json, std::int64_t layer) {
  std::vector<TimeSample> times;
  for (const Json& row : json) {
    TimeSample sample;
    sample.layer = layer;
    sample.step = integer(row.at(0));
    row.at(1).get_to(sample.attended);
    for (std::size_t s = 0; s < kNumStages; ++s) row.at(2 + s).get_to(sample.times.seconds[s]);
    times.push_back(sample);
  }
  return times;
}

Json selection_json(const BlockSelection& selection) {
  const BlockGeometry& geometry = selection.geometry();
  std::vector<std::uint8_t> parts;
  std::vector<std::int64_t> token_ptr = {0};
  std::vector<std::int32_t> tokens;
  std::vector<std::uint8_t> token_parts;
  for (std::int64_t g = 0; g < selection.groups(); ++g) {
    for (std::int64_t r = 0; r < selection.rows(); ++r) {
      for (Part part : selection.parts(g, r)) parts.push_back(static_cast<std::uint8_t>(part));
      for (std::int32_t token : selection.tokens(g, r)) tokens.push_back(token);
      for (Part part : selection.token_parts(g, r)) {
        token_parts.push_back(static_cast<std::uint8_t>(part));
      }
      token_ptr.push_back(std::ssize(tokens));
    }
  }
  return {{"geometry", {geometry.block, geometry.query_begin, geometry.tokens}},
          {"groups", selection.groups()},
          {"token_parts", {selection.token_window(), selection.token_sink()}},
          {"row_ptr", pack(selection.row_ptr())},
          {"block", pack(selection.all_blocks())},
          {"part", pack<std::uint8_t>(parts)},
          {"token_ptr", pack<std::int64_t>(token_ptr)},
          {"token", pack<std::int32_t>(tokens)},
          {"token_part", pack<std::uint8_t>(token_parts)}};
}

std::vector<Part> parts_from_json(const Json& json) {
  std::vector<Part> parts;
  for (std::uint8_t part : unpack<std::uint8_t>(json)) {
    if (part >= kNumParts) fail("a key of a selection is of no known part");
    parts.push_back(static_cast<Part>(part));
  }
  return parts;
}

/// Row `r` of a CSR: where its entries begin, and how many there are.
std::pair<std::size_t, std::size_t> csr_row(std::span<const std::int64_t> row_ptr, std::size_t r,
                                            std::size_t entries) {
  const std::int64_t begin = row_ptr[r];
  const std::int64_t end = row_ptr[r + 1];
  if (begin < 0 || end < begin || end > static_cast<std::int64_t>(entries)) {
    fail("a selection has broken rows");
  }
  return {static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)};
}

BlockSelection selection_from_json(const Json& json) {
  const Json& shape = json.at("geometry");
  const BlockGeometry geometry{count(shape.at(0)), count(shape.at(1)), count(shape.at(2))};
  const std::int64_t groups = count(json.at("groups"));
  if (geometry.block < 1 || geometry.query_begin >= geometry.tokens || groups < 1) {
    fail("a selection has no shape");
  }
  const auto row_ptr = unpack<std::int64_t>(json.at("row_ptr"));
  const auto blocks = unpack<std::int32_t>(json.at("block"));
  const std::vector<Part> parts = parts_from_json(json.at("part"));
  const auto token_ptr = unpack<std::int64_t>(json.at("token_ptr"));
  const auto tokens = unpack<std::int32_t>(json.at("token"));
  const std::vector<Part> token_parts = parts_from_json(json.at("token_part"));
  if (parts.size() != blocks.size() || token_parts.size() != tokens.size() || row_ptr.empty() ||
      std::ssize(row_ptr) - 1 != groups * geometry.rows() || token_ptr.size() != row_ptr.size()) {
    fail("the arrays of a selection do not belong together");
  }
  BlockSelection selection(geometry, groups);
  for (std::size_t r = 0; r + 1 < row_ptr.size(); ++r) {
    const auto [from, size] = csr_row(row_ptr, r, blocks.size());
    const auto [first, number] = csr_row(token_ptr, r, tokens.size());
    selection.append_row(
        std::span(blocks).subspan(from, size), std::span(parts).subspan(from, size),
        std::span(tokens).subspan(first, number), std::span(token_parts).subspan(first, number));
  }
  selection.set_token_parts(count(json.at("token_parts").at(0)),
                            count(json.at("token_parts").at(1)));
  return selection;
}

/// Reports hold scores as float, so float is exact enough.
Json scores_json(const BlockScores& scores) {
  const auto all = scores.values.values();
  const std::vector<float> values(all.begin(), all.end());
  return {scores.groups, scores.values.rows(), scores.values.cols(), pack<float>(values)};
}

std::shared_ptr<const BlockScores> scores_from_json(const Json& json) {
  const std::int64_t rows = count(json.at(1));
  const std::int64_t cols = count(json.at(2));
  const auto values = unpack<float>(json.at(3));
  if (rows < 1 || cols < 1 || std::ssize(values) / rows != cols || std::ssize(values) % rows != 0) {
    fail("scores do not fill their shape");
  }
  const auto scores = std::make_shared<BlockScores>();
  scores->groups = count(json.at(0));
  scores->values = Matrix(rows, cols);
  for (std::int64_t i = 0; i < rows; ++i) {
    std::copy_n(values.begin() + i * cols, cols, scores->values.row(i).begin());
  }
  return scores;
}

Json head_json(const CellRecord& cell) {
  return {{"method", cell.method},
          {"name", cell.name},
          {"density", cell.density ? Json(*cell.density) : Json(nullptr)},
          {"phase", phase_name(cell.phase)},
          {"block", cell.block}};
}

CellRecord head_from_json(const Json& json) {
  CellRecord cell;
  json.at("method").get_to(cell.method);
  json.at("name").get_to(cell.name);
  if (const Json& density = json.at("density"); !density.is_null()) {
    cell.density = density.get<double>();
  }
  const auto phase = json.at("phase").get<std::string>();
  cell.phase = phase == phase_name(Phase::kDecode) ? Phase::kDecode : Phase::kPrefill;
  if (phase != phase_name(cell.phase)) fail("'" + phase.substr(0, 60) + "' is no phase");
  cell.block = count(json.at("block"));
  return cell;
}

Json seconds_json(const LayerSeconds& s) {
  return {{"read", s.read},           {"rebuild", s.rebuild},  {"dense", s.dense},
          {"scores", s.scores},       {"metrics", s.metrics},  {"total", s.total},
          {"attention", s.attention}, {"separate", s.separate}};
}

LayerSeconds seconds_from_json(const Json& json) {
  LayerSeconds s;
  json.at("read").get_to(s.read);
  json.at("rebuild").get_to(s.rebuild);
  json.at("dense").get_to(s.dense);
  json.at("scores").get_to(s.scores);
  json.at("attention").get_to(s.attention);
  json.at("metrics").get_to(s.metrics);
  json.at("total").get_to(s.total);
  json.at("separate").get_to(s.separate);
  return s;
}

/// Scores that densities share are written once.
class Writer {
 public:
  Json cell(const CellRecord& cell) {
    Json json = head_json(cell);
    if (cell.status != CellStatus::kOk) {
      json[status_name(cell.status)] = cell.reason;
      return json;
    }
    json["row_sets"] = cell.row_sets;
    json["selects_keys"] = cell.selects_keys;
    json["shares_scores"] = cell.shares_scores;
    json["has_own_scores"] = cell.has_own_scores;
    json["layer"] = layer_json(cell.layers.front());
    for (const MetricInfo& metric : list_metrics()) {
      json["metrics"][std::string(metric.name)] = array_json(cell.metric(metric.metric));
    }
    json["density_rows"] = array_json(cell.density_rows);
    json["answer_recall"] = array_json(cell.answer_recall);
    if (const auto& attribution = cell.attribution) {
      Json recall = Json::array();
      for (const MetricArray& array : attribution->recall) recall.push_back(array_json(array));
      json["attribution"] = {{"specs", attribution->specs}, {"recall", std::move(recall)}};
    }
    json["times"] = times_json(cell.times);
    if (!cell.saved.empty()) json["saved"] = saved(cell.saved.front());
    return json;
  }

  Json take_scores() { return std::move(scores_); }

 private:
  Json saved(const SavedLayer& layer) {
    Json selections = Json::array();
    for (const auto& selection : layer.selections) selections.push_back(selection_json(selection));
    Json json = {{"selections", selections}, {"scores", nullptr}};
    if (layer.scores == nullptr) return json;
    const auto [found, added] = known_.emplace(layer.scores.get(), scores_.size());
    if (added) scores_.push_back(scores_json(*layer.scores));
    json["scores"] = found->second;
    return json;
  }

  Json scores_ = Json::array();
  std::map<const BlockScores*, std::size_t> known_;
};

CellRecord cell_from_json(const Json& json, std::int64_t layer,
                          const std::vector<std::shared_ptr<const BlockScores>>& scores,
                          ArrayReader& read_array) {
  CellRecord cell = head_from_json(json);
  for (CellStatus status : {CellStatus::kFailed, CellStatus::kSkipped}) {
    const auto reason = json.find(status_name(status));
    if (reason == json.end()) continue;
    cell.status = status;
    reason->get_to(cell.reason);
    return cell;
  }
  cell.row_sets = count(json.at("row_sets"));
  json.at("selects_keys").get_to(cell.selects_keys);
  json.at("shares_scores").get_to(cell.shares_scores);
  json.at("has_own_scores").get_to(cell.has_own_scores);
  cell.layers.push_back(layer_from_json(json.at("layer"), layer));
  for (const MetricInfo& metric : list_metrics()) {
    cell.metric(metric.metric) = read_array(json.at("metrics").at(std::string(metric.name)));
  }
  cell.density_rows = read_array(json.at("density_rows"));
  cell.answer_recall = read_array(json.at("answer_recall"));
  if (cell.density_rows.empty()) fail("a cell has no values");
  if (const auto found = json.find("attribution"); found != json.end()) {
    AttributionRecord record;
    found->at("specs").get_to(record.specs);
    for (std::size_t v = 0; v < kNumVariants; ++v) {
      record.recall[v] = read_array(found->at("recall").at(v));
    }
    cell.attribution = std::move(record);
  }
  cell.times = times_from_json(json.at("times"), layer);
  if (const auto found = json.find("saved"); found != json.end()) {
    SavedLayer saved{layer, {}, nullptr};
    for (const Json& selection : found->at("selections")) {
      saved.selections.push_back(selection_from_json(selection));
    }
    if (saved.selections.empty()) fail("a layer was saved without selections");
    if (const Json& index = found->at("scores"); !index.is_null()) {
      saved.scores = scores.at(static_cast<std::size_t>(count(index)));
    }
    cell.saved.push_back(std::move(saved));
  }
  return cell;
}

}  // namespace

Json to_json(const LayerEntry& entry) {
  Writer writer;
  Json cells = Json::array();
  for (const CellRecord& cell : entry.part.cells) cells.push_back(writer.cell(cell));
  return {{"unit", {entry.input, entry.part.layer}},
          {"cells", std::move(cells)},
          {"scores", writer.take_scores()},
          {"seconds", seconds_json(entry.part.seconds)}};
}

bool is_layer_entry(const Json& json) { return json.contains("unit"); }

std::pair<std::size_t, std::int64_t> layer_entry_unit(const Json& json) {
  try {
    const Json& unit = json.at("unit");
    return {static_cast<std::size_t>(count(unit.at(0))), count(unit.at(1))};
  } catch (const Json::exception& error) {
    fail(error.what());
  }
}

double layer_entry_seconds(const Json& json) {
  try {
    return json.at("seconds").at("total").get<double>();
  } catch (const Json::exception& error) {
    fail(error.what());
  }
}

LayerShape LayerShape::of(const TraceInfo& info, std::int64_t block) {
  const BlockGeometry prefill{block, 0, info.prefill_tokens};
  return {info.num_heads, std::max(prefill.rows(), info.total_tokens - info.prefill_tokens)};
}

LayerEntry layer_entry_from_json(const Json& json, const LayerShape& shape) {
  try {
    ArrayReader read_array(shape);
    LayerEntry entry;
    std::tie(entry.input, entry.part.layer) = layer_entry_unit(json);
    std::vector<std::shared_ptr<const BlockScores>> scores;
    for (const Json& item : json.at("scores")) scores.push_back(scores_from_json(item));
    for (const Json& item : json.at("cells")) {
      entry.part.cells.push_back(cell_from_json(item, entry.part.layer, scores, read_array));
      entry.part.cells.back().input = entry.input;
    }
    entry.part.seconds = seconds_from_json(json.at("seconds"));
    return entry;
  } catch (const Json::exception& error) {
    fail(error.what());
  } catch (const std::logic_error& error) {  // of selections, and of scores that are not there
    fail(error.what());
  }
}

}  // namespace sw
