#include "flexkv/transfer/cuda/cuda_library.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flexkv::cuda {
namespace {

using ::testing::HasSubstr;

class CudaLibrary : public ::testing::Test {
 protected:
  void SetUp() override {
    unsetenv("FLEXKV_CUDA_LIBRARY");
    std::string folder = (std::filesystem::temp_directory_path() / "cuda_library.XXXXXX").string();
    ASSERT_NE(nullptr, mkdtemp(folder.data()));
    folder_ = folder;
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  // Whatever the umask of whoever built it. Not written twice: it may be loaded.
  std::string Own(const char* library) {
    const std::filesystem::path file = folder_ / std::filesystem::path(library).filename();
    std::filesystem::copy_file(library, file, std::filesystem::copy_options::skip_existing);
    EXPECT_EQ(0, chmod(file.c_str(), 0755));
    return file;
  }

  std::filesystem::path folder_;
};

TEST_F(CudaLibrary, IsNotInEveryBuild) {
  const auto opened = OpenLibrary(0);
  EXPECT_TRUE(absl::IsNotFound(opened.status())) << opened.status();
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("no libflexkv_cuda.so"));
}

TEST_F(CudaLibrary, OnlyAnAbsolutePathIsTaken) {
  EXPECT_TRUE(absl::IsInvalidArgument(OpenLibrary(0, "libflexkv_cuda.so").status()));
  setenv("FLEXKV_CUDA_LIBRARY", "build/libflexkv_cuda.so", 1);
  EXPECT_TRUE(absl::IsInvalidArgument(OpenLibrary(0).status()));
  EXPECT_TRUE(absl::IsNotFound(OpenLibrary(0, "/nowhere/libflexkv_cuda.so").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(OpenLibrary(0, "/tmp").status()));
}

TEST_F(CudaLibrary, AFileThatOthersCanWriteIsRefused) {
  const std::string file = Own(FLEXKV_TEST_LIBRARY);
  EXPECT_TRUE(absl::IsFailedPrecondition(OpenLibrary(0, file).status()));  // read, and of version 9
  for (const mode_t mode : {0775, 0757}) {
    ASSERT_EQ(0, chmod(file.c_str(), mode));
    EXPECT_TRUE(absl::IsPermissionDenied(OpenLibrary(0, file).status()));
  }
  if (geteuid() == 0) {
    ASSERT_EQ(0, chmod(file.c_str(), 0755));
    ASSERT_EQ(0, chown(file.c_str(), 12345, 12345));
    EXPECT_TRUE(absl::IsPermissionDenied(OpenLibrary(0, file).status()));
  }
}

TEST_F(CudaLibrary, SaysWhatIsWrongWithTheFile) {
  const std::filesystem::path file = folder_ / "library.so";
  std::ofstream(file) << "text";
  ASSERT_EQ(0, chmod(file.c_str(), 0644));
  EXPECT_TRUE(absl::IsUnavailable(OpenLibrary(0, file).status()));

  const auto other_version = OpenLibrary(0, Own(FLEXKV_TEST_LIBRARY));
  EXPECT_TRUE(absl::IsFailedPrecondition(other_version.status())) << other_version.status();
  EXPECT_THAT(std::string(other_version.status().message()), HasSubstr("version 9"));
  const auto no_driver = OpenLibrary(3, Own(FLEXKV_TEST_LIBRARY));
  EXPECT_TRUE(absl::IsUnavailable(no_driver.status())) << no_driver.status();
  EXPECT_EQ("there is no device 3", no_driver.status().message());
}

#ifdef FLEXKV_REAL_LIBRARY
TEST_F(CudaLibrary, TheRealOneOpensOrSaysWhyNot) {
  const std::string library = Own(FLEXKV_REAL_LIBRARY);
  const auto opened = OpenLibrary(0, library);
  if (opened.ok()) {
    DeviceInfo device;
    ASSERT_EQ(Error::kOk, (*opened)->GetDeviceInfo(&device)) << (*opened)->LastMessage();
    EXPECT_GT(device.num_sms, 0);
  } else {
    EXPECT_TRUE(absl::IsUnavailable(opened.status())) << opened.status();
    EXPECT_THAT(std::string(opened.status().message()), HasSubstr("driver"));
  }
  const auto none = OpenLibrary(4000, library);
  EXPECT_TRUE(absl::IsUnavailable(none.status())) << none.status();
}
#endif

}  // namespace
}  // namespace flexkv::cuda
