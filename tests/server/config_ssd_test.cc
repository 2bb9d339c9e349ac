// Keys of the SSD tier, and what is refused about its directories before a device is opened.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/server/config.h"
#include "flexkv/storage/ssd/ssd_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/config_cases.h"

namespace flexkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class SsdConfigErrorTest : public testing::TestWithParam<ErrorCase> {};

TEST_P(SsdConfigErrorTest, OneClearLine) { ExpectOneClearLine(GetParam()); }

INSTANTIATE_TEST_SUITE_P(
    Table, SsdConfigErrorTest,
    testing::Values(
        ErrorCase{R"({"enable_ssd": 1})", "enable_ssd", "true or false"},
        ErrorCase{R"({"enable_ssd": true})", "enable_ssd", "needs ssd_cache_dir"},
        ErrorCase{R"({"enable_ssd": true, "ssd_cache_dir": ""})", "enable_ssd", "needs"},
        ErrorCase{R"({"ssd_cache_dirs": "/x"})", "ssd_cache_dirs", "did you mean ssd_cache_dir?"},
        ErrorCase{R"({"ssd_cache_dir": "x/y"})", "ssd_cache_dir", "absolute path"},
        ErrorCase{R"({"ssd_cache_dir": 7})", "ssd_cache_dir", "string"},
        ErrorCase{R"({"ssd_cache_dir": []})", "ssd_cache_dir", "1 to 16"},
        ErrorCase{R"({"ssd_cache_dir": ["/a", ""]})", "ssd_cache_dir", "absolute path"},
        ErrorCase{R"({"ssd_cache_dir": ["/a", 3]})", "ssd_cache_dir", "string"},
        ErrorCase{"{\"ssd_cache_dir\": \"/a\\nb\"}", "ssd_cache_dir", "control characters"},
        ErrorCase{R"({"ssd_cache_dir": ["/a", "/b", "/a/"]})", "ssd_cache_dir", "/a twice"},
        ErrorCase{R"({"ssd_cache_dir": ["/a/b", "/a/./c/../b"]})", "ssd_cache_dir", "twice"},
        ErrorCase{R"({"ssd_cache_dir": ["/1","/2","/3","/4","/5","/6","/7","/8","/9","/10","/11",
                  "/12","/13","/14","/15","/16","/17"]})",
                  "ssd_cache_dir", "1 to 16"},
        ErrorCase{R"({"ssd_cache_bytes": "1MiB"})", "ssd_cache_bytes", "at least 8.00 MiB"},
        ErrorCase{R"({"ssd_cache_bytes": "lots"})", "ssd_cache_bytes", "not a size"},
        ErrorCase{R"({"ssd_cache_bytes": "120%"})", "ssd_cache_bytes", "above 100"},
        ErrorCase{R"({"ssd_cache_bytes": "0.5%"})", "ssd_cache_bytes", "at least 1 %"},
        ErrorCase{R"({"ssd_cache_bytes": -1})", "ssd_cache_bytes", "not -1"},
        ErrorCase{
            R"({"enable_ssd": true, "ssd_cache_dir": ["/a", "/b"], "ssd_cache_bytes": "8MiB"})",
            "ssd_cache_bytes", "less than 8.00 MiB each"},
        ErrorCase{R"({"num_ssd_blocks": -1})", "num_ssd_blocks", "whole number"},
        ErrorCase{R"({"num_ssd_blocks": "all"})", "num_ssd_blocks", "whole number"},
        ErrorCase{R"({"ssd_segment_bytes": "1MiB"})", "ssd_segment_bytes", "at least 2.00 MiB"},
        ErrorCase{R"({"ssd_segment_bytes": "2TiB"})", "ssd_segment_bytes", "at most 1.00 TiB"},
        ErrorCase{R"({"ssd_segment_bytes": "5%"})", "ssd_segment_bytes", "percentage"},
        ErrorCase{R"({"ssd_cache_iouring_entries": 4097})", "ssd_cache_iouring_entries",
                  "from 1 to 4096"},
        ErrorCase{R"({"ssd_cache_iouring_entries": "64"})", "ssd_cache_iouring_entries",
                  "from 1 to 4096"},
        ErrorCase{R"({"ssd_backend": "aio"})", "ssd_backend", "one of auto, io_uring, threads"},
        ErrorCase{R"({"ssd_write_budget": "5%/s"})", "ssd_write_budget", "percentage"},
        ErrorCase{R"({"ssd_write_budget": "fast"})", "ssd_write_budget", "not a size"},
        ErrorCase{R"({"ssd_write_budget": true})", "ssd_write_budget", "200MB/s"},
        ErrorCase{R"({"ssd_admission": "never"})", "ssd_admission",
                  "one of always, second_touch"}));

