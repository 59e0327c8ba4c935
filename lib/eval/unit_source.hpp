#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <utility>
#include <vector>

/// Who says which unit of a sweep comes next. A unit is an index into the plan, which every process
/// that works on a sweep computes for itself.
namespace sw {

class UnitSource {
 public:
  virtual ~UnitSource() = default;
  /// A unit that no other process has or had, greater than those that this one got before; nothing
  /// when there are no more.
  virtual std::optional<std::size_t> next() = 0;
  /// Units that it may hand out, ascending, as far as this process knows: for showing progress.
  virtual std::span<const std::size_t> known() const = 0;
};

/// The units of one process or shard, known from the start.
class UnitList final : public UnitSource {
 public:
  /// `units` ascend.
  explicit UnitList(std::vector<std::size_t> units) : units_(std::move(units)) {}
  std::optional<std::size_t> next() override {
    return next_ < units_.size() ? std::optional(units_[next_++]) : std::nullopt;
  }
  std::span<const std::size_t> known() const override { return units_; }

 private:
  std::vector<std::size_t> units_;
  std::size_t next_ = 0;
};

}  // namespace sw
