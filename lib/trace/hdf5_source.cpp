#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <map>

#include "trace/container.hpp"
#include "trace/hdf5.hpp"

namespace sw {
namespace {

using hdf5::check;

Error damaged(const std::string& what, const std::string& reason) {
  return Error(
      ErrorKind::kInput, what + " cannot be read: " + reason,
      "the file is damaged, incomplete or not as interfaces.md says; copy or export it again");
}

Error wrong(const std::string& message) {
  return Error(ErrorKind::kInput, message,
               "export the trace again; interfaces.md lists the attributes and tensors of a trace");
}

class Hdf5Attributes : public AttributeReader {
 public:
  explicit Hdf5Attributes(hid_t object) : object_(object) {}
  std::optional<std::string> text(const std::string& name) const override {
    try {
      return hdf5::read_text_attribute(object_, name);
    } catch (const hdf5::Failure& failure) {
      throw damaged("attribute '" + name + "'", failure.reason);
    }
  }
  std::optional<std::int64_t> integer(const std::string& name) const override {
    try {
      return hdf5::read_integer_attribute(object_, name);
    } catch (const hdf5::Failure& failure) {
      throw damaged("attribute '" + name + "'", failure.reason);
    }
  }

 private:
  hid_t object_;
};

/// A dataset of whole numbers with the given rank; `shape` gets its extents.
template <class T>
std::vector<T> read_integers(hid_t group, const std::string& name, std::uint64_t file_bytes,
                             hid_t memory_type, std::size_t rank,
                             std::vector<std::int64_t>& shape) {
  const hdf5::Dataset dataset = hdf5::open_dataset(group, name, file_bytes);
  const hdf5::Type type(H5Dget_type(dataset.get()));
  if (check(H5Tget_class(type.get())) != H5T_INTEGER) throw hdf5::Failure{"it holds no integers"};
  shape = hdf5::extents(hdf5::Space(H5Dget_space(dataset.get())));
  if (shape.size() != rank) throw hdf5::Failure{"its shape is " + shape_text(shape)};
  std::vector<T> values(static_cast<std::size_t>(checked_product(shape).value()));
  check(H5Dread(dataset.get(), memory_type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()));
  return values;
}

void read_annotations(hid_t root, std::uint64_t file_bytes, TraceInfo& info, Problems& problems) {
  const auto attempt = [&](const std::string& name, auto&& read) {
    try {
      if (hdf5::has_member(root, name)) read(name);
    } catch (const hdf5::Failure& failure) {
      problems.push_back(damaged(name, failure.reason));
    }
  };
  std::vector<std::int64_t> shape;
  attempt("tokens", [&](const std::string& name) {
    info.tokens = read_integers<std::int32_t>(root, name, file_bytes, H5T_NATIVE_INT32, 1, shape);
  });
  attempt("answer_span", [&](const std::string& name) {
    const auto values =
        read_integers<std::int64_t>(root, name, file_bytes, H5T_NATIVE_INT64, 2, shape);
    if (shape[1] != 2) throw hdf5::Failure{"its shape is " + shape_text(shape) + ", not [k, 2]"};
    for (std::size_t i = 0; i < values.size(); i += 2) {
      info.answer_spans.push_back({values[i], values[i + 1]});
    }
  });
  attempt("text", [&](const std::string& name) {
    const hdf5::Dataset dataset = hdf5::open_dataset(root, name, file_bytes);
    info.text = hdf5::read_text(dataset, file_bytes);
  });
  if (info.planted) {
    attempt("planted", [&](const std::string& name) {
      info.planted->blocks =
          read_integers<std::int32_t>(root, name, file_bytes, H5T_NATIVE_INT32, 3, shape);
      info.planted->layers = shape[0];
      info.planted->rows = shape[1];
      info.planted->width = shape[2];
    });
  }
}

class Hdf5Source : public TraceSource {
 public:
  Hdf5Source(hdf5::File file, const TraceInfo& info)
      : file_(std::move(file)), dtype_(info.dtype), element_type_(hdf5::element_type(dtype_)) {}

