// flexkv trace as a program: golden outputs for small traces, hostile inputs, exit codes, signals.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::json;

constexpr const char* kNothing = " 2>/dev/null";

std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

class TraceCommandsTest : public testing::Test {
 protected:
  std::string Path(const std::string& name) const { return dir_.path() + "/" + name; }
  std::string Write(const std::string& name, const std::string& text) const {
    std::ofstream(Path(name), std::ios::binary) << text;
    return Path(name);
  }
  CommandResult Run(const std::string& arguments) const {
    return Execute(absl::StrCat("cd ", dir_.path(), " && ", FLEXKV_CLI, " ", arguments));
  }
  // What a command prints is what stands in the file. FLEXKV_UPDATE_GOLDEN=1 writes it anew.
  void ExpectGolden(const std::string& name, const std::string& arguments) const {
    const CommandResult result = Run(arguments);
    EXPECT_EQ(result.code, 0) << result.output;
    const std::string path = absl::StrCat(FLEXKV_GOLDEN_DIR, "/", name);
    if (std::getenv("FLEXKV_UPDATE_GOLDEN") != nullptr) {
      std::ofstream(path, std::ios::binary) << result.output;
    }
    EXPECT_EQ(result.output, ReadFile(path)) << arguments;
  }
  // One line that names what is wrong, and the code for bad input.
  void ExpectRefused(const std::string& arguments, const std::string& words) const {
    const CommandResult result = Run(arguments);
    EXPECT_EQ(result.code, 2) << arguments << "\n" << result.output;
    EXPECT_THAT(result.output, HasSubstr(words)) << arguments;
    EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 1) << result.output;
    for (const char c : result.output) EXPECT_TRUE(c == '\n' || (c >= 0x20 && c != 0x7f));
  }
  // 300 prompts of a small, fixed family.
  std::string Generated() const {
    EXPECT_EQ(Run("trace generate chat --seed 3 --requests 300 -o chat.jsonl").code, 0);
    return "chat.jsonl";
  }
  TempDir dir_;
};

TEST_F(TraceCommandsTest, GoldenOutputs) {
  std::filesystem::copy_file(absl::StrCat(FLEXKV_GOLDEN_DIR, "/measured.jsonl"),
                             Path("measured.jsonl"));
  ExpectGolden("info.txt", "trace info measured.jsonl");
  ExpectGolden("info.json", "trace info --json measured.jsonl");
  ExpectGolden("analyze.txt", "trace analyze measured.jsonl");
  ExpectGolden("analyze.json", "trace analyze --json measured.jsonl");
  ExpectGolden("simulate.txt",
               "trace simulate measured.jsonl --policy lru,min --cpu-blocks 3,6,12,inf "
               "--ssd-blocks 0,12");
  ExpectGolden("simulate.json",
               "trace simulate measured.jsonl --policy lru,min --cpu-blocks 3,6,inf --json");
  ExpectGolden("curve.txt", "trace simulate measured.jsonl --curve");
}

TEST_F(TraceCommandsTest, SimulateJsonHasTheKeysAndNoOthers) {
  const CommandResult result =
      Run(Generated() + " " + kNothing);  // not a command: usage goes to stderr
  EXPECT_EQ(result.code, 2);
  const CommandResult cells = Run(
      "trace simulate chat.jsonl --policy all --cpu-blocks 100,1k,inf --ssd-blocks 0,500 --json");
  ASSERT_EQ(cells.code, 0) << cells.output;
  std::vector<std::string> lines = absl::StrSplit(cells.output, '\n', absl::SkipEmpty());
  EXPECT_GE(lines.size(), 3u * 2 * 8);
  double infinite = -1;
  for (const std::string& line : lines) {
    const Json cell = Json::parse(line, nullptr, false);
    ASSERT_TRUE(cell.is_object()) << line;
    std::vector<std::string> keys;
    for (const auto& [key, value] : cell.items()) keys.push_back(key);
    EXPECT_THAT(keys, testing::UnorderedElementsAre("policy", "cpu_blocks", "ssd_blocks",
                                                    "hit_rate", "hit_rate_cpu", "hit_rate_ssd",
                                                    "requests", "prompt_tokens"));
    EXPECT_EQ(cell["requests"], 300);
    EXPECT_NEAR(cell["hit_rate"].get<double>(),
                cell["hit_rate_cpu"].get<double>() + cell["hit_rate_ssd"].get<double>(), 1e-12);
    if (cell["cpu_blocks"] != "inf") continue;
    if (infinite < 0) infinite = cell["hit_rate"];
    EXPECT_DOUBLE_EQ(cell["hit_rate"].get<double>(), infinite) << line;
  }
  EXPECT_GT(infinite, 0.1);
}

