// `flexkv ssd verify` as a program: exit codes, output, signals.
#include <fcntl.h>
#include <pty.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "tests/storage/ssd_verify_fixture.h"

namespace flexkv {
namespace {

using testing::HasSubstr;
using testing::Not;

struct Result {
  int code = -1;  // minus the signal that ended it
  std::string out, err;
};

class Child {
 public:
  // `terminal`: stderr is one. `faults`: see base/fault.h.
  explicit Child(std::vector<std::string> arguments, bool terminal = false,
                 const char* faults = "") {
    int out[2] = {-1, -1}, err[2] = {-1, -1};
    EXPECT_EQ(pipe(out), 0);
    EXPECT_EQ(terminal ? openpty(&err[0], &err[1], nullptr, nullptr, nullptr) : pipe(err), 0);
    arguments.insert(arguments.begin(), {FLEXKV_CLI, "ssd", "verify"});
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      dup2(err[1], STDERR_FILENO);
      for (const int fd : {out[0], out[1], err[0], err[1]}) close(fd);
      setenv("FLEXKV_FAULTS", faults, 1);
      execv(pointers[0], pointers.data());
      _exit(127);
    }
    close(out[1]);
    close(err[1]);
    out_ = out[0];
    err_ = err[0];
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  void Kill(int signal) const { kill(pid_, signal); }
  // What it prints is far less than a pipe holds, so one after the other.
  Result Wait() {
    Result result;
    result.out = ReadAll(out_);
    result.err = ReadAll(err_);
    int status = 0;
    waitpid(pid_, &status, 0);
    result.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    return result;
  }

 private:
  static std::string ReadAll(int fd) {
    std::string text;
    char piece[4096];
    ssize_t got = 0;
    while ((got = read(fd, piece, sizeof(piece))) > 0) text.append(piece, static_cast<size_t>(got));
    close(fd);
    return text;
  }

  pid_t pid_ = -1;
  int out_ = -1, err_ = -1;
};

Result RunVerify(std::vector<std::string> arguments) { return Child(std::move(arguments)).Wait(); }

class SsdVerifyProcessTest : public testing::Test {
 protected:
  void SetUp() override { directory_.Fill(); }
  // Until somebody has the directory.
  bool WaitUntilLocked() const {
    const int fd = open((directory_.path() + "/lock").c_str(), O_RDONLY | O_CLOEXEC);
    bool locked = false;
    for (int i = 0; i < 2000 && !locked; ++i) {
      locked = flock(fd, LOCK_EX | LOCK_NB) != 0;
      if (locked) break;
      flock(fd, LOCK_UN);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    close(fd);
    return locked;
  }
  SsdDirectory directory_;
};

TEST_F(SsdVerifyProcessTest, AGoodDirectory) {
  const auto before = directory_.Snapshot();
  const Result result = RunVerify({directory_.path()});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr(directory_.path() + ": good"));
  EXPECT_THAT(result.out, HasSubstr("24 good, 0 corrupt, 0 unreadable"));
  EXPECT_THAT(result.out, HasSubstr("2 open, 0 cut short, 0 unreadable"));
  EXPECT_EQ(result.err, "") << "no progress of a moment on a pipe";
  EXPECT_TRUE(before == directory_.Snapshot());
}

TEST_F(SsdVerifyProcessTest, DamageIsFoundRepairedAndGone) {
  directory_.FlipPayload(5);
  directory_.SwapRecords(17, 23);
  std::filesystem::remove(directory_.FileOf(1, "log"));
  const auto before = directory_.Snapshot();
  Result result = RunVerify({directory_.path()});
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.out, HasSubstr("21 good, 3 corrupt"));
  EXPECT_THAT(result.out, HasSubstr("nothing was changed; --repair"));
  EXPECT_TRUE(before == directory_.Snapshot());
  result = RunVerify({directory_.path(), "--repair"});
  EXPECT_EQ(result.code, 0) << result.out;
  EXPECT_THAT(result.out, HasSubstr("freed 3 bad block(s)"));
  EXPECT_THAT(result.out, HasSubstr("repaired: "));
  result = RunVerify({directory_.path()});
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.out, HasSubstr("21 good, 0 corrupt"));
  directory_.ExpectExactly(directory_.AllBut({5, 17, 23}));
}

