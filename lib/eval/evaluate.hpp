#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "attention/backend.hpp"
#include "attention/policy.hpp"
#include "eval/record.hpp"
#include "trace/trace.hpp"

/// The one evaluation loop: teacher-forced, that is, the dense q, k and v of the trace feed every
/// method at every layer. Layers are streamed one at a time; within a layer the dense attention and
/// its block masses are computed once for all methods, and the scores of a method once for all its
/// densities. A layer is also the unit of work: its part of every cell can be computed in another
/// process than that of the layer before, and the parts joined.
namespace sw {

struct EvalOptions {
  std::vector<double> densities;  ///< in (0, 1]; used by methods that take a density
  bool prefill = true;            ///< evaluate the prefill part of the trace
  bool decode = true;             ///< evaluate its decode steps
  std::int64_t block = 64;        ///< tokens of a block
  bool output_error = true;       ///< false: no attention where block masses alone give the recall
  bool attribution = true;        ///< split the loss of sketchwalk methods into its parts
  bool save_selection = false;    ///< keep selections and scores in the records
  /// Layers [first_layer, end_layer) of the trace are evaluated; walks start at the first of them.
  std::int64_t first_layer = 0;
  std::int64_t end_layer = INT64_MAX;
  std::uint64_t seed = 0;  ///< of the attribution variants, as given to the policies
};

/// Seconds of one layer's work for all cells, by what they went to.
struct LayerSeconds {
  double read = 0.0;       ///< the layer from the file
  double rebuild = 0.0;    ///< walks of layers that were computed elsewhere
  double dense = 0.0;      ///< dense attention and its block masses
  double scores = 0.0;     ///< of methods and of their attribution variants
  double attention = 0.0;  ///< selections, and attention over them
  double metrics = 0.0;
  double total = 0.0;     ///< from the begin of the layer, or of its rebuild, to its end
  double separate = 0.0;  ///< what the cells would have taken one by one: each pays what they share

  /// Work that every way of computing these cells has to do once.
  double distinct() const { return dense + scores + attention + metrics; }
};
LayerSeconds operator+(const LayerSeconds& a, const LayerSeconds& b);

/// What one layer adds to every cell of an input: records whose arrays hold this layer alone.
struct LayerPart {
  std::int64_t layer = 0;
  std::vector<CellRecord> cells;
  LayerSeconds seconds;
};

/// The evaluation of one trace, a layer at a time. Cells come by policy, density, phase. An Error
/// of a method or of the backend fails the cells concerned, with the reason, and the others go on;
/// an Error while reading the trace fails all cells. Methods that attend densely in all evaluated
/// layers are skipped with that reason.
class TraceEvaluation {
 public:
  /// Told what has been done, in hundredths of a dense attention, and where. What it throws, unless
  /// an Error, passes through: the evaluation cannot be used any more then.
  using Advance = std::function<void(std::int64_t work, const std::string& where)>;

  /// What is given has to outlive the evaluation. Throws Error(kUsage) for options out of range,
  /// for layers that the trace does not have, and when only decode is asked for and the trace has
  /// no decode steps.
  TraceEvaluation(const TraceReader& trace, std::size_t input,
                  std::span<const std::unique_ptr<Policy>> policies, const EvalOptions& options,
                  const Backend& backend, Advance advance);
  ~TraceEvaluation();
  TraceEvaluation(TraceEvaluation&&) noexcept;

  /// The layers that are evaluated, ascending, as indices in the model.
  const std::vector<std::int64_t>& layers() const;
  /// Work of one layer in hundredths of a dense attention.
  std::int64_t layer_work() const;
  std::size_t num_cells() const;

  /// Evaluates one layer. What passes from layer to layer is there when the layers come in order;
  /// otherwise it is computed again from the layers below, which takes the scores of the methods
  /// that walk and nothing else. A cell that failed before is not evaluated again.
  LayerPart evaluate(std::int64_t layer);

 private:
  class State;
  std::unique_ptr<State> state_;
};

/// Joins the parts of all layers of an input, in the order of the layers, to its cells. A cell that
/// failed at a layer has failed, for the reason of the first such layer. Throws Error(kInput) when
/// the parts are not of the same cells or shapes, or there are none.
std::vector<CellRecord> join_layers(std::vector<LayerPart> parts);

/// All layers of one trace, joined; the parameters and errors are those of TraceEvaluation.
std::vector<CellRecord> evaluate_trace(const TraceReader& trace, std::size_t input,
                                       std::span<const std::unique_ptr<Policy>> policies,
                                       const EvalOptions& options, const Backend& backend,
                                       bool quiet = true);

}  // namespace sw
