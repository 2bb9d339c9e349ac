// A real client beside a daemon whose SSD fails: hits in memory go on, nothing exits, no byte is
// wrong, and the tier is used again when the fault is gone.
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "flexkv/server/admin_client.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"
#include "tests/server/torture_client.h"
#include "tests/support/sanitized.h"

namespace flexkv {
namespace {

using testing::Gt;

constexpr int kSlower = kSanitized ? 4 : 1;
constexpr int kAnswerMs = 40'000;  // a bound, not an expectation

class SsdFaultsTest : public testing::Test {
 protected:
  ~SsdFaultsTest() override {
    client_.reset();
    daemon_.reset();
    if (mounted_) umount2(Small().c_str(), MNT_DETACH);
  }

  std::string Small() const { return dir_.path() + "/small"; }
  bool MountSmall() {
    mkdir(Small().c_str(), 0700);
    mounted_ = mount("tmpfs", Small().c_str(), "tmpfs", 0, "size=28m,mode=0700") == 0;
    return mounted_;
  }
  void StartDaemon(const std::string& ssd, const std::string& cpu_bytes,
                   const std::string& faults = "") {
    std::ofstream(dir_.path() + "/config.json")
        << "{\"cpu_cache_bytes\": \"" << cpu_bytes
        << "\", \"segment_bytes\": \"2MiB\", \"use_hugetlb\": false, \"lock_memory\": false, "
        << "\"enable_ssd\": true, \"ssd_segment_bytes\": \"4MiB\", \"ssd_cache_bytes\": \"24MiB\", "
        << "\"ssd_cache_dir\": \"" << ssd << "\"}";
    const std::string sockets = dir_.path() + "/flexkv";
    daemon_ = std::make_unique<ChildProcess>(std::vector<std::string>{
        "/usr/bin/env", absl::StrCat("FLEXKV_FAULTS=", faults), FLEXKVD, "--config",
        dir_.path() + "/config.json", "--socket-dir", sockets, "--log-level", "critical"});
    ASSERT_EQ(daemon_->ReadLine(), absl::StrCat("flexkvd ready on ", sockets, "/daemon.sock"));
  }
  void StartClient() {
    TortureClient::Options options;
    options.socket_path = dir_.path() + "/flexkv/daemon.sock";
    options.name = "model";
    options.seed = TestSeed();
    client_ = std::make_unique<TortureClient>(options, &oracle_, &verdict_);
  }
  admin::v1::StatusReply Status() {
    auto admin = AdminClient::Connect(dir_.path() + "/flexkv/admin.sock");
    EXPECT_TRUE(admin.ok()) << admin.status();
    if (!admin.ok()) return {};
    const auto status = (*admin)->Status(5000);
    EXPECT_TRUE(status.ok()) << status.status();
    return status.ok() ? *status : admin::v1::StatusReply();
  }
  // Steps for a while; what they did.
  TortureCounts Work(int ms) {
    const TortureCounts before = client_->counts();
    Obey(TortureOrder::kWork);
    std::this_thread::sleep_for(std::chrono::milliseconds(ms));
    Obey(TortureOrder::kPause);
    TortureCounts done = client_->counts();
    done.loads -= before.loads;
    done.loads_failed -= before.loads_failed;
    return done;
  }
  void Obey(TortureOrder order) {
    client_->Give(order);
    ASSERT_TRUE(client_->AwaitDone(kAnswerMs)) << "hangs: " << client_->Explain();
    ASSERT_FALSE(verdict_.failed()) << verdict_.text();
  }

