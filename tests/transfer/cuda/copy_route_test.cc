#include "flexkv/transfer/cuda/copy_route.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "absl/strings/str_cat.h"
#include "flexkv/transfer/cuda/copy_curve_file.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/test_seed.h"

namespace flexkv::cuda {
namespace {

using Point = DeviceReport::Point;

constexpr uint32_t kSms[2] = {8, 8};
constexpr size_t kDown = static_cast<size_t>(Route::kDeviceToCpu);
constexpr size_t kUp = static_cast<size_t>(Route::kCpuToDevice);

// --- the choice ---------------------------------------------------------------------------------

// Rates of loads at 4, 8, 16, ... KiB.
CopyCurve Loads(std::vector<float> engine, std::vector<float> kernel) {
  CopyCurve curve;
  for (size_t i = 0; i < engine.size(); ++i) {
    Point& point = curve.points.emplace_back();
    point.fragment_bytes = 4096u << i;
    point.copy_engine[kUp] = engine[i];
    point.kernel[kUp] = kernel[i];
  }
  return curve;
}

TEST(KernelBelowTest, Table) {
  struct Case {
    const char* what;
    std::vector<float> engine, kernel;
    uint32_t below;
  };
  const float kNan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<Case> cases = {
      {"nothing measured", {}, {}, 0},
      {"the kernel wins up to 8 KiB", {2, 4, 8, 16}, {20, 20, 8, 8}, 16384},
      {"the kernel wins nowhere", {10, 20, 30}, {9, 20, 30}, 0},
      {"the kernel wins by less than 5 %", {10, 20}, {10.4f, 20.9f}, 0},
      {"the kernel wins by 5 %", {10, 20}, {10.51f, 20}, 8192},
      {"a loss ends it: what comes after does not count", {2, 9, 2}, {9, 2, 9}, 8192},
      {"the kernel wins everywhere: above the largest nothing is known", {2, 2}, {9, 9}, 8192},
      {"the kernel was not measured", {10, 20}, {0, 0}, 0},
      {"a gap says nothing", {2, 0, 2, 9}, {9, 9, 9, 9}, 32768},
      {"the smallest was not measured", {0, 2, 9}, {9, 9, 9}, 16384},
      {"the smallest was not measured, and the next one is lost", {0, 9, 2}, {9, 2, 9}, 0},
      {"not a number", {kNan, 2, 9}, {9, kNan, 9}, 0},
      {"negative", {-1, 2, 9}, {9, 9, 9}, 16384},
      {"one point, won", {2}, {9}, 4096},
      {"one point, lost", {9}, {2}, 0},
  };
  for (const Case& c : cases) {
    EXPECT_EQ(KernelBelow(Loads(c.engine, c.kernel), Route::kCpuToDevice), c.below) << c.what;
    EXPECT_EQ(KernelBelow(Loads(c.engine, c.kernel), Route::kDeviceToCpu), 0u) << c.what;
  }
}

TEST(KernelBelowTest, WithoutAMeasurement) {
  EXPECT_EQ(DefaultKernelBelow(Route::kCpuToDevice), 28u << 10);
  EXPECT_EQ(DefaultKernelBelow(Route::kDeviceToCpu), 0u);
}

// --- the measurement ----------------------------------------------------------------------------

TEST(MeasureCopiesTest, MeasuresEveryPointAndGivesAllBack) {
  FakeCuda fake(TestSeed());
  const absl::StatusOr<CopyCurve> curve = MeasureCopies(&fake, kSms);
  ASSERT_TRUE(curve.ok()) << curve.status();
  EXPECT_EQ(fake.FirstViolation(), "");
  EXPECT_EQ(fake.open_handles(), 0u);
  EXPECT_TRUE(fake.Idle());
  EXPECT_THAT(curve->kernel_sms, testing::ElementsAre(8, 8));
  std::vector<uint32_t> sizes;
  for (const Point& point : curve->points) {
    sizes.push_back(point.fragment_bytes >> 10);
    for (const size_t route : {kDown, kUp}) {
      EXPECT_GT(point.copy_engine[route], 0) << point.fragment_bytes;
      EXPECT_GT(point.kernel[route], 0) << point.fragment_bytes;
    }
  }
  EXPECT_THAT(sizes, testing::ElementsAre(4, 8, 16, 28, 64, 128, 256, 1024));
  // What the header promises an engine that is starting.
  EXPECT_LE(fake.copied_bytes(), sizes.size() * (64ull << 20));
}

TEST(MeasureCopiesTest, WithoutKernelsTheCopyEngineIsMeasured) {
  FakeCuda fake({.seed = TestSeed(), .kernels_read_host = false});
  const absl::StatusOr<CopyCurve> curve = MeasureCopies(&fake, kSms);
  ASSERT_TRUE(curve.ok()) << curve.status();
  EXPECT_EQ(fake.calls("CopyKernel"), 0u);
  for (const Point& point : curve->points) {
    EXPECT_GT(point.copy_engine[kUp], 0);
    EXPECT_EQ(point.kernel[kUp], 0);
  }
  EXPECT_EQ(KernelBelow(*curve, Route::kCpuToDevice), 0u);
  EXPECT_EQ(fake.open_handles(), 0u);
}

TEST(MeasureCopiesTest, NoRoomIsSaidAsSuch) {
  for (const char* call : {"AllocateDevice", "AllocateHost"}) {
    FakeCuda fake(TestSeed());
    fake.FailCall(call, 1, Error::kNoMemory);
    EXPECT_EQ(MeasureCopies(&fake, kSms).status().code(), absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(fake.open_handles(), 0u);
    EXPECT_EQ(fake.FirstViolation(), "");
  }
}

// Whichever call fails: an error comes back, and everything was given back before.
void FailTheNth(uint64_t nth, Error error, uint64_t seed) {
  SCOPED_TRACE(absl::StrCat("call ", nth, ", error ", static_cast<int>(error)));
  FakeCuda fake(seed);
  fake.FailCall("", nth, error);
  const absl::StatusOr<CopyCurve> curve = MeasureCopies(&fake, kSms);
  EXPECT_FALSE(curve.ok());
  EXPECT_EQ(fake.FirstViolation(), "");
  if (error == Error::kSticky || error == Error::kUnloading) return;  // nothing can be given back
  EXPECT_EQ(fake.open_handles(), 0u);
  EXPECT_TRUE(fake.Idle());
}

TEST(MeasureCopiesTest, FailsWhole) {
  TestRng rng(TestSeed());
  for (uint64_t nth = 1; nth <= 24; ++nth) {
    FailTheNth(nth, Error::kOther, rng.Next());
    FailTheNth(nth, Error::kSticky, rng.Next());
  }
  for (int i = 0; i < 6; ++i) FailTheNth(25 + rng.Below(150), Error::kOther, rng.Next());
  FailTheNth(40, Error::kUnloading, rng.Next());
}

// --- the file -----------------------------------------------------------------------------------

class CurveFileTest : public testing::Test {
 protected:
  CurveFileTest() {
    std::string directory = testing::TempDir() + "/curvesXXXXXX";
    root_ = mkdtemp(directory.data());
    path_ = root_ + "/cache/flexkv/copy_curves.json";
    std::strcpy(device_.name, "NVIDIA H200");
    device_.driver_version = 13000;
    curve_.points = {{4096, {1.5f, 2.25f}, {0, 3}}, {1u << 20, {50.125f, 55}, {40, 41}}};
    curve_.kernel_sms[0] = curve_.kernel_sms[1] = 8;
  }
  ~CurveFileTest() override { std::filesystem::remove_all(root_); }

  void Put(const std::string& text) {
    std::filesystem::create_directories(std::filesystem::path(path_).parent_path());
    std::ofstream(path_) << text;
    chmod(path_.c_str(), 0600);
  }
  std::string Text() {
    std::ifstream file(path_);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  size_t Files() {
    const auto folder = std::filesystem::path(path_).parent_path();
    return static_cast<size_t>(std::distance(std::filesystem::directory_iterator(folder), {}));
  }

  std::string root_, path_;
  DeviceInfo device_ = {};
  CopyCurve curve_;
};

void ExpectSame(const CopyCurve& a, const CopyCurve& b) {
  ASSERT_EQ(a.points.size(), b.points.size());
  for (size_t i = 0; i < a.points.size(); ++i) {
    EXPECT_EQ(a.points[i].fragment_bytes, b.points[i].fragment_bytes);
    for (const size_t route : {kDown, kUp}) {
      EXPECT_EQ(a.points[i].copy_engine[route], b.points[i].copy_engine[route]);
      EXPECT_EQ(a.points[i].kernel[route], b.points[i].kernel[route]);
    }
  }
}

TEST_F(CurveFileTest, WhatIsWrittenIsReadAgain) {
  EXPECT_EQ(ReadCurve(path_, device_, kSms).status().code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(WriteCurve(path_, device_, curve_).ok());
  const absl::StatusOr<CopyCurve> curve = ReadCurve(path_, device_, kSms);
  ASSERT_TRUE(curve.ok()) << curve.status();
  ExpectSame(*curve, curve_);
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_EQ(stat((root_ + "/cache").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  EXPECT_EQ(Files(), 1u);  // no temporary file is left
}

TEST_F(CurveFileTest, EntriesAreFoundByDeviceDriverAndSms) {
  ASSERT_TRUE(WriteCurve(path_, device_, curve_).ok());
  DeviceInfo other = device_;
  std::strcpy(other.name, "NVIDIA H100");
  CopyCurve second = curve_;
  second.points.resize(1);
  ASSERT_TRUE(WriteCurve(path_, other, second).ok());
  ExpectSame(*ReadCurve(path_, device_, kSms), curve_);
  ExpectSame(*ReadCurve(path_, other, kSms), second);
  other.driver_version = 12000;
  EXPECT_FALSE(ReadCurve(path_, other, kSms).ok());
  const uint32_t more_sms[2] = {8, 16};
  EXPECT_FALSE(ReadCurve(path_, device_, more_sms).ok());
  // The same key again: replaced.
  ASSERT_TRUE(WriteCurve(path_, device_, second).ok());
  ExpectSame(*ReadCurve(path_, device_, kSms), second);
  EXPECT_EQ(ParseCurves(Text())->size(), 2u);
}

TEST_F(CurveFileTest, TheOldestEntriesGo) {
  for (int driver = 1; driver <= 40; ++driver) {
    device_.driver_version = driver;
    ASSERT_TRUE(WriteCurve(path_, device_, curve_).ok());
  }
  EXPECT_EQ(ParseCurves(Text())->size(), kMaxCurveEntries);
  EXPECT_TRUE(ReadCurve(path_, device_, kSms).ok());
  device_.driver_version = 8;
  EXPECT_FALSE(ReadCurve(path_, device_, kSms).ok());
  device_.driver_version = 9;
  EXPECT_TRUE(ReadCurve(path_, device_, kSms).ok());
}

TEST_F(CurveFileTest, AnUnusualDeviceNameIsAKeyToo) {
  std::memset(device_.name, 0x80, sizeof(device_.name));  // without an end
  std::memcpy(device_.name, "a\"b\\c\n", 6);
  ASSERT_TRUE(WriteCurve(path_, device_, curve_).ok());
  ExpectSame(*ReadCurve(path_, device_, kSms), curve_);
}

TEST_F(CurveFileTest, WhatCannotBeReadBackIsNotWritten) {
  curve_.points[0].kernel[0] = std::numeric_limits<float>::infinity();
  EXPECT_EQ(WriteCurve(path_, device_, curve_).code(), absl::StatusCode::kInvalidArgument);
  curve_.points[0] = curve_.points[1];
  EXPECT_EQ(WriteCurve(path_, device_, curve_).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(path_));
}

TEST_F(CurveFileTest, ABadFileIsAsGoodAsNoneAndReplaced) {
  const std::string good =
      FormatCurves({{.device = "NVIDIA H200", .driver_version = 13000, .curve = curve_}});
  const std::vector<std::string> bad = {
      "",
      "{}",
      good.substr(0, good.size() / 2),
      good + "x",
      std::string(good).replace(good.find("1.5"), 3, "nan"),
      std::string(good).replace(good.find("1.5"), 3, "inf"),
      std::string(good).replace(good.find("1.5"), 3, "-1 "),
      std::string(good).replace(good.find("1.5"), 3, "1e9"),
      std::string(good).replace(good.find("4096"), 4, "0000"),
      std::string(good).replace(good.find("4096"), 4, "99999999999"),
      std::string(good).replace(good.find("4096"), 4, "1048576"),  // not ascending
      std::string(good).replace(good.find("driver"), 6, "drover"),
      std::string(good).replace(good.find("H200"), 4, std::string(80, 'H')),
      std::string(good).replace(good.find("curves\": 1"), 10, "curves\": 2"),
      good + std::string(kMaxCurveFileBytes, ' '),
      std::string(1u << 20, '['),
  };
  for (const std::string& text : bad) {
    Put(text);
    EXPECT_FALSE(ReadCurve(path_, device_, kSms).ok()) << text.substr(0, 200);
    ASSERT_TRUE(WriteCurve(path_, device_, curve_).ok());
    ExpectSame(*ReadCurve(path_, device_, kSms), curve_);
  }
}

TEST_F(CurveFileTest, OnlyAFileOfThisUserAlone) {
  ASSERT_TRUE(WriteCurve(path_, device_, curve_).ok());
  const std::string text = Text();
  chmod(path_.c_str(), 0620);
  EXPECT_FALSE(ReadCurve(path_, device_, kSms).ok());
  chmod(path_.c_str(), 0600);
  EXPECT_TRUE(ReadCurve(path_, device_, kSms).ok());
  rename(path_.c_str(), (root_ + "/real").c_str());
  ASSERT_EQ(symlink((root_ + "/real").c_str(), path_.c_str()), 0);
  EXPECT_FALSE(ReadCurve(path_, device_, kSms).ok());
  unlink(path_.c_str());
  ASSERT_EQ(mkfifo(path_.c_str(), 0600), 0);  // does not keep us waiting
  EXPECT_FALSE(ReadCurve(path_, device_, kSms).ok());
  unlink(path_.c_str());
  ASSERT_EQ(mkdir(path_.c_str(), 0700), 0);
  EXPECT_FALSE(ReadCurve(path_, device_, kSms).ok());
  EXPECT_FALSE(WriteCurve(path_, device_, curve_).ok());
  EXPECT_EQ(Files(), 1u);
}

TEST_F(CurveFileTest, NowhereToWriteIsAnError) {
  if (geteuid() == 0) {
    EXPECT_FALSE(WriteCurve("/proc/none/curves.json", device_, curve_).ok());
    return;
  }
  mkdir((root_ + "/locked").c_str(), 0500);
  EXPECT_FALSE(WriteCurve(root_ + "/locked/a/b.json", device_, curve_).ok());
}

}  // namespace
}  // namespace flexkv::cuda
