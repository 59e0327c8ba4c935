#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "dataset/niah.hpp"
#include "dataset/sample.hpp"

/// The kinds of datasets, in one list. A new kind is one file and one line there.
namespace sw {

struct SampleRequest {
  std::string path;         ///< the dataset's file; niah has none
  std::int64_t record = 0;  ///< from 0, in files of records
  std::string prompts;      ///< longbench: dataset2prompt.json; empty: looked for near `path`
  NiahOptions niah;
  SampleMeasure measure = count_words;  ///< the unit of niah.length
};

struct DatasetKind {
  std::string_view name;
  std::string_view summary;  ///< one line, for help texts
  /// Throws Error(kUsage) or Error(kInput) as the readers do.
  Sample (*load)(const SampleRequest& request);
};

/// text, longbench, ruler, niah.
std::span<const DatasetKind> dataset_kinds();
/// The kind with this name; throws Error(kUsage) with a suggestion for any other.
const DatasetKind& dataset_kind(std::string_view name);

/// A whole file as running text: no chat template, cut at its end, its id the file's name. Throws
/// Error(kInput) when the file cannot be read, is empty or is not UTF-8 (the message says where).
Sample read_text(const std::string& path);

}  // namespace sw
