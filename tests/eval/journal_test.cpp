#include "eval/journal.hpp"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <span>

#include "core/error.hpp"
#include "core/file.hpp"
#include "core/sha256.hpp"
#include "core/text.hpp"
#include "eval/layer_entry.hpp"
#include "eval/run_entry.hpp"
#include "support/tiny_trace.hpp"

namespace sw {
namespace {

using nlohmann::json;

const json kIdentity = {{"kind", "test"}, {"context", 4096}, {"files", {{"a.txt", "11"}}}};

class JournalTest : public ::testing::Test {
 protected:
  std::string path() const { return folder_.file("run.journal"); }
  void write(const std::string& text) const {
    std::ofstream(path(), std::ios::binary | std::ios::trunc) << text;
  }
  std::string text() const { return read_file(path()); }
  /// A file whose first line holds `identity`, with a checksum that is right.
  void write_header(const std::string& identity) const {
    write("sketchwalk-journal 2 " + sha256(std::as_bytes(std::span(identity))).substr(0, 16) + " " +
          identity + "\n");
  }
  std::string error(const json& identity = kIdentity) const {
    try {
      const Journal journal(path(), identity);
    } catch (const Error& e) {
      return std::string(e.what()) + " | " + e.hint();
    }
    return "";
  }
  /// A journal of three entries.
  std::string make() const {
    Journal journal(path(), kIdentity);
    for (int i = 0; i < 3; ++i) journal.append({{"i", i}, {"text", "caf\u00e9 \"\n"}});
    return text();
  }

