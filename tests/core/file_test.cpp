#include "core/file.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "core/error.hpp"

namespace sw {
namespace {

namespace fs = std::filesystem;

class FileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "sw_file_test.XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }
  std::size_t files() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  std::string folder_;
};

TEST_F(FileTest, WritesReadsAndMaps) {
  write_file(path("a"), "hello", false);
  EXPECT_EQ(read_file(path("a")), "hello");
  const MappedFile map(path("a"));
  EXPECT_EQ(map.bytes().size(), 5u);
  EXPECT_EQ(static_cast<char>(map.bytes()[4]), 'o');
  EXPECT_EQ(files(), 1u);
}

TEST_F(FileTest, ExistingFilesAreKeptUnlessForced) {
  write_file(path("a"), "old", false);
  EXPECT_THROW(write_file(path("a"), "new", false), Error);
  EXPECT_EQ(read_file(path("a")), "old");
  write_file(path("a"), "new", true);
  EXPECT_EQ(read_file(path("a")), "new");
  EXPECT_EQ(files(), 1u);
}

TEST_F(FileTest, AFileThatAppearsMeanwhileIsKept) {
  PendingFile pending(path("a"), false);
  write_file(path("a"), "theirs", false);
  EXPECT_THROW(pending.commit(), Error);
  EXPECT_EQ(read_file(path("a")), "theirs");
}

TEST_F(FileTest, WithoutCommitNothingStays) {
  { const PendingFile pending(path("a"), false); }
  EXPECT_EQ(files(), 0u);
}

TEST_F(FileTest, UnwritablePlacesAreErrors) {
  EXPECT_THROW(write_file(path("no/such/folder"), "x", false), Error);
  EXPECT_THROW(write_file(folder_, "x", true), Error);
  EXPECT_THROW(write_file("", "x", false), Error);
  EXPECT_THROW(read_file(path("missing")), Error);
  EXPECT_THROW(read_file(folder_), Error);
  EXPECT_THROW(MappedFile{path("missing")}, Error);
}

TEST_F(FileTest, AFullDiskLeavesNothingBehind) {
  // A limit on the file size fails writes as a full disk does, and needs no root.
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 1000;
  setrlimit(RLIMIT_FSIZE, &small);
  EXPECT_THROW(write_file(path("a"), std::string(5000, 'x'), false), Error);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(files(), 0u);
}

TEST_F(FileTest, ReadingHasALimit) {
  write_file(path("a"), std::string(100, 'x'), false);
  EXPECT_THROW(read_file(path("a"), 99), Error);
  EXPECT_EQ(read_file(path("a"), 100).size(), 100u);
}

}  // namespace
}  // namespace sw