  bool has(std::int64_t layer, TraceTensor tensor) const override {
    return tensors_.contains({layer, tensor});
  }

  void read(std::int64_t layer, TraceTensor tensor, std::int64_t begin, std::int64_t end,
            std::byte* out) const override {
    try {
      const hdf5::Dataset& dataset = tensors_.at({layer, tensor});
      const hdf5::Space stored(H5Dget_space(dataset.get()));
      const auto shape = hdf5::extents(stored);
      const hsize_t start[] = {0, static_cast<hsize_t>(begin), 0};
      const hsize_t count[] = {static_cast<hsize_t>(shape[0]), static_cast<hsize_t>(end - begin),
                               static_cast<hsize_t>(shape[2])};
      check(H5Sselect_hyperslab(stored.get(), H5S_SELECT_SET, start, nullptr, count, nullptr));
      const hdf5::Space memory(H5Screate_simple(3, count, nullptr));
      check(H5Dread(dataset.get(), element_type_.get(), memory.get(), stored.get(), H5P_DEFAULT,
                    out));
    } catch (const hdf5::Failure& failure) {
      throw damaged(tensor_title(layer, tensor), failure.reason);
    }
  }

  /// The indices of the groups in /layers.
  std::set<std::int64_t> find_layers(Problems& problems) const {
    std::set<std::int64_t> found;
    if (!hdf5::has_member(file_.get(), "layers")) return found;
    const hdf5::Group layers(H5Gopen2(file_.get(), "layers", H5P_DEFAULT));
    std::vector<std::string> names;
    const auto collect = [](hid_t, const char* name, const H5L_info_t*, void* data) -> herr_t {
      static_cast<std::vector<std::string>*>(data)->emplace_back(name);
      return 0;
    };
    check(H5Literate(layers.get(), H5_INDEX_NAME, H5_ITER_NATIVE, nullptr, collect, &names));
    for (const std::string& name : names) {
      std::int64_t layer = -1;
      std::from_chars(name.data(), name.data() + name.size(), layer);
      if (layer < 0 || name != layer_group_name(layer)) {
        problems.push_back(
            wrong("/layers/" + name.substr(0, 40) + " is not a layer index of two or more digits"));
      } else {
        found.insert(layer);
      }
    }
    return found;
  }

  /// Opens one tensor and checks its shape and type.
  void open_tensor(std::int64_t layer, TraceTensor tensor, const TraceInfo& info,
                   std::uint64_t file_bytes) {
    const std::string name(trace_tensor_name(tensor));
    const hdf5::Group layers(H5Gopen2(file_.get(), "layers", H5P_DEFAULT));
    hdf5::has_member(layers.get(), layer_group_name(layer));
    const hdf5::Group group(H5Gopen2(layers.get(), layer_group_name(layer).c_str(), H5P_DEFAULT));
    if (!hdf5::has_member(group.get(), name)) {
      throw wrong(tensor_title(layer, tensor) + " is missing");
    }
    hdf5::Dataset dataset = hdf5::open_dataset(group.get(), name, file_bytes);
    const auto shape = hdf5::extents(hdf5::Space(H5Dget_space(dataset.get())));
    if (shape != tensor_shape(info, tensor)) {
      throw wrong(tensor_title(layer, tensor) + " has the shape " + shape_text(shape) +
                  ", but the attributes say " + shape_text(tensor_shape(info, tensor)) +
                  " (heads, total_tokens, head_dim)");
    }
    const hdf5::Type type(H5Dget_type(dataset.get()));
    const auto declared = hdf5::read_text_attribute(dataset.get(), "dtype");
    if (!hdf5::holds(type.get(), info.dtype) || (declared && *declared != dtype_name(info.dtype))) {
      throw wrong(tensor_title(layer, tensor) + " is not stored as " +
                  std::string(dtype_name(info.dtype)) + ", which attribute 'dtype' says" +
                  (info.dtype == DType::kBf16 ? " (bf16 is stored as uint16)" : ""));
    }
    tensors_.emplace(std::pair(layer, tensor), std::move(dataset));
  }

