// The rules that the fake runtime is built on (tests/transfer/cuda/cuda_rules.h), on the real one.
#include "tests/gpu/gpu_kernels.h"
#include "tests/gpu/gpu_support.h"
#include "tests/transfer/cuda/cuda_rules.h"

namespace flexkv::gpu {
namespace {

class RealDevice : public RulesDevice {
 public:
  RealDevice() : api_(OpenApi()) {}
  cuda::Api& api() override { return *api_; }
  void Delay(cuda::Stream stream) override {
    EXPECT_EQ(cudaSuccess, Spin(static_cast<cudaStream_t>(stream), 1000));
  }
  bool BeginCapture(cuda::Stream stream) override {
    return cudaStreamBeginCapture(static_cast<cudaStream_t>(stream), cudaStreamCaptureModeGlobal) ==
           cudaSuccess;
  }
  bool EndCapture(cuda::Stream stream) override {
    cudaGraph_t graph = nullptr;
    if (cudaStreamEndCapture(static_cast<cudaStream_t>(stream), &graph) != cudaSuccess) {
      cudaGetLastError();
      return false;
    }
    cudaGraphExec_t runnable = nullptr;
    const bool usable = cudaGraphInstantiate(&runnable, graph, 0) == cudaSuccess;
    if (usable) cudaGraphExecDestroy(runnable);
    cudaGraphDestroy(graph);
    return usable;
  }

 private:
  std::unique_ptr<cuda::Api> api_;
};

class RealCudaRules : public GpuTest, public ::testing::WithParamInterface<CudaRule> {};

TEST_P(RealCudaRules, Holds) {
  RealDevice device;
  ASSERT_NE(nullptr, &device.api());
  const std::string said = GetParam().check(device);
  if (said.starts_with("skip: ")) GTEST_SKIP() << said.substr(6);
  EXPECT_EQ("", said);
  // What a rule provoked must not be left for the next call to trip over.
  EXPECT_EQ(cudaSuccess, cudaDeviceSynchronize());
  cudaGetLastError();
}

INSTANTIATE_TEST_SUITE_P(All, RealCudaRules, ::testing::ValuesIn(CudaRules()),
                         [](const auto& rule) { return std::string(rule.param.name); });

}  // namespace
}  // namespace flexkv::gpu
