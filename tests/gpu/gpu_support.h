// What the GPU tests share: whether there is a GPU, memory on it, and measured figures.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "flexkv/transfer/cuda/cuda_api.h"
#include "gtest/gtest.h"

namespace flexkv::gpu {

// Why nothing can be tested here, as a sentence; "": there is a GPU and the library opens.
const std::string& Problem();
// REQUIRES: Problem() is empty.
std::unique_ptr<cuda::Api> OpenApi();

// Every test is one of these: skipped with the reason where there is no GPU.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!Problem().empty()) GTEST_SKIP() << Problem();
    ASSERT_EQ(cudaSuccess, cudaSetDevice(0));
  }
};

#define GPU_OK(call) ASSERT_EQ(cudaSuccess, (call)) << cudaGetErrorString(cudaGetLastError())
#define API_OK(api, call) ASSERT_EQ(::flexkv::cuda::Error::kOk, (api).call) << (api).LastMessage()

// Memory of the device, or registered memory of the host; given back at the end.
class Buffer {
 public:
  enum class Where { kDevice, kHost };
  Buffer(Where where, size_t bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }  // null: there was none
  size_t size() const { return bytes_; }

 private:
  Where where_;
  std::byte* data_ = nullptr;
  size_t bytes_;
};

class Stream {
 public:
  explicit Stream(int priority = 0);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }  // NOLINT: used as one everywhere
  uint64_t number() const { return reinterpret_cast<uint64_t>(stream_); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Timer {  // of a stretch of a stream
 public:
  Timer();
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  void Start(cudaStream_t stream);
  void Stop(cudaStream_t stream);
  double Seconds();  // waits for the end

 private:
  cudaEvent_t start_ = nullptr, end_ = nullptr;
};

// Median seconds of `repeats` runs of `work` after one that does not count.
double MedianSeconds(int repeats, const std::function<double()>& work);

// A figure beside its limit: printed, kept for the JSON file, and a test failure where it is
// missed. `at_least`: the limit is a floor, else a ceiling. A limit of 0 with at_least = true is
// for information only.
void Figure(const std::string& name, double value, const std::string& unit, double limit,
            bool at_least);
// GPU, driver, figures. True when it was written.
bool WriteFigures(const std::string& path);

}  // namespace flexkv::gpu
