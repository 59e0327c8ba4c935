#include <gtest/gtest.h>
#include <sys/mount.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "support/command.hpp"
#include "support/tiny_trace.hpp"

/// sw-trace as a program: exit codes and messages.
namespace sw {
namespace {

using namespace sw::testing;

class SwTrace : public ::testing::Test {
 protected:
  TemporaryFolder folder_;

  CommandResult run(const std::string& arguments) const {
    return run_command("cd '" + folder_.path() + "' && '" SW_BIN_DIR "/sw-trace' " + arguments);
  }
  void expect(int code, const std::string& arguments, const std::string& part) const {
    const CommandResult result = run(arguments);
    EXPECT_EQ(result.code, code) << arguments << "\n" << result.output;
    EXPECT_NE(result.output.find(part), std::string::npos) << arguments << "\n" << result.output;
  }
  std::string read(const std::string& name) const {
    std::ifstream file(folder_.file(name), std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }
  void write(const std::string& name, const std::string& text) const {
    std::ofstream(folder_.file(name)) << text;
  }
};

TEST_F(SwTrace, HelpAndVersion) {
  expect(0, "--version", "sw-trace 0.");
  expect(0, "--help", "validate");
  for (const char* command : {"make", "inspect", "validate", "import", "capture"}) {
    expect(0, std::string(command) + " --help", "Examples:\n  sw-trace " + std::string(command));
    expect(0, std::string(command) + " --version", "sw-trace 0.");
  }
}

TEST_F(SwTrace, UsageErrorsSuggestTheNearestName) {
  expect(2, "", "A subcommand is required");
  expect(2, "mke", "error: unknown command 'mke'\nhint: did you mean 'make'?");
  expect(2, "make --tokns 5 -o a.h5",
         "error: unknown option '--tokns'\nhint: did you mean '--tokens'?");
  expect(2, "make --tokns=5 -o a.h5", "did you mean '--tokens'?");
  expect(2, "make --tokens five -o a.h5", "--tokens");
  expect(2, "make --preset huge -o a.h5", "--preset");
  expect(2, "make --dtype f64 -o a.h5", "--dtype");
  expect(2, "make --threads 0 -o a.h5", "--threads");
  expect(2, "make --backend gpu -o a.h5", "--backend");
  expect(2, "make", "--output is required");
  expect(2, "make -o a.npz", "end it in .h5 or .safetensors");
  expect(2, "make --heads 4 --kv-heads 3 -o a.h5", "multiple of the number of KV heads");
  expect(2, "make --tokens 0 -o a.h5", "positive");
  expect(2, "validate", "file is required");
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
}

TEST_F(SwTrace, MakeInspectValidateImport) {
  const std::string make =
      "make --quiet --layers 2 --first-layer 3 --tokens 300 --hops 2 --seed 7 ";
  expect(0, make + "-o a.h5", "");
  expect(0, make + "-o b.safetensors --threads 1", "");
  EXPECT_EQ(run("validate a.h5 b.safetensors").output, "a.h5: good\nb.safetensors: good\n");

  // Both containers hold the same, and conversion keeps it.
  expect(0, "import --quiet a.h5 -o c.safetensors", "");
  EXPECT_EQ(read("b.safetensors"), read("c.safetensors"));
  expect(0, "import --quiet b.safetensors --compression 0 -o c.h5", "");
  expect(0, "import --quiet c.h5 -o d.safetensors", "");
  EXPECT_EQ(read("b.safetensors"), read("d.safetensors"));
  expect(0, "import --quiet a.h5 --dtype f32 -o e.h5", "");
  expect(0, "import --quiet e.h5 --dtype bf16 -o f.safetensors", "");
  EXPECT_EQ(read("b.safetensors"), read("f.safetensors"));

  const CommandResult json = run("inspect --json a.h5 b.safetensors");
  const auto list = nlohmann::json::parse(json.output);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["container"], "HDF5");
  EXPECT_EQ(list[1]["container"], "safetensors");
  EXPECT_EQ(list[0]["num_layers"], 2);
  EXPECT_EQ(list[0]["first_layer"], 3);
  EXPECT_EQ(list[0]["total_tokens"], 316);
  EXPECT_EQ(list[0]["dtype"], "bf16");
  EXPECT_NE(list[0]["source"].get<std::string>().find("seed 7"), std::string::npos);
  expect(0, "inspect a.h5", "layers      2 (3 .. 4)");

