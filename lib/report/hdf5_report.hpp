#pragma once

#include <string>

#include "report/model_report.hpp"
#include "report/profile_report.hpp"
#include "report/report.hpp"

namespace sw {

/// Writes the arrays behind a report to the HDF5 file `path`, which is truncated. `name` is what
/// errors call the file. Throws Error(kOutput), a full disk included.
///
/// Root: format = "sketchwalk-report", version. One group a cell that has values, /cells/<NNNN>
/// with the number of the cell in the JSON; attributes method (canonical SPEC), density (requested,
/// NaN when the method takes none), input (path), phase, block, row_sets. Datasets:
///   layer [L] int64, sparse [L] uint8
///   mass_recall, oracle_gap, output_error, cosine, density [L, head, query block or step] float32
///   oracle_gap_set, topk_recall [L, row set, query block or step] float32
///   answer_recall [L, 1, 1 or step] float32
///   attribution/VARIANT [L, head, query block or step] float32: mass recall of each Variant
///   attribution/loss [L, head, part] float32: its parts, means over columns; their names are the
///   attribute loss_parts of attribution
///   seconds [samples, 5] float64 (attribute stages names the columns; NaN where not run),
///   seconds_layer, seconds_step [samples] int64 (step -1 in prefill)
///   selection/<LL> for each sparse layer, when saved: row_ptr int64, block int32 (CSR over row
///   sets x query blocks, or row sets x steps), attribute groups; token_window, token_sink [1 or
///   steps] int64; score [row sets * b, b] float32 (prefill, where the policy has scores).
void write_hdf5(const Report& report, const std::string& path, const std::string& name);

/// The same for a model evaluation. Attributes method, density, input (the task), arm. Datasets,
/// for n samples or windows:
///   sample, prompt_tokens [n] int64, prefill_seconds, decode_seconds [n] float64,
///   decode_steps [n] int64
///   density, density_decode [layer, n] float32 (kept / causal pairs; KV tokens read / context)
///   score [n] float64 and reply_ids int32 with reply_ptr [n + 1] int64 (tasks with replies)
///   nll float32 with window_ptr [n + 1] int64, scored_from [n] int64 (texts), and with --kl, but
///   for the dense arm, kl, delta_p float32, same_top uint8 of the same tokens,
///   hidden_error [layer, n] float64
void write_hdf5(const ModelReport& report, const ModelSummary& summary, const std::string& path,
                const std::string& name);

/// The same for timings, one group for each measurement that ran, with its number in the JSON.
/// Attributes method, density (NaN for dense attention), phase, part, implementation, tokens;
/// dataset seconds [runs] float64.
void write_hdf5(const ProfileReport& report, const std::string& path, const std::string& name);

}  // namespace sw
