#pragma once

#include <cstdint>

#include "dataset/jsonl.hpp"
#include "dataset/sample.hpp"

/// RULER (Hsieh et al., 2024). Two layouts of its samples are in use: `input` with everything in
/// one text, the beginning of the reply included (the benchmark's own generator), or `context`,
/// `question` and `answer_prefix` apart. References are in `outputs`.
namespace sw {

/// Sample `index` of a RULER file; its dataset is the field `task`, or the file's name without
/// its extension. Throws Error(kInput) when `outputs`, or both `input` and `context`, are missing.
/// Errors of JsonlFile::record.
Sample read_ruler(const JsonlFile& file, std::int64_t index);

}  // namespace sw