  expect(0, "make --quiet --preset medium --layers 1 --tokens 64 -o g.h5", "");
  expect(0, "inspect g.h5", "8 query, 2 KV, dim 128");
}

TEST_F(SwTrace, ImportRefusesWhatF16CannotHold) {
  expect(0, "make --quiet --sink-strength 1000 --head-dim 2 --tokens 64 --dtype f32 -o a.h5", "");
  // d^(1/4) * 1000 fits; a trace with larger values does not.
  expect(0, "import --quiet a.h5 --dtype f16 -o b.h5", "");
  TinyTrace tiny;
  tiny.layers = 1;
  TraceWriter writer(folder_.file("c.h5"), tiny.info());
  HeadsTensor v = tiny.tensor(1, 2);
  v.row<float>(1, 5)[0] = 70000;
  writer.append(1, tiny.tensor(1, 0).view(), tiny.tensor(1, 1).view(), v.view());
  writer.commit();
  expect(1, "import --quiet c.h5 --dtype f16 -o d.h5",
         "layer 1: v at head 1, token 5 exceeds the range of f16");
  EXPECT_FALSE(std::filesystem::exists(folder_.file("d.h5")));
}

TEST_F(SwTrace, ValidateListsProblemsAndFails) {
  const std::string data = SW_TEST_DIR "/data/trace/";
  expect(1, "validate " + data + "bad_nan.h5 " + data + "good_big_f16.h5 none.h5",
         "good_big_f16.h5: good");
  const std::string output = run("validate " + data + "bad_group.h5 none.h5").output;
  EXPECT_NE(output.find("bad_group.h5: 5 problems"), std::string::npos) << output;
  EXPECT_NE(output.find("none.h5: 1 problem\n"), std::string::npos) << output;
  expect(1, "inspect " + data + "bad_rope.h5", "hint: hook the attention call");
  expect(1, "inspect none.h5", "No such file");
  expect(1, "import " + data + "bad_version.h5 -o a.h5", "newer");
}

TEST_F(SwTrace, OutputThatCannotBeWritten) {
  write("a.h5", "mine");
  expect(1, "make -o a.h5", "hint: use --force to replace it");
  EXPECT_EQ(read("a.h5"), "mine");
  expect(0, "make --quiet --force -o a.h5", "");
  expect(1, "make -o none/a.h5", "error: cannot write 'none/a.h5'");
  expect(1, "inspect a.h5 > /dev/full", "cannot write to the standard output");
  // A limit of 512 KiB on files, in a shell that has not yet ignored the signal.
  const CommandResult limited =
      run_command("ulimit -f 512; cd '" + folder_.path() +
                  "' && '" SW_BIN_DIR "/sw-trace' make --quiet -o b.h5; echo code $?; '" SW_BIN_DIR
                  "/sw-trace' make --quiet -o b.safetensors; echo code $?");
  EXPECT_NE(limited.output.find("cannot write 'b.h5': File too large"), std::string::npos)
      << limited.output;
  EXPECT_NE(limited.output.find("cannot write 'b.safetensors': File too large"), std::string::npos);
  EXPECT_EQ(limited.output.find("code 0"), std::string::npos);
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder_.path())) {
    ++files;
  }
  EXPECT_EQ(files, 1u);
}

TEST_F(SwTrace, FullDisk) {
  const std::string disk = folder_.file("disk");
  std::filesystem::create_directory(disk);
  if (mount("tmpfs", disk.c_str(), "tmpfs", 0, "size=512k") != 0) {
    GTEST_SKIP() << "a small tmpfs can be mounted by root only";
  }
  for (const char* name : {"a.h5", "a.safetensors"}) {
    const CommandResult result = run(std::string("make --quiet -o disk/") + name);
    EXPECT_EQ(result.code, 1);
    EXPECT_EQ(result.output.find("error: cannot write 'disk/"), 0u) << result.output;
    EXPECT_NE(result.output.find("No space left on device\nhint: "), std::string::npos);
    EXPECT_TRUE(std::filesystem::is_empty(disk));
  }
  EXPECT_EQ(umount(disk.c_str()), 0);
}

TEST_F(SwTrace, ConfigFile) {
  write("c.json", R"({"tokens": 128, "decode-tokens": 0, "dtype": "f32", "quiet": true,
                      "force": false, "heavy-strength": 7.5, "output": "a.h5"})");
  expect(0, "make --config c.json", "");
  expect(0, "make --config=c.json -o b.h5 --tokens 256", "");
  const auto list = nlohmann::json::parse(run("inspect --json a.h5 b.h5").output);
  EXPECT_EQ(list[0]["total_tokens"], 128);
  EXPECT_EQ(list[1]["total_tokens"], 256);
  EXPECT_EQ(list[1]["dtype"], "f32");
  EXPECT_NE(list[0]["source"].get<std::string>().find("heavy strength 7.5"), std::string::npos);

  expect(1, "make --config none.json -o c.h5", "No such file");
  write("d.json", R"({"tokns": 128})");
  expect(2, "make --config d.json -o c.h5", "did you mean '--tokens'?");
  write("d.json", R"({"tokens": {"a": 1}})");
  expect(2, "make --config d.json -o c.h5", "the value of 'tokens'");
  write("d.json", R"([1])");
  expect(2, "make --config d.json -o c.h5", "not a JSON object");
  write("d.json", R"({"tokens": )");
  expect(2, "make --config d.json -o c.h5", "not a JSON object");
}

TEST_F(SwTrace, ProgressGoesToStderr) {
  EXPECT_EQ(run("make -o a.h5 2>/dev/null").output, "");
  EXPECT_NE(run("make -o b.h5").output, "");
  EXPECT_EQ(run("make --quiet -o c.h5").output, "");
}

}  // namespace
}  // namespace sw
