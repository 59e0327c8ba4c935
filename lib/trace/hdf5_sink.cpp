#include <algorithm>
#include <map>

#include "trace/container.hpp"
#include "trace/hdf5.hpp"

namespace sw {
namespace {

using hdf5::check;

/// Tokens of a chunk, which holds one head: 64 KiB of bf16 at d = 128. A reader that wants one head
/// or one range of tokens reads little else.
constexpr std::int64_t kChunkTokens = 256;

class Hdf5Sink : public TraceSink {
 public:
  Hdf5Sink(const std::string& path, const std::string& temporary_path, const TraceInfo& info,
           int compression)
      : path_(path), info_(info), element_type_(hdf5::element_type(info.dtype)) {
    guard([&] {
      const hdf5::PropertyList access(H5Pcreate(H5P_FILE_ACCESS));
      check(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG));
      check(H5Pset_file_locking(access.get(), false, true));
      // The formats since 1.10 have a checksum in every header, so that damage is noticed.
      check(H5Pset_libver_bounds(access.get(), H5F_LIBVER_V110, H5F_LIBVER_V110));
      file_ =
          hdf5::File(H5Fcreate(temporary_path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access.get()));
      layers_ =
          hdf5::Group(H5Gcreate2(file_.get(), "layers", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT));
      for (std::int64_t layer = info.first_layer; layer <= info.last_layer(); ++layer) {
        create_layer(layer, compression);
      }
    });
  }

  void write(std::int64_t layer, TraceTensor tensor, std::int64_t first_token,
             const HeadsView& part) override {
    guard([&] {
      const hdf5::Dataset& dataset = tensors_.at({layer, tensor});
      const hdf5::Space stored(H5Dget_space(dataset.get()));
      const hsize_t start[] = {0, static_cast<hsize_t>(first_token), 0};
      const hsize_t count[] = {static_cast<hsize_t>(part.heads), static_cast<hsize_t>(part.tokens),
                               static_cast<hsize_t>(part.dim)};
      check(H5Sselect_hyperslab(stored.get(), H5S_SELECT_SET, start, nullptr, count, nullptr));
      const hdf5::Space memory(H5Screate_simple(3, count, nullptr));
      check(H5Dwrite(dataset.get(), element_type_.get(), memory.get(), stored.get(), H5P_DEFAULT,
                     part.data));
    });
  }

  void finish(const TraceInfo& info) override {
    guard([&] {
      for (const auto& [name, value] : list_attributes(info)) {
        std::visit([&, &key = name](const auto& v) { hdf5::write_attribute(file_.get(), key, v); },
                   value);
      }
      if (!info.tokens.empty()) {
        write_dataset("tokens", H5T_STD_I32LE, H5T_NATIVE_INT32, {info.tokens.size()},
                      info.tokens.data());
      }
      if (!info.answer_spans.empty()) {
        static_assert(sizeof(TokenSpan) == 2 * sizeof(std::int64_t));
        write_dataset("answer_span", H5T_STD_I64LE, H5T_NATIVE_INT64, {info.answer_spans.size(), 2},
                      info.answer_spans.data());
      }
      if (info.planted) {
        write_dataset(
            "planted", H5T_STD_I32LE, H5T_NATIVE_INT32,
            {static_cast<hsize_t>(info.planted->layers), static_cast<hsize_t>(info.planted->rows),
             static_cast<hsize_t>(info.planted->width)},
            info.planted->blocks.data());
      }
      if (!info.text.empty()) {
        const char* text = info.text.c_str();
        const hdf5::Type type = hdf5::string_type();
        write_dataset("text", type.get(), type.get(), {}, &text);
      }
      for (auto& [key, dataset] : tensors_) dataset.close();
      layers_.close();
      file_.close();
    });
  }

 private:
  template <class F>
  void guard(F&& body) {
    try {
      body();
    } catch (const hdf5::Failure& failure) {
      throw output_error(path_, failure.reason);
    }
  }

  void create_layer(std::int64_t layer, int compression) {
    const hdf5::Group group(H5Gcreate2(layers_.get(), layer_group_name(layer).c_str(), H5P_DEFAULT,
                                       H5P_DEFAULT, H5P_DEFAULT));
    for (const TraceTensor tensor : kTraceTensors) {
      const auto shape = tensor_shape(info_, tensor);
      const hsize_t extents[] = {static_cast<hsize_t>(shape[0]), static_cast<hsize_t>(shape[1]),
                                 static_cast<hsize_t>(shape[2])};
      const hsize_t chunk[] = {1, static_cast<hsize_t>(std::min(info_.total_tokens, kChunkTokens)),
                               extents[2]};
      const hdf5::PropertyList creation(H5Pcreate(H5P_DATASET_CREATE));
      check(H5Pset_chunk(creation.get(), 3, chunk));
      check(H5Pset_fill_time(creation.get(), H5D_FILL_TIME_NEVER));
      if (compression > 0) {
        check(H5Pset_shuffle(creation.get()));
        check(H5Pset_deflate(creation.get(), static_cast<unsigned>(compression)));
      }
      // Room for the chunk at the end of every head, so that tokens can be appended a few at a time
      // and each chunk is still compressed once.
      const hdf5::PropertyList access(H5Pcreate(H5P_DATASET_ACCESS));
      check(H5Pset_chunk_cache(access.get(), 4099,
                               (extents[0] + 1) * chunk[1] * chunk[2] * dtype_size(info_.dtype),
                               1.0));
      const hdf5::Space space(H5Screate_simple(3, extents, nullptr));
      hdf5::Dataset dataset(H5Dcreate2(group.get(), trace_tensor_name(tensor).data(),
                                       element_type_.get(), space.get(), H5P_DEFAULT,
                                       creation.get(), access.get()));
      if (info_.dtype == DType::kBf16) {
        hdf5::write_attribute(dataset.get(), "dtype", std::string(dtype_name(info_.dtype)));
      }
      tensors_.emplace(std::pair(layer, tensor), std::move(dataset));
    }
  }

  void write_dataset(const char* name, hid_t file_type, hid_t memory_type,
                     const std::vector<hsize_t>& shape, const void* data) {
    const hdf5::Space space(
        shape.empty() ? H5Screate(H5S_SCALAR)
                      : H5Screate_simple(static_cast<int>(shape.size()), shape.data(), nullptr));
    hdf5::Dataset dataset(H5Dcreate2(file_.get(), name, file_type, space.get(), H5P_DEFAULT,
                                     H5P_DEFAULT, H5P_DEFAULT));
    check(H5Dwrite(dataset.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, data));
    dataset.close();
  }

  std::string path_;
  TraceInfo info_;
  hdf5::Type element_type_;
  hdf5::File file_;
  hdf5::Group layers_;
  std::map<std::pair<std::int64_t, TraceTensor>, hdf5::Dataset> tensors_;
};

}  // namespace

std::unique_ptr<TraceSink> create_hdf5_trace(const std::string& path,
                                             const std::string& temporary_path,
                                             const TraceInfo& info, int compression) {
  hdf5::initialise();
  return std::make_unique<Hdf5Sink>(path, temporary_path, info, compression);
}

}  // namespace sw
