#include "cpu_roofline.hpp"

#include <omp.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <vector>

#include "core/parallel.hpp"
#include "core/rng.hpp"

namespace sw {
namespace {

double best_of(int runs, const std::function<void()>& body) {
  double best = 1e300;
  for (int i = 0; i < runs; ++i) {
    const auto start = std::chrono::steady_clock::now();
    body();
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    best = std::min(best, time.count());
  }
  return best;
}

}  // namespace

Roofline measure_cpu_roofline(DType dtype) {
  Roofline roofline;
  omp_set_num_threads(num_threads());
  {
    constexpr dnnl::memory::dim kSize = 3072;
    using Type = dnnl::memory::data_type;
    const Type type = dtype == DType::kBf16 ? Type::bf16 : Type::f32;
    const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    dnnl::stream stream(engine);
    const dnnl::memory::dims shape{kSize, kSize};
    const auto plain = dnnl::memory::format_tag::ab;
    const auto fill = [&](dnnl::memory& place) {
      dnnl::memory source({shape, Type::f32, plain}, engine);
      SplitMix64 rng(7);
      auto* values = static_cast<float*>(source.get_data_handle());
      for (dnnl::memory::dim i = 0; i < kSize * kSize; ++i) {
        values[i] = static_cast<float>(rng.uniform() - 0.5);
      }
      dnnl::reorder(source, place).execute(stream, source, place);
      stream.wait();
    };
    dnnl::memory a({shape, type, plain}, engine);
    fill(a);
    const dnnl::memory::desc any(shape, type, dnnl::memory::format_tag::any);
    const dnnl::memory::desc source(shape, type, plain);
    const dnnl::memory::desc result(shape, Type::f32, plain);
#if DNNL_VERSION_MAJOR >= 3
    const dnnl::matmul::primitive_desc description(engine, source, any, result);
#else
    const dnnl::matmul::primitive_desc description(dnnl::matmul::desc(source, any, result), engine);
#endif
    dnnl::memory b(description.weights_desc(), engine);
    fill(b);
    dnnl::memory c(description.dst_desc(), engine);
    const dnnl::matmul product(description);
    const double seconds = best_of(6, [&] {
      product.execute(stream, {{DNNL_ARG_SRC, a}, {DNNL_ARG_WEIGHTS, b}, {DNNL_ARG_DST, c}});
      stream.wait();
    });
    roofline.product = std::string("oneDNN ") + (type == Type::bf16 ? "bf16" : "f32") + " " +
                       std::to_string(kSize) + "^3";
    roofline.flops_per_second = 2.0 * kSize * kSize * kSize / seconds;
  }
  {
    constexpr std::int64_t kBytes = std::int64_t{256} << 20;
    constexpr std::int64_t kPart = std::int64_t{4} << 20;
    std::vector<char> from(kBytes, 1);
    std::vector<char> to(kBytes, 2);
    const double seconds = best_of(6, [&] {
      parallel_for(kBytes / kPart, [&](std::int64_t i, int) {
        std::memcpy(to.data() + i * kPart, from.data() + i * kPart, kPart);
      });
    });
    roofline.copy = "copy of 256 MiB, read and written";
    roofline.bytes_per_second = 2.0 * kBytes / seconds;
  }
  return roofline;
}

}  // namespace sw
