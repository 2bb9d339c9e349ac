// flexkv_gpu_test [--json FILE] [gtest options]. Without a GPU every test is skipped with the
// reason and the exit status is 0. The last line counts.
#include <cstdio>
#include <string>
#include <vector>

#include "tests/gpu/gpu_support.h"

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  std::string json;
  for (int i = 1; i < argc; ++i) {
    if (std::string(argv[i]) == "--json" && i + 1 < argc) {
      json = argv[++i];
    } else {
      std::fprintf(stderr, "Usage: %s [--json FILE] [--gtest_...]\n", argv[0]);
      return 2;
    }
  }
  if (!flexkv::gpu::Problem().empty()) {
    std::printf("nothing can be tested here: %s\n", flexkv::gpu::Problem().c_str());
  }
  const int status = RUN_ALL_TESTS();
  if (!json.empty() && !flexkv::gpu::WriteFigures(json)) {
    std::fprintf(stderr, "cannot write %s\n", json.c_str());
    return 1;
  }
  const auto* tests = ::testing::UnitTest::GetInstance();
  std::printf("%d passed, %d failed, %d skipped\n", tests->successful_test_count(),
              tests->failed_test_count(), tests->skipped_test_count());
  return status;
}
