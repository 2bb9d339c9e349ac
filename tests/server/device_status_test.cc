// What ranks are told of how to copy, what they report of their devices, and where both are shown.
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "flexkv/server/metrics_server.h"
#include "flexkv/server/status_device.h"
#include "flexkv/server/status_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using testing::HasSubstr;
using testing::Not;
using Engine = CopyOptions::Engine;

constexpr size_t kLoad = static_cast<size_t>(Route::kCpuToDevice);
constexpr size_t kStore = static_cast<size_t>(Route::kDeviceToCpu);

shm::DeviceReportBody Report() {
  shm::DeviceReportBody body;
  std::strcpy(body.device, "NVIDIA H200");
  body.kernel_below[kLoad] = 28 << 10;
  body.num_points = 2;
  body.points[0] = {4096, {5, 7.25f}, {0, 20.1f}};
  body.points[1] = {1 << 20, {50, 55}, {30, 31}};
  body.arena_bytes = 4ull << 30;
  body.pinned_bytes = 1ull << 30;
  body.staged_bytes = 3ull << 20;
  body.layer_loads = 12;
  body.layer_loads_failed = 2;
  return body;
}

class DeviceStatusTest : public DaemonTest {
 protected:
  void Adjust(DaemonConfig* config) override {
    config->copy.engine[kStore] = Engine::kCopyEngine;
    config->copy.kernel_sms[kLoad] = 16;
    config->copy.bytes_in_flight[kStore] = 8ull << 20;
    config->copy.batch_copies = 100;
    config->copy.above_compute = true;
    config->copy.layers_ahead = 5;
    config->trace.enabled = true;
    config->trace.path = dir_.path() + "/trace.jsonl";
  }
  void Send(RawEngine& engine, const shm::DeviceReportBody& body) {
    const size_t before = static_cast<size_t>(Device(Status()).layer_loads());
    engine.worker().Push(shm::MakeMessage(shm::MessageType::kDeviceReport), shm::AsBytes(body));
    EXPECT_TRUE(Eventually([&] { return Device(Status()).layer_loads() != before; }));
  }
  static admin::v1::Device Device(const admin::v1::StatusReply& status) {
    if (status.engines_size() == 0 || status.engines(0).devices_size() == 0) return {};
    return status.engines(0).devices(0);
  }
};

TEST_F(DeviceStatusTest, AWorkerIsToldHowToCopy) {
  RawEngine engine(Socket(), 1);
  const shm::DeviceOptionsBody& device = engine.worker().welcome().device;
  EXPECT_EQ(device.engine[kStore], 1u);
  EXPECT_EQ(device.engine[kLoad], 0u);
  EXPECT_EQ(device.kernel_sms[kLoad], 16u);
  EXPECT_EQ(device.kernel_sms[kStore], 8u);
  EXPECT_EQ(device.bytes_in_flight[kStore], 8ull << 20);
  EXPECT_EQ(device.bytes_in_flight[kLoad], 32ull << 20);
  EXPECT_EQ(device.batch_copies, 100u);
  EXPECT_EQ(device.above_compute, 1u);
  EXPECT_EQ(device.layers_ahead, 5u);
}

TEST_F(DeviceStatusTest, AReportReachesStatusAndMetrics) {
  RawEngine engine(Socket(), 1);
  EXPECT_EQ(Status().engines(0).devices_size(), 0);  // nobody has reported
  EXPECT_THAT(StatusText(Status()), Not(HasSubstr("rank 0:")));
  Send(engine, Report());

  const std::string text = StatusText(Status());
  EXPECT_THAT(text, HasSubstr("rank 0: NVIDIA H200; loads by copy engine; kernel below 28 KiB; "
                              "stores by copy engine\n"));
  EXPECT_THAT(text, HasSubstr("pinned 1.00 GiB of 4.00 GiB, staged 3.00 MiB; layer-wise loads 12 "
                              "(2 failed)\n"));
  EXPECT_THAT(text, HasSubstr("4 KiB    1 MiB\n"));
  EXPECT_THAT(text, HasSubstr("load, kernel             20.1     31.0\n"));
  EXPECT_THAT(text, HasSubstr("store, kernel               -     30.0\n"));
  EXPECT_THAT(text, Not(HasSubstr("PROBLEM")));

  const nlohmann::json json = nlohmann::json::parse(StatusJson(Status()), nullptr, false);
  const nlohmann::json device = json["engines"][0]["devices"][0];
  EXPECT_EQ(device["rank"], 0);
  EXPECT_EQ(device["name"], "NVIDIA H200");
  EXPECT_EQ(device["load_route"], "copy engine; kernel below 28 KiB");
  EXPECT_EQ(device["load_kernel_below"], 28672);
  EXPECT_EQ(device["curve"][0]["load_kernel"], 20.1);
  EXPECT_EQ(device["curve"][0]["store_copy_engine"], 5.0);
  EXPECT_EQ(device["pinned_bytes"], 1 << 30);
  EXPECT_EQ(device["staged_bytes"], 3 << 20);
  EXPECT_EQ(device["layer_loads_failed"], 2);

  const std::string metrics = FetchMetrics(server_->paths().metrics).value();
  const std::string labels = R"({engine="model",number="0",rank="0",device="NVIDIA H200"})";
  EXPECT_THAT(metrics, HasSubstr("flexkv_device_pinned_bytes" + labels + " 1.07374182e+09\n"));
  EXPECT_THAT(metrics, HasSubstr("flexkv_device_staged_bytes" + labels + " 3145728\n"));
  EXPECT_THAT(metrics, HasSubstr("flexkv_device_layer_loads" + labels + " 12\n"));
  EXPECT_THAT(metrics, HasSubstr("flexkv_device_layer_loads_failed" + labels + " 2\n"));
  EXPECT_THAT(metrics, HasSubstr("flexkv_device_problem" + labels + " 0\n"));
}