TEST(SsdConfigTest, EveryKeyIsReadAndPrintedBack) {
  const absl::StatusOr<DaemonConfig> config = ParseConfig(
      R"({"ssd_cache_bytes": "200GB", "enable_ssd": true, "ssd_cache_dir": ["/a/../b/", "/c"],
          "num_ssd_blocks": 12, "ssd_segment_bytes": "256MiB", "ssd_cache_iouring_entries": 128,
          "ssd_backend": "threads", "ssd_write_budget": "200MB/s",
          "ssd_admission": "second_touch"})",
      kConfigContext);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_TRUE(config->ssd.enabled);
  EXPECT_THAT(config->ssd.directories, ElementsAre("/b", "/c"));
  EXPECT_EQ(config->ssd.cache_bytes, 200'000'000'000u);
  EXPECT_EQ(SsdShareBytes(config->ssd), 100'000'000'000u);
  EXPECT_EQ(config->ssd.num_blocks, 12u);
  EXPECT_EQ(config->ssd.segment_bytes, 256u << 20);
  EXPECT_EQ(config->ssd.queue_depth, 128u);
  EXPECT_EQ(config->ssd.backend, SsdBackend::kThreads);
  EXPECT_EQ(config->ssd.write_bytes_per_s, 200'000'000u);
  EXPECT_EQ(config->ssd.admission, SsdAdmission::kSecondTouch);
  const std::string printed = ConfigToJson(*config);
  const absl::StatusOr<DaemonConfig> again = ParseConfig(printed, kConfigContext);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(ConfigToJson(*again), printed);
}

TEST(SsdConfigTest, DefaultsAndWhatMeansThem) {
  const absl::StatusOr<DaemonConfig> plain = ParseConfig("{}", kConfigContext);
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE(plain->ssd.enabled);
  for (const char* text :
       {R"({"ssd_cache_bytes": 0, "ssd_cache_iouring_entries": 0, "num_ssd_blocks": 0})",
        R"({"ssd_cache_bytes": null, "ssd_backend": null, "ssd_write_budget": 0})",
        R"({"ssd_cache_bytes": "50%", "ssd_write_budget": "0"})"}) {
    const absl::StatusOr<DaemonConfig> config = ParseConfig(text, kConfigContext);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(ConfigToJson(*config), ConfigToJson(*plain)) << text;
  }
  // A directory alone switches nothing on.
  const absl::StatusOr<DaemonConfig> off =
      ParseConfig(R"({"ssd_cache_dir": "/x"})", kConfigContext);
  ASSERT_TRUE(off.ok());
  EXPECT_FALSE(off->ssd.enabled);
}

TEST(SsdConfigTest, PercentagesArePrintedAsTheyWere) {
  for (const char* percent : {"12.5%", "100%", "33.333333333333336%"}) {
    const absl::StatusOr<DaemonConfig> config =
        ParseConfig(absl::StrCat(R"({"ssd_cache_bytes": ")", percent, "\"}"), kConfigContext);
    ASSERT_TRUE(config.ok()) << config.status();
    EXPECT_EQ(config->ssd.cache_bytes, 0u);
    EXPECT_THAT(ConfigToJson(*config), HasSubstr(absl::StrCat("\"", percent, "\"")));
  }
}

class ResolveTest : public testing::Test {
 protected:
  ResolveTest() {
    std::string name = "/tmp/flexkv-resolve-XXXXXX";
    root_ = mkdtemp(name.data());
    config_.enabled = true;
    config_.directories = {root_ + "/ssd"};
    config_.cache_bytes = 64ull << 20;
  }
  ~ResolveTest() override { std::filesystem::remove_all(root_); }

  void Make() { ASSERT_EQ(mkdir(config_.directories[0].c_str(), 0700), 0); }
  void WriteFile(const std::string& name, size_t bytes) {
    std::ofstream(config_.directories[0] + "/" + name) << std::string(bytes, 'x');
  }
  // Both ways of looking say the same, on one line that starts with `key`.
  void ExpectRefused(const std::string& key, const std::string& words,
                     absl::StatusCode code = absl::StatusCode::kInvalidArgument) {
    for (const SsdResolve resolve : {SsdResolve::kCheck, SsdResolve::kMake}) {
      SsdConfig config = config_;
      const absl::Status status = ResolveSsd(resolve, &config);
      const std::string message(status.message());
      EXPECT_EQ(status.code(), code) << status;
      EXPECT_EQ(message.rfind(key + ": ", 0), 0u) << message;
      EXPECT_THAT(message, HasSubstr(words));
      EXPECT_EQ(message.find('\n'), std::string::npos);
    }
  }

