// flexkv bench device: over the fake runtime, and as a program where there is no driver.
#include "flexkv/cli/bench_device.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/test_seed.h"

namespace flexkv::cli {
namespace {

using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::json;

DeviceBench Example() {
  DeviceBench bench;
  std::strcpy(bench.info.name, "NVIDIA \"Test\"\n");
  bench.info.compute_major = 9;
  bench.info.num_sms = 132;
  bench.info.driver_version = 13000;
  bench.info.kernels_read_host = true;
  bench.curve.kernel_sms[0] = bench.curve.kernel_sms[1] = 8;
  bench.curve.points = {
      {4096, {5, 4}, {3, 20}}, {28672, {30, 27.5f}, {0, 22}}, {1 << 20, {50, 55}, {}}};
  bench.kernel_below = {0, 28672};
  bench.peak = {50, 55};
  return bench;
}

TEST(BenchDeviceTest, TextSaysCurvePeakAndChoice) {
  const std::string text = DeviceBenchText(Example());
  EXPECT_THAT(text, HasSubstr("sm_90, 132 SMs"));
  EXPECT_THAT(text, HasSubstr("kernel on 8 SMs\n"));
  EXPECT_THAT(text, HasSubstr("loads (host to device): 55.0 GB/s with one large copy"));
  EXPECT_THAT(text, HasSubstr("stores (device to host): 50.0 GB/s with one large copy"));
  EXPECT_THAT(text, HasSubstr("choice: fragments below 28.0 KiB by kernel"));
  EXPECT_THAT(text, HasSubstr("choice: all fragments by copy engine"));
  EXPECT_THAT(text, HasSubstr("36 %"));  // 20 of 55
  EXPECT_EQ(std::count(text.begin(), text.end(), '\t'), 0);
}

TEST(BenchDeviceTest, JsonHasTheSame) {
  const Json json = Json::parse(DeviceBenchJson(Example()), nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  EXPECT_EQ(json["compute_capability"], "9.0");
  EXPECT_EQ(json["load"]["peak_gb_per_s"], 55.0);
  EXPECT_EQ(json["load"]["kernel_below_bytes"], 28672);
  EXPECT_EQ(json["load"]["points"][0]["kernel_gb_per_s"], 20.0);
  EXPECT_EQ(json["store"]["points"][0]["copy_engine_gb_per_s"], 5.0);
  EXPECT_EQ(json["store"]["points"].size(), 3u);
}

TEST(BenchDeviceTest, MeasuresADevice) {
  FakeCuda fake(TestSeed());
  const absl::StatusOr<DeviceBench> bench = MeasureDevice(&fake, 16);
  ASSERT_TRUE(bench.ok()) << bench.status();
  EXPECT_EQ(fake.FirstViolation(), "");
  EXPECT_EQ(fake.open_handles(), 0u);
  EXPECT_EQ(bench->curve.kernel_sms[1], 16u);
  EXPECT_GT(bench->peak[0], 0);
  EXPECT_GT(bench->peak[1], 0);
  EXPECT_EQ(bench->peak[0], bench->curve.points.back().copy_engine[0]);
}

TEST(BenchDeviceTest, ADeviceThatRefusesIsSaid) {
  for (const char* call : {"UseDevice", "GetDeviceInfo", "AllocateHost"}) {
    FakeCuda fake(TestSeed());
    fake.FailCall(call, 1, cuda::Error::kOther);
    const absl::Status status = MeasureDevice(&fake, 8).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal) << call;
    EXPECT_FALSE(status.message().empty());
  }
}

class BenchProgramTest : public testing::Test {
 protected:
  // With a library that is none: no machine measures here, whatever it has.
  CommandResult Run(const std::string& library, const std::string& arguments) const {
    return Execute(absl::StrCat("FLEXKV_CUDA_LIBRARY=", library, " ", FLEXKV_CLI, " bench device ",
                                arguments));
  }
  TempDir dir_;
};

TEST_F(BenchProgramTest, WithoutALibraryOneLine) {
  std::ofstream(dir_.path() + "/text.so") << "no library";
  std::filesystem::permissions(dir_.path() + "/text.so", std::filesystem::perms::owner_all);
  for (const std::string& library : {dir_.path() + "/none.so", dir_.path() + "/text.so"}) {
    for (const char* arguments : {"", "--json", "--device 3 --sms 16"}) {
      const CommandResult result = Run(library, arguments);
      EXPECT_EQ(result.code, 1) << result.output;
      EXPECT_THAT(result.output, testing::StartsWith("flexkv: "));
      EXPECT_THAT(result.output, HasSubstr(".so"));
      EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 1) << result.output;
    }
  }
}

// What a user without a GPU sees; where there is one, a measurement.
TEST_F(BenchProgramTest, AsItIsOnThisMachine) {
  const CommandResult result = Execute(absl::StrCat(FLEXKV_CLI, " bench device"));
  if (result.code == 0) {
    EXPECT_THAT(result.output, HasSubstr("choice: "));
    return;
  }
  EXPECT_EQ(result.code, 1);
  EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 1) << result.output;
}

TEST_F(BenchProgramTest, UsageAndHelp) {
  EXPECT_EQ(Run("", "--sms 0").code, 2);
  EXPECT_EQ(Run("", "--sms 133").code, 2);
  EXPECT_EQ(Run("", "--device -1").code, 2);
  EXPECT_EQ(Run("", "--devices 1").code, 2);
  EXPECT_EQ(Execute(absl::StrCat(FLEXKV_CLI, " bench")).code, 2);
  const CommandResult help = Run("", "--help");
  EXPECT_EQ(help.code, 0);
  EXPECT_THAT(help.output, HasSubstr("Examples:"));
  EXPECT_THAT(help.output, HasSubstr("flexkv bench device --json"));
  EXPECT_THAT(help.output, HasSubstr("Exit codes:"));
}

}  // namespace
}  // namespace flexkv::cli