TEST_F(TraceCommandsTest, CurveAndCellsSayTheSame) {
  Generated();
  const CommandResult curve = Run("trace simulate chat.jsonl --curve --json");
  ASSERT_EQ(curve.code, 0) << curve.output;
  std::vector<std::string> lines = absl::StrSplit(curve.output, '\n', absl::SkipEmpty());
  ASSERT_GT(lines.size(), 20u);
  for (size_t i = 0; i < lines.size(); i += lines.size() / 6) {
    const Json point = Json::parse(lines[i]);
    const std::string size = point["cpu_blocks"].is_string() ? "inf" : point["cpu_blocks"].dump();
    const CommandResult cell =
        Run("trace simulate chat.jsonl --policy lru --json --cpu-blocks " + size);
    ASSERT_EQ(cell.code, 0) << cell.output;
    EXPECT_EQ(Json::parse(cell.output)["hit_rate"], point["hit_rate"]) << size;
  }
}

TEST_F(TraceCommandsTest, DefaultsOraclesAndConfigurations) {
  Generated();
  const CommandResult table = Run("trace simulate chat.jsonl");
  EXPECT_EQ(table.code, 0) << table.output;
  EXPECT_THAT(table.output, HasSubstr("default ("));
  EXPECT_THAT(table.output, HasSubstr("min"));
  EXPECT_THAT(table.output, HasSubstr("inf"));
  EXPECT_EQ(
      Run("trace simulate chat.jsonl --policy default --cpu-blocks 100 --hint-oracle 0.9:7").code,
      0);
  Write("node.json", R"({"cpu_cache_bytes": "64MiB", "eviction_policy": "lru", "enable_ssd": true,
                         "ssd_cache_dir": "/tmp/flexkv-no-such", "ssd_cache_bytes": "256MiB"})");
  const CommandResult node =
      Run("trace simulate chat.jsonl --config node.json --block-bytes 1MiB --timed --json");
  ASSERT_EQ(node.code, 0) << node.output;
  EXPECT_EQ(Json::parse(node.output)["cpu_blocks"], 64);
  EXPECT_EQ(Json::parse(node.output)["ssd_blocks"], 256);
  ExpectRefused("trace simulate chat.jsonl --config node.json", "--block-bytes");
  Write("bad.json", R"({"cpu_cache_byte": 1})");
  ExpectRefused("trace simulate chat.jsonl --config bad.json", "did you mean cpu_cache_bytes?");
}

TEST_F(TraceCommandsTest, WrongArgumentsAreOneLine) {
  Generated();
  ExpectRefused("trace simulate chat.jsonl --policy lruu", "did you mean lru?");
  ExpectRefused("trace simulate chat.jsonl --cpu-blocks 1x", "--cpu-blocks");
  ExpectRefused("trace simulate chat.jsonl --cpu-blocks ,", "--cpu-blocks");
  ExpectRefused("trace simulate chat.jsonl --admission sometimes", "second_touch");
  ExpectRefused("trace simulate chat.jsonl --hint-oracle 1.5", "--hint-oracle");
  ExpectRefused("trace simulate chat.jsonl --block-bytes 0", "--block-bytes");
  ExpectRefused("trace analyze chat.jsonl --max-memory 1", "--max-memory");
  ExpectRefused("trace generate nonsense -o x.jsonl", "chat");
  ExpectRefused("trace analyze /no/such/trace.jsonl", "/no/such/trace.jsonl");
  ExpectRefused("trace report chat.jsonl -o /no/such/report.html --policy none", "/no/such");
  EXPECT_EQ(Run("trace").code, 2);
  EXPECT_EQ(Run("trace analyze").code, 2);
  EXPECT_EQ(Run("trace --help").code, 0);
  for (const char* command : {"info", "analyze", "simulate", "report", "generate"}) {
    EXPECT_THAT(Run(absl::StrCat("trace ", command, " --help")).output, HasSubstr("Examples:"));
  }
}