 private:
  hdf5::File file_;
  DType dtype_;
  hdf5::Type element_type_;
  std::map<std::pair<std::int64_t, TraceTensor>, hdf5::Dataset> tensors_;
};

OpenTrace open_file(const std::string& path) {
  const std::uint64_t file_bytes = std::filesystem::file_size(path);
  OpenTrace trace;
  try {
    const hdf5::PropertyList access(H5Pcreate(H5P_FILE_ACCESS));
    check(H5Pset_fclose_degree(access.get(), H5F_CLOSE_STRONG));
    // Many network file systems have no locks, and a reader needs none.
    check(H5Pset_file_locking(access.get(), false, true));
    hdf5::File file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access.get()));
    const hid_t root = file.get();
    trace.info = parse_attributes(Hdf5Attributes(root), trace.problems);
    read_annotations(root, file_bytes, trace.info, trace.problems);
    check_annotations(trace.info, trace.problems);

    auto source = std::make_unique<Hdf5Source>(std::move(file), trace.info);
    trace.layers = check_layers(trace.info, source->find_layers(trace.problems), trace.problems);
    for (const std::int64_t layer : trace.layers) {
      for (const TraceTensor tensor : kTraceTensors) {
        try {
          source->open_tensor(layer, tensor, trace.info, file_bytes);
        } catch (const hdf5::Failure& failure) {
          trace.problems.push_back(damaged(tensor_title(layer, tensor), failure.reason));
        } catch (const Error& error) {
          trace.problems.push_back(error);
        }
      }
    }
    trace.source = std::move(source);
  } catch (const hdf5::Failure& failure) {
    throw damaged("the HDF5 file", failure.reason);
  }
  return trace;
}

/// Bytes of q, k and v up to which a file is read wholly on trial.
constexpr std::int64_t kTrialBytes = std::int64_t{1} << 25;

/// Opens the file and reads from every tensor: all of it when the trace is small, else one token.
void try_file(const std::string& path) {
  const OpenTrace trace = open_file(path);
  const TraceInfo& info = trace.info;
  for (const std::int64_t layer : trace.layers) {
    for (const TraceTensor tensor : kTraceTensors) {
      if (!trace.source->has(layer, tensor)) continue;
      const std::int64_t layer_bytes =
          (info.num_heads + 2 * info.num_kv_heads) * info.total_tokens * info.head_dim * 4;
      const bool all = layer_bytes <= kTrialBytes / static_cast<std::int64_t>(trace.layers.size());
      HeadsTensor values(info.dtype, info.heads(tensor), all ? info.total_tokens : 1,
                         info.head_dim);
      trace.source->read(layer, tensor, 0, values.tokens(), values.data());
    }
  }
}

/// HDF5 1.10 crashes or runs for ever on some damaged files. So a copy of this process tries the
/// file first, with little CPU time; what it survives, the same code survives here.
void try_aside(const std::string& path, std::uint64_t file_bytes) {
  const pid_t child = fork();
  if (child < 0) {
    throw Error(ErrorKind::kResource,
                std::string("cannot start a process: ") + std::strerror(errno));
  }
  if (child == 0) {
    for (const int signal : {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGXCPU}) {
      std::signal(signal, SIG_DFL);
    }
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    const rlimit seconds{3 + (file_bytes >> 29), 4 + (file_bytes >> 29)};
    setrlimit(RLIMIT_CPU, &seconds);
    const int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
    dup2(nowhere, STDERR_FILENO);
    try {
      try_file(path);
    } catch (...) {
      // An exception is fine: it will be thrown again where it can be told.
    }
    _exit(0);
  }
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return;  // the program ignores its children; nothing can be learnt
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    throw damaged("the HDF5 file", WIFSIGNALED(status) && WTERMSIG(status) == SIGXCPU
                                       ? "the HDF5 library finds no end in it"
                                       : "the HDF5 library breaks on it");
  }
}

}  // namespace

OpenTrace open_hdf5_trace(const std::string& path) {
  hdf5::initialise();
  try_aside(path, std::filesystem::file_size(path));
  return open_file(path);
}

}  // namespace sw
