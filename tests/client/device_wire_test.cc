#include "flexkv/client/device_wire.h"

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

namespace flexkv {
namespace {

shm::DeviceOptionsBody Filled() {
  shm::DeviceOptionsBody body;
  body.engine[0] = 1;
  body.engine[1] = 2;
  body.kernel_sms[0] = 1;
  body.kernel_sms[1] = 132;
  body.bytes_in_flight[0] = 1ull << 20;
  body.bytes_in_flight[1] = 4ull << 30;
  body.batch_copies = 65536;
  body.above_compute = 1;
  body.layers_ahead = 1024;
  return body;
}

TEST(DeviceWireTest, OptionsInRangeAreTaken) {
  const CopyOptions options = FromWire(Filled());
  EXPECT_EQ(options.engine[0], CopyOptions::Engine::kCopyEngine);
  EXPECT_EQ(options.engine[1], CopyOptions::Engine::kKernel);
  EXPECT_EQ(options.kernel_sms[0], 1u);
  EXPECT_EQ(options.kernel_sms[1], 132u);
  EXPECT_EQ(options.bytes_in_flight[0], 1ull << 20);
  EXPECT_EQ(options.bytes_in_flight[1], 4ull << 30);
  EXPECT_EQ(options.batch_copies, 65536u);
  EXPECT_TRUE(options.above_compute);
  EXPECT_EQ(options.layers_ahead, 1024u);
}

TEST(DeviceWireTest, OptionsOutOfRangeBecomeDefaults) {
  shm::DeviceOptionsBody body = Filled();
  body.engine[0] = 3;
  body.kernel_sms[0] = 0;
  body.kernel_sms[1] = 133;
  body.bytes_in_flight[0] = (1ull << 20) - 1;
  body.bytes_in_flight[1] = std::numeric_limits<uint64_t>::max();
  body.batch_copies = 65537;
  body.above_compute = 2;
  body.layers_ahead = 0;
  const CopyOptions options = FromWire(body), defaults;
  EXPECT_EQ(options.engine[0], defaults.engine[0]);
  EXPECT_EQ(options.engine[1], CopyOptions::Engine::kKernel);
  for (int route = 0; route < 2; ++route) {
    EXPECT_EQ(options.kernel_sms[route], defaults.kernel_sms[route]);
    EXPECT_EQ(options.bytes_in_flight[route], defaults.bytes_in_flight[route]);
  }
  EXPECT_EQ(options.batch_copies, defaults.batch_copies);
  EXPECT_EQ(options.above_compute, defaults.above_compute);
  EXPECT_EQ(options.layers_ahead, defaults.layers_ahead);
}

TEST(DeviceWireTest, AReportArrivesAsItWas) {
  DeviceReport report;
  report.device = "NVIDIA H200";
  report.problem = "raise the limit on locked memory";
  report.pinning_refused = true;
  report.pinned_bytes = 3;
  report.arena_bytes = 4;
  report.staged_bytes = 5;
  report.kernel_below[0] = 0;
  report.kernel_below[1] = 28672;
  report.curve = {{4096, {1, 2}, {3, 4}}, {8192, {5, 6}, {7, 8}}};
  AgentStats stats;
  stats.layer_loads = 6;
  stats.layer_loads_failed = 7;
  const shm::DeviceReportBody body = ToWire(report, stats);
  EXPECT_STREQ(body.device, "NVIDIA H200");
  EXPECT_STREQ(body.problem, "raise the limit on locked memory");
  EXPECT_EQ(body.pinning_refused, 1u);
  EXPECT_EQ(body.pinned_bytes, 3u);
  EXPECT_EQ(body.arena_bytes, 4u);
  EXPECT_EQ(body.staged_bytes, 5u);
  EXPECT_EQ(body.layer_loads, 6u);
  EXPECT_EQ(body.layer_loads_failed, 7u);
  EXPECT_EQ(body.kernel_below[1], 28672u);
  ASSERT_EQ(body.num_points, 2u);
  EXPECT_EQ(body.points[1].fragment_bytes, 8192u);
  EXPECT_EQ(body.points[1].copy_engine[0], 5);
  EXPECT_EQ(body.points[1].kernel[1], 8);
}

TEST(DeviceWireTest, AnUnusualReportIsMadeAcceptable) {
  DeviceReport report;
  report.device = std::string(500, 'x');
  report.problem = std::string("a\nb\0c\x80", 6);
  for (uint32_t i = 0; i < 40; ++i) {
    report.curve.push_back({i < 2 ? 1 : i, {std::numeric_limits<float>::quiet_NaN(), -1}, {}});
  }
  const shm::DeviceReportBody body = ToWire(report, {});
  EXPECT_EQ(std::strlen(body.device), sizeof(body.device) - 1);
  EXPECT_STREQ(body.problem, "a?b?c?");
  ASSERT_EQ(body.num_points, shm::DeviceReportBody::kMaxPoints);
  for (uint32_t i = 1; i < body.num_points; ++i)
    EXPECT_GT(body.points[i].fragment_bytes, body.points[i - 1].fragment_bytes);
  EXPECT_EQ(body.points[0].copy_engine[0], 0);
  EXPECT_EQ(body.points[0].copy_engine[1], 0);
}

}  // namespace
}  // namespace flexkv