  std::string root_;
  SsdConfig config_;
};

TEST_F(ResolveTest, NothingIsLookedAtWhenItIsOff) {
  config_.enabled = false;
  config_.directories = {"/no/such/place"};
  EXPECT_TRUE(ResolveSsd(SsdResolve::kMake, &config_).ok());
}

TEST_F(ResolveTest, AMissingDirectoryIsMadeForUsOnly) {
  EXPECT_TRUE(ResolveSsd(SsdResolve::kCheck, &config_).ok());
  EXPECT_NE(access(config_.directories[0].c_str(), F_OK), 0) << "checking made it";
  ASSERT_TRUE(ResolveSsd(SsdResolve::kMake, &config_).ok());
  struct stat info {};
  ASSERT_EQ(stat(config_.directories[0].c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  EXPECT_EQ(config_.cache_bytes, 64ull << 20);
  EXPECT_TRUE(ResolveSsd(SsdResolve::kCheck, &config_).ok());
}

TEST_F(ResolveTest, ItsParentMustExist) {
  config_.directories = {root_ + "/no/ssd"};
  ExpectRefused("ssd_cache_dir", root_ + "/no does not exist", absl::StatusCode::kNotFound);
}

TEST_F(ResolveTest, PlacesThatCannotBeWrittenAreRefused) {
  config_.directories = {"/proc/flexkv-ssd"};
  SsdConfig config = config_;
  EXPECT_THAT(std::string(ResolveSsd(SsdResolve::kMake, &config).message()),
              HasSubstr("/proc/flexkv-ssd"));
  if (geteuid() == 0) return;  // may write everywhere
  config_.directories = {root_ + "/ssd"};
  Make();
  chmod(config_.directories[0].c_str(), 0500);
  ExpectRefused("ssd_cache_dir", "is not writable");
}

TEST_F(ResolveTest, ItIsADirectoryOfOurOwn) {
  std::ofstream(config_.directories[0]) << "a file";
  ExpectRefused("ssd_cache_dir", "is not a directory");
  unlink(config_.directories[0].c_str());
  ASSERT_EQ(symlink(root_.c_str(), config_.directories[0].c_str()), 0);
  ExpectRefused("ssd_cache_dir", "symlink");
  unlink(config_.directories[0].c_str());
  Make();
  chmod(config_.directories[0].c_str(), 0770);
  ExpectRefused("ssd_cache_dir", "chmod it to 0700");
  chmod(config_.directories[0].c_str(), 0700);
  if (geteuid() == 0) {
    ASSERT_EQ(chown(config_.directories[0].c_str(), 65534, 65534), 0);
    ExpectRefused("ssd_cache_dir", "belongs to uid 65534");
  }
}

TEST_F(ResolveTest, ForeignFilesAreLeftAlone) {
  Make();
  WriteFile("lock", 0);
  WriteFile("segment-00000001.log", 10);
  mkdir((config_.directories[0] + "/lost+found").c_str(), 0700);
  EXPECT_TRUE(ResolveSsd(SsdResolve::kCheck, &config_).ok());
  WriteFile("photo.jpg", 10);
  ExpectRefused("ssd_cache_dir", "(photo.jpg): give it a directory of its own");
}

TEST_F(ResolveTest, AnotherFormatIsRefused) {
  Make();
  alignas(8) std::array<std::byte, ssd::kPageBytes> page{};
  const auto write = [&] {
    const std::string path = config_.directories[0] + "/superblock.b";
    std::ofstream(path, std::ios::binary).write(reinterpret_cast<const char*>(page.data()), 4096);
  };
  ssd::EncodeSuperblock({{1}, 1, 1}, page.data());
  write();
  EXPECT_TRUE(ResolveSsd(SsdResolve::kCheck, &config_).ok());
  page[16] = std::byte{9};  // the format
  ssd::ResealPage(page.data());
  write();
  ExpectRefused("ssd_cache_dir", "has format 9, this program reads 1");
  page[100] = std::byte{1};  // damage is the store's to mend
  write();
  EXPECT_TRUE(ResolveSsd(SsdResolve::kCheck, &config_).ok());
}

TEST_F(ResolveTest, InUseIsSaid) {
  Make();
  EXPECT_FALSE(SsdDirectoryInUse(config_.directories[0]));
  const UniqueFd lock(
      open((config_.directories[0] + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_EQ(flock(lock.get(), LOCK_EX), 0);
  EXPECT_TRUE(SsdDirectoryInUse(config_.directories[0]));
  const absl::Status status = ResolveSsd(SsdResolve::kCheck, &config_);
  EXPECT_TRUE(absl::IsAlreadyExists(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("in use by another process"));
  EXPECT_TRUE(ResolveSsd(SsdResolve::kMake, &config_).ok()) << "opening it waits and says so";
}

TEST_F(ResolveTest, TheSameDirectoryUnderTwoNamesIsRefused) {
  Make();
  ASSERT_EQ(symlink(root_.c_str(), (root_ + "/alias").c_str()), 0);
  config_.directories.push_back(root_ + "/alias/ssd");
  ExpectRefused("ssd_cache_dir", "are the same directory");
}

TEST_F(ResolveTest, MoreSpaceThanThereIsIsRefused) {
  config_.cache_bytes = 1ull << 60;
  ExpectRefused("ssd_cache_bytes", "1024 PiB asked of");
}

// A block device gives all of itself; its lock says whether it is in use.
TEST_F(ResolveTest, ABlockDeviceMayStandForADirectory) {
  const std::string image = root_ + "/image";
  std::ofstream(image) << "";
  ASSERT_EQ(truncate(image.c_str(), 100 << 20), 0);
  FILE* pipe = popen(absl::StrCat("losetup -f --show ", image, " 2>/dev/null").c_str(), "r");
  char name[64] = {};
  const bool made = fgets(name, sizeof(name), pipe) != nullptr;
  pclose(pipe);
  if (!made) GTEST_SKIP() << "loop devices are not allowed here";
  const std::string device(name, strcspn(name, "\n"));
  config_.directories = {device};
  EXPECT_TRUE(ResolveSsd(SsdResolve::kMake, &config_).ok());
  config_.cache_bytes = 200 << 20;
  ExpectRefused("ssd_cache_bytes", "100 MiB free");
  config_.cache_bytes = 0;
  EXPECT_TRUE(ResolveSsd(SsdResolve::kCheck, &config_).ok());
  EXPECT_EQ(config_.cache_bytes, 50u << 20);
  {
    const UniqueFd lock(open(device.c_str(), O_RDONLY | O_CLOEXEC));
    ASSERT_EQ(flock(lock.get(), LOCK_EX), 0);
    EXPECT_TRUE(absl::IsAlreadyExists(ResolveSsd(SsdResolve::kCheck, &config_)));
  }
  config_.directories.push_back(device);
  ExpectRefused("ssd_cache_dir", "are the same directory");
  EXPECT_EQ(std::system(absl::StrCat("losetup -d ", device).c_str()), 0);
}

// Two directories of one file system get its space once.
TEST_F(ResolveTest, DirectoriesShareTheirFileSystem) {
  struct statvfs space {};
  ASSERT_EQ(statvfs(root_.c_str(), &space), 0);
  const uint64_t free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
  config_.directories.push_back(root_ + "/more");
  config_.cache_bytes = free_bytes * 3 / 2;  // each share alone would fit
  ExpectRefused("ssd_cache_bytes", "for 2 directories");
  config_.cache_bytes = 0;
  ASSERT_TRUE(ResolveSsd(SsdResolve::kCheck, &config_).ok());
  EXPECT_LE(config_.cache_bytes, free_bytes / 2 + free_bytes / 10);
  EXPECT_GE(config_.cache_bytes, free_bytes / 2 - free_bytes / 10);
}

// What the tier holds already counts as room: the same number after a restart.
TEST_F(ResolveTest, WhatIsHeldCountsAsRoom) {
  Make();
  SsdConfig before = config_, after = config_;
  before.cache_bytes = after.cache_bytes = 0;
  ASSERT_TRUE(ResolveSsd(SsdResolve::kCheck, &before).ok());
  WriteFile("segment-00000001.data", 64u << 20);
  sync();
  ASSERT_TRUE(ResolveSsd(SsdResolve::kCheck, &after).ok());
  const auto difference =
      static_cast<double>(before.cache_bytes) - static_cast<double>(after.cache_bytes);
  EXPECT_LT(std::abs(difference), static_cast<double>(before.cache_bytes) * 0.02 + (16 << 20));
}

}  // namespace
}  // namespace flexkv
