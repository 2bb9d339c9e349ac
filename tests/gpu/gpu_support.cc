#include "tests/gpu/gpu_support.h"

#include <algorithm>
#include <cstdio>
#include <mutex>

#include "flexkv/transfer/cuda/cuda_library.h"

namespace flexkv::gpu {
namespace {

struct Measured {
  std::string name, unit;
  double value = 0, limit = 0;
  bool at_least = true, met = true;
};

std::vector<Measured>& AllMeasured() {
  static std::vector<Measured> measured;
  return measured;
}

std::string FindProblem() {
  const auto api = cuda::OpenLibrary(0);
  if (!api.ok()) return std::string(api.status().message());
  if (!cuda::Ok((*api)->UseDevice())) {
    return std::string("the device cannot be used: ") + (*api)->LastMessage();
  }
  return "";
}

}  // namespace

const std::string& Problem() {
  static const std::string problem = FindProblem();
  return problem;
}

std::unique_ptr<cuda::Api> OpenApi() {
  auto api = cuda::OpenLibrary(0);
  EXPECT_TRUE(api.ok()) << api.status();
  if (!api.ok()) return nullptr;
  EXPECT_EQ(cuda::Error::kOk, (*api)->UseDevice()) << (*api)->LastMessage();
  return *std::move(api);
}

Buffer::Buffer(Where where, size_t bytes) : where_(where), bytes_(bytes) {
  void* memory = nullptr;
  const cudaError_t error = where == Where::kDevice
                                ? cudaMalloc(&memory, bytes)
                                : cudaHostAlloc(&memory, bytes, cudaHostAllocPortable);
  EXPECT_EQ(cudaSuccess, error) << cudaGetErrorString(error) << ", " << bytes << " bytes";
  data_ = error == cudaSuccess ? static_cast<std::byte*>(memory) : nullptr;
}

Buffer::~Buffer() {
  if (data_ != nullptr) {
    EXPECT_EQ(cudaSuccess, where_ == Where::kDevice ? cudaFree(data_) : cudaFreeHost(data_));
  }
}

Stream::Stream(int priority) {
  EXPECT_EQ(cudaSuccess, cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, priority));
}
Stream::~Stream() { EXPECT_EQ(cudaSuccess, cudaStreamDestroy(stream_)); }

Timer::Timer() {
  EXPECT_EQ(cudaSuccess, cudaEventCreate(&start_));
  EXPECT_EQ(cudaSuccess, cudaEventCreate(&end_));
}
Timer::~Timer() {
  cudaEventDestroy(start_);
  cudaEventDestroy(end_);
}
void Timer::Start(cudaStream_t stream) { EXPECT_EQ(cudaSuccess, cudaEventRecord(start_, stream)); }
void Timer::Stop(cudaStream_t stream) { EXPECT_EQ(cudaSuccess, cudaEventRecord(end_, stream)); }
double Timer::Seconds() {
  float milliseconds = 0;
  EXPECT_EQ(cudaSuccess, cudaEventSynchronize(end_));
  EXPECT_EQ(cudaSuccess, cudaEventElapsedTime(&milliseconds, start_, end_));
  return static_cast<double>(milliseconds) / 1e3;
}

double MedianSeconds(int repeats, const std::function<double()>& work) {
  work();
  std::vector<double> seconds;
  for (int i = 0; i < repeats; ++i) seconds.push_back(work());
  std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
  return seconds[static_cast<size_t>(repeats / 2)];
}

void Figure(const std::string& name, double value, const std::string& unit, double limit,
            bool at_least) {
  const bool met = at_least ? value >= limit : value <= limit;
  AllMeasured().push_back({name, unit, value, limit, at_least, met});
  if (at_least && limit == 0) {
    std::printf("  %-58s %9.3f %s\n", name.c_str(), value, unit.c_str());
  } else {
    std::printf("  %-58s %9.3f %-5s %s %.3f%s\n", name.c_str(), value, unit.c_str(),
                at_least ? ">=" : "<=", limit, met ? "" : "  MISSED");
  }
  std::fflush(stdout);
  EXPECT_TRUE(met) << name << ": " << value << " " << unit << ", the goal is "
                   << (at_least ? "at least " : "at most ") << limit;
}

bool WriteFigures(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "w");
  if (file == nullptr) return false;
  cuda::DeviceInfo device = {};
  if (Problem().empty()) (void)OpenApi()->GetDeviceInfo(&device);
  std::fprintf(file,
               "{\"gpu\": \"%s\", \"compute\": \"%d.%d\", \"sms\": %d, \"driver_cuda\": %d, "
               "\"runtime_cuda\": %d,\n \"problem\": \"%s\",\n \"figures\": [",
               device.name, device.compute_major, device.compute_minor, device.num_sms,
               device.driver_version, device.runtime_version, Problem().c_str());
  const char* comma = "";
  for (const Measured& figure : AllMeasured()) {
    std::fprintf(file,
                 "%s\n  {\"name\": \"%s\", \"value\": %.6g, \"unit\": \"%s\", \"limit\": %.6g, "
                 "\"limit_is\": \"%s\", \"met\": %s}",
                 comma, figure.name.c_str(), figure.value, figure.unit.c_str(), figure.limit,
                 figure.at_least ? (figure.limit == 0 ? "none" : "floor") : "ceiling",
                 figure.met ? "true" : "false");
    comma = ",";
  }
  std::fprintf(file, "\n ]}\n");
  return std::fclose(file) == 0;
}

}  // namespace flexkv::gpu