TEST_F(TraceCommandsTest, HostileInputsAreRefusedOrCounted) {
  const std::string line =
      R"({"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]})"
      "\n";
  std::string good;
  for (int i = 0; i < 2000; ++i) good += line;
  Write("empty.jsonl", "");
  Write("binary.jsonl", std::string(5000, '\0') + "\x1f\xff\x80");
  Write("text.jsonl", "these are\nnot the lines\nthat you seek\n");
  Write("gzip.jsonl", "\x1f\x8b\x08 cut");
  Write("mixed.jsonl", good + R"({"chat_id": 1, "parent_chat_id": -1, "timestamp": 1, )"
                              R"("input_length": 5, "output_length": 5, "type": "a", "turn": 1, )"
                              R"("hash_ids": [1]})"
                              "\n");
  for (const char* name : {"empty.jsonl", "binary.jsonl", "text.jsonl"}) {
    for (const char* command : {"info", "analyze", "simulate"}) {
      ExpectRefused(absl::StrCat("trace ", command, " ", name), name);
    }
    ExpectRefused(absl::StrCat("trace report -o r.html ", name), name);
    EXPECT_FALSE(std::filesystem::exists(Path("r.html")));
  }
  EXPECT_NE(Run("trace analyze gzip.jsonl").code, 0);
  EXPECT_NE(Run("trace analyze mixed.jsonl").code, 139);
  // Cut in the middle of a line, and numbers that are none.
  Write("cut.jsonl", good + line.substr(0, 30));
  Write("huge.jsonl",
        good + R"({"timestamp": 1e400, "input_length": 99999999999999999999, "hash_ids": [-1]})"
               "\n");
  for (const char* name : {"cut.jsonl", "huge.jsonl"}) {
    const CommandResult result = Run(absl::StrCat("trace analyze ", name));
    EXPECT_EQ(result.code, 0) << result.output;
    EXPECT_THAT(result.output, HasSubstr("1 bad lines of")) << name;
    EXPECT_THAT(result.output, HasSubstr(":2001: ")) << name;
  }
  // Half of the lines: too many.
  std::string half;
  for (int i = 0; i < 100; ++i) half += line + "nonsense\n";
  Write("half.jsonl", half);
  ExpectRefused("trace analyze half.jsonl", "half.jsonl");
  EXPECT_EQ(Run("trace analyze half.jsonl --max-bad 0.6").code, 0);
}

TEST_F(TraceCommandsTest, StandardInputIsReadOnce) {
  const std::string trace = Generated();
  EXPECT_EQ(Run("trace analyze - < " + trace).output, Run("trace analyze " + trace).output);
  EXPECT_EQ(Run("trace simulate - --policy lru --cpu-blocks 100 < " + trace).code, 0);
  ExpectRefused("trace simulate - < " + trace, "--cpu-blocks");
  EXPECT_EQ(Run("trace report - -o r.html --policy none < " + trace).code, 0);
  EXPECT_TRUE(std::filesystem::exists(Path("r.html")));
}

TEST_F(TraceCommandsTest, GeneratedTrafficIsTheSameForASeed) {
  Generated();
  EXPECT_EQ(Run("trace generate chat --seed 3 --requests 300 -o again.jsonl").code, 0);
  EXPECT_EQ(ReadFile(Path("chat.jsonl")), ReadFile(Path("again.jsonl")));
  EXPECT_EQ(Run("trace generate chat --seed 4 --requests 300 -o other.jsonl").code, 0);
  EXPECT_NE(ReadFile(Path("chat.jsonl")), ReadFile(Path("other.jsonl")));
}

// A pipe that gives lines and never ends: only a signal can end the command.
TEST_F(TraceCommandsTest, InterruptedWithinASecondAndWithoutRests) {
  const std::string pipe = Path("endless");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  std::thread writer([&] {
    std::ofstream out(pipe);
    const std::string line =
        R"({"timestamp": 0, "input_length": 1024, "output_length": 1, "hash_ids": [1, 2]})"
        "\n";
    while (out << line) {
    }
  });
  signal(SIGPIPE, SIG_IGN);
  for (const int sent : {SIGINT}) {
    ChildProcess child({FLEXKV_CLI, "trace", "report", pipe, "-o", Path("r.html")});
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    const auto began = std::chrono::steady_clock::now();
    child.Kill(sent);
    EXPECT_EQ(child.Wait(), 130);
    EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
  }
  writer.join();
  EXPECT_FALSE(std::filesystem::exists(Path("r.html")));
}

}  // namespace
}  // namespace flexkv
