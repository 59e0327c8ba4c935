#pragma once

#include <array>
#include <chrono>

/// Where the time of one layer goes (metrics.md, Latency): pool, sketch, walk, select, attention.
namespace sw {

enum class Stage { kPool, kSketch, kWalk, kSelect, kAttention };
inline constexpr int kNumStages = 5;
inline constexpr std::array<const char*, kNumStages> kStageNames = {"pool", "sketch", "walk",
                                                                    "select", "attention"};

/// Seconds spent in each stage, by the steady clock.
struct StageTimes {
  std::array<double, kNumStages> seconds{};
  double& operator[](Stage stage) { return seconds[static_cast<std::size_t>(stage)]; }
};

/// Adds the time of its own lifetime to one stage; does nothing without a target.
class StageTimer {
 public:
  StageTimer(StageTimes* times, Stage stage)
      : times_(times), stage_(stage), start_(std::chrono::steady_clock::now()) {}
  ~StageTimer() {
    if (times_ == nullptr) return;
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start_;
    (*times_)[stage_] += elapsed.count();
  }
  StageTimer(const StageTimer&) = delete;
  StageTimer& operator=(const StageTimer&) = delete;

 private:
  StageTimes* times_;
  Stage stage_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace sw
