#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <limits>

#include "support/tiny_trace.hpp"
#include "trace_files.hpp"

namespace sw {
namespace {

using namespace sw::testing;

class Output : public ::testing::TestWithParam<std::string> {
 protected:
  TemporaryFolder folder_;
  std::string path_ = folder_.file("out" + GetParam());
  TraceInfo info_ = small_info(DType::kF32);

  /// Writes and expects an Error(kOutput) that names the path, and nothing left behind.
  std::string expect_failure(const std::string& path, const std::string& folder) {
    const std::size_t before = folder.empty() ? 0 : files_in(folder);
    std::string message;
    try {
      write_small(path, info_, 256);
      ADD_FAILURE() << "written: " << path;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kOutput);
      message = error.what();
      EXPECT_NE(message.find(path), std::string::npos) << message;
      EXPECT_FALSE(error.hint().empty());
    }
    EXPECT_EQ(folder.empty() ? 0 : files_in(folder), before);
    return message;
  }
};

TEST_P(Output, ExistingFileIsKeptUnlessForced) {
  write_bytes(path_, "mine");
  EXPECT_NE(expect_failure(path_, folder_.path()).find("exists"), std::string::npos);
  EXPECT_EQ(read_bytes(path_), "mine");
  write_small(path_, info_, 256, {.force = true});
  EXPECT_EQ(TraceReader(path_).info(), info_);
}

TEST_P(Output, MissingOrUnwritableFolder) {
  expect_failure(folder_.file("none/out" + GetParam()), folder_.path());
  write_bytes(folder_.file("file"), "");
  expect_failure(folder_.file("file/out" + GetParam()), folder_.path());
  expect_failure("/proc/out" + GetParam(), "");  // not even root may
  if (geteuid() != 0) {
    std::filesystem::permissions(folder_.path(), std::filesystem::perms(0500));
    expect_failure(path_, folder_.path());
    std::filesystem::permissions(folder_.path(), std::filesystem::perms(0700));
  }
}

TEST_P(Output, AbandonedWriterLeavesNothing) {
  {
    TraceWriter writer(path_, info_);
    writer.append(9, TraceTensor::kQ, small_tensor(info_, 9, TraceTensor::kQ).view());
    EXPECT_FALSE(std::filesystem::exists(path_));
  }
  EXPECT_EQ(files_in(folder_.path()), 0u);
}

TEST_P(Output, IncompleteTraceIsABug) {
  TraceWriter writer(path_, info_);
  const HeadsTensor q = small_tensor(info_, 9, TraceTensor::kQ);
  writer.append(9, TraceTensor::kQ, q.view());
  EXPECT_THROW(writer.append(9, TraceTensor::kQ, q.view()), std::logic_error);
  EXPECT_THROW(writer.append(9, TraceTensor::kK, q.view()), std::logic_error);
  EXPECT_THROW(writer.append(8, TraceTensor::kQ, q.view()), std::logic_error);
  EXPECT_THROW(writer.commit(), std::logic_error);
}

/// A file-size limit stops writes as a full disk does.
TEST_P(Output, LimitOnFileSize) {
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  for (const rlim_t bytes : {0, 1, 100, 1000, 4096, 10'000, 50'000, 100'000, 150'000}) {
    const rlimit limit{bytes, old.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    const std::string message = expect_failure(path_, folder_.path());
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &old), 0);
    EXPECT_NE(message.find("File too large"), std::string::npos) << message;
  }
  write_small(path_, info_, 256);
  EXPECT_EQ(TraceReader(path_).info(), info_);
}

TEST_P(Output, FullDisk) {
  const std::string disk = folder_.file("disk");
  std::filesystem::create_directory(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=128k") != 0) {
    GTEST_SKIP() << "a small tmpfs can be mounted by root only";
  }
  const std::string message = expect_failure(disk + "/out" + GetParam(), disk);
  const auto left = std::filesystem::space(disk).available;
  EXPECT_EQ(umount(disk.c_str()), 0);
  EXPECT_NE(message.find("No space left on device"), std::string::npos) << message;
  EXPECT_GE(left, 120'000u);
}

TEST_P(Output, BadDescriptionsAreUsageErrors) {
  const auto expect_usage = [&](const std::string& path, const TraceInfo& info) {
    try {
      TraceWriter writer(path, info);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::kUsage) << error.what();
    }
  };
  expect_usage(folder_.file("out.npz"), info_);
  TraceInfo bad = info_;
  bad.num_kv_heads = 3;
  expect_usage(path_, bad);
  bad = info_;
  bad.head_dim = std::numeric_limits<std::int64_t>::max();
  expect_usage(path_, bad);
  bad = info_;
  bad.rope_applied = false;
  expect_usage(path_, bad);
  bad = info_;
  bad.text = std::string("a\0b", 3);
  expect_usage(path_, bad);
  bad = info_;
  bad.answer_spans = {{5, 604}};
  expect_usage(path_, bad);
  EXPECT_EQ(files_in(folder_.path()), 0u);
}

INSTANTIATE_TEST_SUITE_P(Formats, Output, ::testing::Values(".h5", ".safetensors"),
                         [](const auto& test) { return test.param.substr(1); });

}  // namespace
}  // namespace sw
