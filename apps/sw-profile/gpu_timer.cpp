#include "gpu_timer.hpp"

#include "gpu_roofline.hpp"
#include "kernels/cuda/common/error.hpp"

namespace sw {

using cuda::check;

namespace {
/// More than the L2 cache of any GPU so far.
constexpr std::size_t kFlushBytes = std::size_t{256} << 20;
}  // namespace

GpuTimer::GpuTimer() : flush_(kFlushBytes) {
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creation of a stream");
  check(cudaEventCreate(&begin_), "creation of an event");
  check(cudaEventCreate(&end_), "creation of an event");
  check(cudaMemset(flush_.data(), 1, flush_.bytes()), "memset");
}

GpuTimer::~GpuTimer() {
  cudaEventDestroy(begin_);
  cudaEventDestroy(end_);
  cudaStreamDestroy(stream_);
}

GpuTimer::Work::~Work() {
  if (graph_ != nullptr) cudaGraphExecDestroy(graph_);
}

double GpuTimer::Work::seconds(const char* what) const {
  read_memory(timer_->flush_.data(), timer_->flush_.bytes(), timer_->stream_);
  check(cudaEventRecord(timer_->begin_, timer_->stream_), "record of an event");
  check(cudaGraphLaunch(graph_, timer_->stream_), what);
  check(cudaEventRecord(timer_->end_, timer_->stream_), "record of an event");
  check(cudaEventSynchronize(timer_->end_), what);
  float milliseconds = 0.0f;
  check(cudaEventElapsedTime(&milliseconds, timer_->begin_, timer_->end_), "time between events");
  return milliseconds * 1e-3;
}

GpuTimer::Work GpuTimer::capture(const std::function<void(cudaStream_t)>& launch) {
  launch(stream_);
  cuda::synchronize(stream_, "first run of timed work");
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "start of a capture");
  launch(stream_);
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_, &graph), "end of a capture");
  cudaGraphExec_t executable = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&executable, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "instantiation of a graph");
  return Work(*this, executable);
}

}  // namespace sw