  TempDir dir_;
  bool mounted_ = false;
  NamespaceOracle oracle_{0};
  Verdict verdict_;
  std::unique_ptr<ChildProcess> daemon_;
  std::unique_ptr<TortureClient> client_;
};

void Fill(const std::string& path) {
  std::ofstream filler(path);
  const std::string page(4096, 'f');
  while (filler << page << std::flush) {
  }
}

// Everything fits the CPU tier here, so no load may fail for want of the SSD.
TEST_F(SsdFaultsTest, AFullDiskStopsNothingAndIsWrittenAgainWhenThereIsSpace) {
  if (!MountSmall()) GTEST_SKIP() << "mounting a tmpfs is not allowed here";
  StartDaemon(Small() + "/ssd", "48MiB");
  Fill(Small() + "/filler");
  StartClient();
  const TortureCounts full = Work(1500 * kSlower);
  EXPECT_THAT(full.loads, Gt(20u));
  EXPECT_EQ(full.loads_failed, 0u);
  admin::v1::StatusReply status = Status();
  EXPECT_TRUE(status.ssd().out_of_space()) << status.ssd().ShortDebugString();
  EXPECT_EQ(status.counters().ssd_written_blocks(), 0u);
  unlink((Small() + "/filler").c_str());
  // It looks again 1, 2, 4, ... seconds after each attempt.
  EXPECT_TRUE(Eventually([&] { return Status().counters().ssd_written_blocks() > 0; }, 10'000));
  const TortureCounts after = Work(300 * kSlower);
  EXPECT_EQ(after.loads_failed, 0u);
  EXPECT_TRUE(Eventually(
      [&] {
        status = Status();
        return !status.ssd().out_of_space() && status.ssd().writes_waiting() == 0 &&
               status.ssd().writes_in_flight() == 0;
      },
      10'000 * kSlower))
      << status.ssd().ShortDebugString();
  EXPECT_EQ(status.clients(), 2u);
}

// Space goes while the tier is at work, and comes back, again and again.
TEST_F(SsdFaultsTest, SpaceComesAndGoes) {
  if (!MountSmall()) GTEST_SKIP() << "mounting a tmpfs is not allowed here";
  StartDaemon(Small() + "/ssd", "48MiB");
  StartClient();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Work(100 * kSlower).loads_failed, 0u);
    Fill(Small() + "/filler");
    EXPECT_EQ(Work(300 * kSlower).loads_failed, 0u);
    unlink((Small() + "/filler").c_str());
  }
  const uint64_t before = Status().counters().ssd_written_blocks();
  Obey(TortureOrder::kReset);  // everything is new again, and has to be written
  Obey(TortureOrder::kWork);
  EXPECT_TRUE(
      Eventually([&] { return Status().counters().ssd_written_blocks() > before; }, 10'000));
  Obey(TortureOrder::kPause);
}

// Here most loads need the SSD: those that it fails are misses, and only those.
TEST_F(SsdFaultsTest, ErrorsOfTheDiskAreMisses) {
  StartDaemon(dir_.path() + "/ssd", "4MiB",
              "disk.eio_read:40:1,disk.flip_read:40:2,disk.eio_write:2000:3,disk.sync_error:1000:4,"
              "disk.short_read:40:5,disk.short_write:2000:6");
  StartClient();
  for (int i = 0; i < 20 && client_->counts().loads_failed < 5; ++i) Work(500 * kSlower);
  const admin::v1::StatusReply status = Status();
  EXPECT_THAT(client_->counts().loads, Gt(client_->counts().loads_failed));
  const admin::v1::SsdDevice& device = status.ssd_devices(0);
  EXPECT_THAT(device.read_errors() + device.corrupt_blocks(), Gt(0u)) << device.ShortDebugString();
  EXPECT_EQ(status.clients(), 2u);
  // The fault is gone: what is there is right, and new blocks are written.
  daemon_->Kill(SIGKILL);
  daemon_->Wait();
  StartDaemon(dir_.path() + "/ssd", "4MiB");
  Obey(TortureOrder::kWork);
  EXPECT_TRUE(Eventually([&] { return Status().counters().ssd_written_blocks() > 100; }, 10'000))
      << Status().ShortDebugString();
  Obey(TortureOrder::kPause);
  EXPECT_EQ(Status().ssd_devices(0).read_errors(), 0u);
}

}  // namespace
}  // namespace flexkv