TEST_F(SsdVerifyProcessTest, Json) {
  SsdDirectory other;
  other.FillWith({ChainIdentity(9, 0)});
  directory_.FlipPayload(0);
  const Result result = RunVerify({"--json", directory_.path(), other.path()});
  EXPECT_EQ(result.code, 1);
  const nlohmann::json json = nlohmann::json::parse(result.out, nullptr, false);
  ASSERT_FALSE(json.is_discarded()) << result.out;
  EXPECT_EQ(json["result"], "damaged");
  ASSERT_EQ(json["directories"].size(), 2u);
  EXPECT_EQ(json["directories"][0]["blocks"]["corrupt"], 1);
  EXPECT_EQ(json["directories"][0]["blocks"]["orphans"], 5);
  EXPECT_EQ(json["directories"][0]["segments"]["open"], 2);
  EXPECT_EQ(json["directories"][1]["damaged"], false);
  EXPECT_EQ(json["directories"][1]["blocks"]["good"], 1);
}

TEST_F(SsdVerifyProcessTest, RefusalsAreOneLine) {
  const auto one_line = [](const Result& result) {
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
    EXPECT_EQ(result.out, "");
  };
  SsdDirectory foreign;
  std::ofstream(foreign.path() + "/letter.txt") << "dear";
  for (const std::string& path : {foreign.path(), foreign.path() + "/none"}) {
    const Result result = RunVerify({path, "--repair"});
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.err, HasSubstr(path));
    one_line(result);
  }
  EXPECT_EQ(foreign.Snapshot().size(), 1u);
  const OpenedStore opened(directory_.path());
  const Result result = RunVerify({directory_.path()});
  EXPECT_EQ(result.code, 3);
  EXPECT_THAT(result.err, HasSubstr("in use"));
  EXPECT_THAT(result.err, HasSubstr("flexkv stop"));
  one_line(result);
}

TEST_F(SsdVerifyProcessTest, Usage) {
  EXPECT_EQ(RunVerify({}).code, 2);
  EXPECT_EQ(RunVerify({"--no-such-flag", directory_.path()}).code, 2);
  const Result help = RunVerify({"--help"});
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.out, HasSubstr("Examples:"));
  EXPECT_THAT(help.out, HasSubstr("--repair"));
}

TEST_F(SsdVerifyProcessTest, ProgressOnATerminal) {
  Child child({directory_.path()}, /*terminal=*/true, "disk.slow");
  const Result result = child.Wait();
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("\r"));
  EXPECT_THAT(result.err, HasSubstr(" %, "));
  EXPECT_THAT(result.err, HasSubstr("/s"));
  EXPECT_THAT(result.err, testing::EndsWith("\x1b[K")) << "the line is cleared";
}

TEST_F(SsdVerifyProcessTest, InterruptedEndsWithAPartialSummary) {
  directory_.FlipPayload(3);
  for (const char* mode : {"--json", "--repair"}) {
    const auto before = directory_.Snapshot();
    Child child({directory_.path(), mode}, false, "disk.slow");
    ASSERT_TRUE(WaitUntilLocked());
    child.Kill(SIGINT);
    const Result result = child.Wait();
    EXPECT_EQ(result.code, 130) << result.err;
    EXPECT_THAT(result.out, HasSubstr("interrupted"));
    EXPECT_THAT(result.out, Not(HasSubstr("freed")));
    EXPECT_TRUE(before == directory_.Snapshot()) << mode;
  }
}

TEST_F(SsdVerifyProcessTest, ADeviceThatCannotBeRead) {
  Child child({directory_.path(), "--json"}, false, "disk.eio_read");
  const Result result = child.Wait();
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("cannot read superblock"));
}

}  // namespace
}  // namespace flexkv