TEST_F(DeviceStatusTest, TheLastReportCountsAndGoesWithItsRank) {
  RawEngine engine(Socket(), 1);
  shm::DeviceReportBody body = Report();
  Send(engine, body);
  body.layer_loads = 13;
  body.pinning_refused = 1;
  std::strcpy(body.problem, "raise \"ulimit -l\"\x1b[31m");
  Send(engine, body);
  EXPECT_TRUE(Device(Status()).pinning_refused());
  EXPECT_THAT(StatusText(Status()), HasSubstr("PROBLEM: raise 'ulimit -l'_[31m\n"));
  engine.worker().Close();
  EXPECT_TRUE(Eventually([&] { return Status().engines(0).devices_size() == 0; }));
}

TEST_F(DeviceStatusTest, TimesOfCopyingReachHistogramsAndTheTrace) {
  RawEngine engine(Socket(), 1);
  engine.worker().CopyFor(2 * kNsPerMs);
  // The trace measures in rounds of the control thread: of a copy that begins and ends in one round
  // (the machine did something else meanwhile) it says nothing.
  constexpr uint64_t kStores = 10;
  std::vector<BlockHash> chain;
  for (uint64_t i = 1; i <= kStores; ++i) {
    chain = Chain(i, 5);
    ASSERT_EQ(engine.Store(i, chain), 5u);
  }
  engine.worker().CopyFor(3 * kNsPerMs);
  const RawEngine::Hit hit = engine.Lookup(100, chain);
  ASSERT_EQ(engine.LoadAndCheck(100, chain, hit), 5);

  const std::string metrics = FetchMetrics(server_->paths().metrics).value();
  EXPECT_THAT(metrics,
              HasSubstr("flexkv_transfer_copy_seconds_count{route=\"device_to_cpu\"} 10\n"));
  EXPECT_THAT(metrics,
              HasSubstr("flexkv_transfer_copy_seconds_count{route=\"cpu_to_device\"} 1\n"));
  const admin::v1::StatusReply status = Status();
  for (const admin::v1::Route& route : status.routes()) {
    EXPECT_EQ(route.copy().sum_ns(),
              route.name() == "cpu_to_device" ? 3 * kNsPerMs : kStores * 2 * kNsPerMs);
  }
  EXPECT_THAT(StatusText(status), HasSubstr("; copying p50 "));

  StopDaemon();
  std::ifstream file(dir_.path() + "/trace.jsonl");
  std::ostringstream trace;
  trace << file.rdbuf();
  EXPECT_THAT(trace.str(), HasSubstr("\"store_ns\":2000000,"));
}

TEST(CopyRouteWordsTest, Table) {
  struct Case {
    const char* device;
    uint32_t kernel_below;
    const char* words;
  };
  for (const Case& c : std::initializer_list<Case>{
           {"cpu", 28672, "processor"},
           {"NVIDIA H200", 0, "copy engine"},
           {"NVIDIA H200", 28672, "copy engine; kernel below 28 KiB"},
           {"NVIDIA H200", 1 << 20, "copy engine; kernel below 1 MiB"},
           {"NVIDIA H200", 1000, "copy engine; kernel below 1000 B"},
           {"NVIDIA H200", UINT32_MAX, "kernel"},
       }) {
    EXPECT_EQ(CopyRouteWords(c.device, c.kernel_below), c.words);
  }
}

}  // namespace
}  // namespace flexkv