  testing::TemporaryFolder folder_;
};

TEST_F(JournalTest, EntriesComeBackInOrder) {
  make();
  Journal journal(path(), kIdentity);
  ASSERT_EQ(journal.entries().size(), 3u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(journal.entries()[i].at("i"), i);
  journal.append({{"i", 3}});
  EXPECT_EQ(journal.entries().size(), 4u);
  EXPECT_EQ(journal.dropped_bytes(), 0);
}

TEST_F(JournalTest, CutAnywhereItKeepsWhatIsWholeAndGoesOn) {
  const std::string whole = make();
  std::vector<std::size_t> ends;
  for (std::size_t at = whole.find('\n'); at != std::string::npos; at = whole.find('\n', at + 1)) {
    ends.push_back(at + 1);
  }
  for (std::size_t cut = 0; cut <= whole.size(); ++cut) {
    write(whole.substr(0, cut));
    const auto complete = std::upper_bound(ends.begin(), ends.end(), cut) - ends.begin();
    {
      Journal journal(path(), kIdentity);
      ASSERT_EQ(std::ssize(journal.entries()), std::max<std::ptrdiff_t>(complete - 1, 0)) << cut;
      for (auto i = std::ssize(journal.entries()); i < 3; ++i) {
        journal.append({{"i", i}, {"text", "caf\u00e9 \"\n"}});
      }
    }
    EXPECT_EQ(text(), whole) << cut;
  }
}

TEST_F(JournalTest, AFlippedByteIsNeverBelieved) {
  const std::string whole = make();
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string broken = whole;
    broken[at] = static_cast<char>(broken[at] ^ 1);
    write(broken);
    std::size_t kept = 0;
    try {
      kept = Journal(path(), kIdentity).entries().size();
    } catch (const Error&) {
      continue;
    }
    // Accepted: then it is in the last line, taken for a torn one, or the newline before it, which
    // makes one torn line of the last two.
    const std::size_t newline = whole.rfind('\n', whole.size() - 2);
    EXPECT_GE(at, newline);
    EXPECT_EQ(kept, at == newline ? 1u : 2u) << at;
  }
}

TEST_F(JournalTest, SeveralBrokenLinesAtTheEndAreDamage) {
  // Each line is on the disk before the next is begun, so no crash tears two of them.
  const std::string whole = make();
  const std::size_t second = whole.find('\n') + 1;
  const std::size_t third = whole.find('\n', second) + 1;
  for (const std::size_t first_broken : {std::size_t{0}, second, third}) {
    std::string broken = whole;
    for (std::size_t at = first_broken + 22; at < broken.size(); ++at) {
      if (broken[at] != '\n') broken[at] = static_cast<char>(broken[at] ^ 1);
    }
    write(broken);
    EXPECT_NE(error().find("damaged"), std::string::npos) << first_broken;
    EXPECT_EQ(text(), broken) << "nothing may be cut off";
  }
}

TEST_F(JournalTest, WhatJsonCannotHoldComesBackAsItIsStored) {
  const json identity = {{"file", "caf\xe9.txt"}, {"limit", std::nan("")}};
  json kept;
  {
    Journal journal(path(), identity);
    journal.append({{"reply", "cut \xf0\x9f"}, {"loss", std::nan("")}});
    kept = journal.entries()[0];
    EXPECT_TRUE(kept.at("loss").is_null());
  }
  const Journal again(path(), identity);
  ASSERT_EQ(again.entries().size(), 1u);
  EXPECT_EQ(again.entries()[0], kept);
}

TEST_F(JournalTest, AKeyThatIsMissingIsNamed) {
  json other = kIdentity;
  other["seed"] = nullptr;
  make();
  EXPECT_NE(error(other).find("seed: nothing there, null now"), std::string::npos) << error(other);
}

TEST_F(JournalTest, HostileNestingIsRefused) {
  constexpr std::size_t kDepth = 200000;
  write_header("{\"a\":" + std::string(kDepth, '[') + std::string(kDepth, ']') + "}");
  EXPECT_NE(error().find("nested too deeply"), std::string::npos) << error();
  json deep = json::object();
  for (int i = 0; i < 100; ++i) deep = json{{"a", deep}};
  Journal journal(folder_.file("other.journal"), kIdentity);
  const std::string before = read_file(journal.path());
  EXPECT_THROW(journal.append(deep), Error);
  EXPECT_EQ(read_file(journal.path()), before);
  EXPECT_TRUE(journal.entries().empty());
}

TEST_F(JournalTest, KilledAtAnyMomentItHoldsAllThatWasAppended) {
  for (int round = 0; round < 20; ++round) {
    const std::string name = folder_.file("kill" + std::to_string(round));
    int ends[2];
    ASSERT_EQ(pipe(ends), 0);
    const pid_t child = fork();
    if (child == 0) {
      Journal journal(name, kIdentity);
      for (int i = 0;; ++i) {
        journal.append(
            {{"i", i}, {"text", std::string(static_cast<std::size_t>(i % 7) * 500, 'x')}});
        if (::write(ends[1], "+", 1) != 1) _exit(1);
      }
    }
    close(ends[1]);
    int appended = 0;
    char byte = 0;
    while (appended < 1 + round && read(ends[0], &byte, 1) == 1) ++appended;
    usleep(static_cast<useconds_t>(round) * 37);
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read(ends[0], &byte, 1) == 1) ++appended;
    close(ends[0]);
    const Journal journal(name, kIdentity);
    const auto& entries = journal.entries();
    ASSERT_GE(std::ssize(entries), appended);
    ASSERT_LE(std::ssize(entries), appended + 1);  // the last may have lost only its "+"
    for (int i = 0; i < std::ssize(entries); ++i) ASSERT_EQ(entries[i].at("i"), i);
  }
}

TEST_F(JournalTest, DamageInTheMiddleNamesTheLine) {
  std::string broken = make();
  broken[broken.find("\"i\":0")] = 'x';
  write(broken);
  EXPECT_NE(error().find("line 2"), std::string::npos) << error();
  EXPECT_EQ(text(), broken) << "nothing may be cut off";
}

TEST_F(JournalTest, AnotherRunIsRefusedAndTheDifferencesAreNamed) {
  const std::string whole = make();
  json other = kIdentity;
  other["context"] = 8192;
  other["files"]["a.txt"] = "22";
  const std::string message = error(other);
  EXPECT_NE(message.find("context: 4096 there, 8192 now"), std::string::npos) << message;
  EXPECT_NE(message.find("files/a.txt: \"11\" there, \"22\" now"), std::string::npos) << message;
  EXPECT_EQ(text(), whole);
}

TEST_F(JournalTest, WhatIsNoJournalIsNotTouched) {
  for (const std::string content :
       {"notes\n", "sketchwalk", "{}", "sketchwalk-journal x\n", "sketchwalk-journal\n2 "}) {
    write(content);
    const bool torn_header = std::string("sketchwalk-journal 2 ").starts_with(content);
    if (torn_header) {
      EXPECT_EQ(error(), "");
      continue;
    }
    EXPECT_NE(error().find("not a journal"), std::string::npos) << content;
    EXPECT_EQ(text(), content);
  }
}

TEST_F(JournalTest, AnotherVersionIsRefusedAsSuch) {
  const std::string whole = make();
  for (const std::string version : {"1", "3", "20", "12345678901234567890"}) {
    const std::string other =
        "sketchwalk-journal " + version + whole.substr(std::string("sketchwalk-journal 2").size());
    // Cut, it is still the other version's, and so it is when its lines do not check.
    for (const std::string& content : {other, other.substr(0, 40), "sketchwalk-journal " + version,
                                       other.substr(0, 60) + other.substr(61)}) {
      write(content);
      const std::string message = error();
      EXPECT_NE(message.find("written by another version"), std::string::npos) << message;
      EXPECT_NE(message.find("form " + version.substr(0, 10)), std::string::npos) << message;
      EXPECT_NE(message.find("go on with the version that wrote it"), std::string::npos) << message;
      EXPECT_EQ(message.find("damaged"), std::string::npos) << message;
      EXPECT_EQ(text(), content);
      EXPECT_THROW(JournalReader{path()}, Error);
    }
  }
}

// Entries as they stand in journals of this version. When this fails their form has changed: raise
// kJournalVersion, and bring make_corpus.py up to date.
TEST(JournalVersion, EntriesHaveItsForm) {
  ASSERT_EQ(kJournalVersion, 2);
  const auto lines = [](const std::string& name) {
    return split(read_file(SW_TEST_DIR "/fuzz/corpus/" + name), '\n');
  };
  const json layer = json::parse(lines("layer_entry/whole").at(0));
  EXPECT_EQ(to_json(layer_entry_from_json(layer, {1, 2})), layer);
  for (const char* name : {"journal/replies", "journal/windows"}) {
    const json entry = json::parse(lines(name).at(1));
    EXPECT_EQ(to_json(run_entry_from_json(entry)), entry);
  }
}

TEST_F(JournalTest, TheSecondProcessIsRefused) {
  const Journal journal(path(), kIdentity);
  const pid_t child = fork();
  if (child == 0) _exit(error().find("another process") != std::string::npos ? 0 : 1);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST_F(JournalTest, AFullDiskLosesNothing) {
  const std::string whole = make();
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{whole.size() + 100, whole.size() + 100};
    setrlimit(RLIMIT_FSIZE, &limit);
    int code = 1;
    try {
      Journal journal(path(), kIdentity);
      journal.append({{"large", std::string(1000, 'x')}});
    } catch (const Error& e) {
      code = e.kind() == ErrorKind::kOutput ? 0 : 2;
    }
    _exit(code);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(text(), whole);
}

TEST_F(JournalTest, AFolderThatIsNotThereIsAnError) {
  EXPECT_THROW(Journal(folder_.file("none/run.journal"), kIdentity), Error);
}

}  // namespace
}  // namespace sw
