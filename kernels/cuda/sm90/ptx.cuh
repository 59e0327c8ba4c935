#pragma once

#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

/// Hopper's instructions that CUDA C++ has no words for: barriers in shared memory, the bulk tensor
/// copy engine, warpgroup matrix products, register reallocation. Each function is one instruction
/// (PTX ISA 8.x, sections "mbarrier", "cp.async.bulk.tensor", "wgmma" and "setmaxnreg"). Device
/// only.
namespace sw::cuda::ptx {

__device__ inline std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// ---- barriers in shared memory

__device__ inline void barrier_init(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
/// Makes initialised barriers visible to the copy engine.
__device__ inline void fence_barrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives, and lets the phase wait for `bytes` of copies too.
__device__ inline void barrier_arrive_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// Waits until the phase of this parity is complete.
__device__ inline void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done = 0;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

// ---- copies

/// Copies the box at (x, y, z) of a tensor to shared memory; what lies outside of the tensor reads
/// as zeros. The barrier counts the bytes.
__device__ inline void copy_box(std::uint32_t destination, const CUtensorMap& map,
                                std::uint32_t barrier, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(destination),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}
__device__ inline void prefetch_map(const CUtensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// ---- registers

template <int kCount>
__device__ inline void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ inline void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}

// ---- warpgroup matrix products

/// Descriptor of a matrix in shared memory with rows of 128 bytes in the 128-byte swizzle. Groups
/// of 8 rows lie 1024 bytes apart. `panel_bytes` is the distance of the next 64 columns: used where
/// the columns are the outer dimension of the product (V), ignored elsewhere.
__device__ inline std::uint64_t matrix_descriptor(std::uint32_t address,
                                                  std::uint32_t panel_bytes = 16) {
  constexpr std::uint64_t kSwizzle128 = 1ull << 62;
  constexpr std::uint64_t kRowGroup = (1024ull >> 4) << 32;
  // The high bits of an address are the number of the CTA in its cluster.
  return kSwizzle128 | kRowGroup | (static_cast<std::uint64_t>(panel_bytes >> 4) << 16) |
         ((address & 0x3ffff) >> 4);
}

__device__ inline void mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void mma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/// Waits until at most kPending groups of products are in flight.
template <int kPending>
__device__ inline void mma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
/// Keeps the compiler from moving accesses of registers that a product reads or writes.
template <int kCount>
__device__ inline void pin(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(x[i])::"memory");
}
template <int kCount>
__device__ inline void pin(std::uint32_t (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(x[i])::"memory");
}

template <class T>
struct ElementName;
template <>
struct ElementName<__nv_bfloat16> {
  static constexpr const char kText[] = "bf16";
};
template <>
struct ElementName<__half> {
  static constexpr const char kText[] = "f16";
};

// Eight accumulators as operands.
#define SW_8F(d, i)                                                                           \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])

/// d = a b^T, or d += a b^T: [64, 2 count] += [64, 16] [2 count, 16]^T, both in shared memory with
/// 16 columns contiguous; or, with kColumns, b [16, 2 count] with its 2 count columns contiguous. d
/// is the fragment of the thread: of each 8 columns, 2 of row lane / 4, then 2 of row lane / 4 + 8.
template <class T, bool kColumns = false>
__device__ inline void mma_shared(float (&d)[32], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.%35.%35 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, %36;\n"
      "}"
      : SW_8F(d, 0), SW_8F(d, 8), SW_8F(d, 16), SW_8F(d, 24)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "C"(ElementName<T>::kText),
        "n"(static_cast<int>(kColumns)));
}
template <class T, bool kColumns = false>
__device__ inline void mma_shared(float (&d)[64], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %66, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.%67.%67 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, %64, %65, p, 1, 1, 0, %68;\n"
      "}"
      : SW_8F(d, 0), SW_8F(d, 8), SW_8F(d, 16), SW_8F(d, 24), SW_8F(d, 32), SW_8F(d, 40),
        SW_8F(d, 48), SW_8F(d, 56)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "C"(ElementName<T>::kText),
        "n"(static_cast<int>(kColumns)));
}
template <class T, bool kColumns = false>
__device__ inline void mma_shared(float (&d)[128], std::uint64_t a, std::uint64_t b, bool add) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.b32 p, %130, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.%131.%131 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, %128, %129, p, 1, 1, 0, %132;\n"
      "}"
      : SW_8F(d, 0), SW_8F(d, 8), SW_8F(d, 16), SW_8F(d, 24), SW_8F(d, 32), SW_8F(d, 40),
        SW_8F(d, 48), SW_8F(d, 56), SW_8F(d, 64), SW_8F(d, 72), SW_8F(d, 80), SW_8F(d, 88),
        SW_8F(d, 96), SW_8F(d, 104), SW_8F(d, 112), SW_8F(d, 120)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "C"(ElementName<T>::kText),
        "n"(static_cast<int>(kColumns)));
}

/// d += a b: [64, 2 count] += [64, 16] [16, 2 count], a in registers (the fragment of the
/// accumulator of `mma_shared`, packed), b in shared memory with the 2 count columns contiguous.
template <class T>
__device__ inline void mma_registers(float (&d)[32], const std::uint32_t* a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.%37.%37 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
      "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
      : SW_8F(d, 0), SW_8F(d, 8), SW_8F(d, 16), SW_8F(d, 24)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "C"(ElementName<T>::kText));
}
template <class T>
__device__ inline void mma_registers(float (&d)[64], const std::uint32_t* a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.%69.%69 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
      "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
      : SW_8F(d, 0), SW_8F(d, 8), SW_8F(d, 16), SW_8F(d, 24), SW_8F(d, 32), SW_8F(d, 40),
        SW_8F(d, 48), SW_8F(d, 56)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "C"(ElementName<T>::kText));
}
template <class T>
__device__ inline void mma_registers(float (&d)[128], const std::uint32_t* a, std::uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.%133.%133 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "
      "%127"
      "}, {%128, %129, %130, %131}, %132, 1, 1, 1, 1;\n"
      : SW_8F(d, 0), SW_8F(d, 8), SW_8F(d, 16), SW_8F(d, 24), SW_8F(d, 32), SW_8F(d, 40),
        SW_8F(d, 48), SW_8F(d, 56), SW_8F(d, 64), SW_8F(d, 72), SW_8F(d, 80), SW_8F(d, 88),
        SW_8F(d, 96), SW_8F(d, 104), SW_8F(d, 112), SW_8F(d, 120)
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "C"(ElementName<T>::kText));
}
#undef SW_8F

}  // namespace sw::cuda::ptx
