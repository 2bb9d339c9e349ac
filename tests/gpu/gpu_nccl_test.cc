// NCCL on the real device, as far as one GPU goes: a communicator of one rank is made, broadcasts
// in stream order, ends well and is aborted.
#include <cstdlib>
#include <cstring>

#include "flexkv/transfer/cuda/nccl_broadcast.h"
#include "tests/gpu/gpu_kernels.h"
#include "tests/gpu/gpu_support.h"

namespace flexkv::gpu {
namespace {

constexpr size_t kBytes = 8u << 20;
constexpr TimeNs kTimeout = 60 * kNsPerSecond;  // the first communicator loads NCCL's kernels

// $FLEXKV_TEST_NCCL, else where the system or CUDA keeps it.
absl::StatusOr<std::shared_ptr<const cuda::NcclLibrary>> OpenNccl() {
  if (const char* path = std::getenv("FLEXKV_TEST_NCCL"); path != nullptr && path[0] != '\0')
    return cuda::NcclLibrary::Open(path);
  auto library = cuda::NcclLibrary::Open();
  for (const char* path :
       {"/usr/local/cuda/lib64/libnccl.so.2", "/usr/local/cuda/lib/libnccl.so.2"}) {
    if (!library.ok()) library = cuda::NcclLibrary::Open(path);
  }
  return library;
}

class GpuNccl : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    auto library = OpenNccl();
    if (!library.ok()) GTEST_SKIP() << library.status().message();
    library_ = *std::move(library);
    auto id = library_->MakeId();
    // A machine without a network interface has none.
    if (!id.ok()) GTEST_SKIP() << id.status().message();
    auto made = cuda::NcclBroadcaster::Create(library_, *id, {.timeout_ns = kTimeout});
    ASSERT_TRUE(made.ok()) << made.status();
    broadcaster_ = *std::move(made);
  }

  std::shared_ptr<const cuda::NcclLibrary> library_;
  std::unique_ptr<cuda::NcclBroadcaster> broadcaster_;
};

TEST_F(GpuNccl, BroadcastsInStreamOrder) {
  Buffer device(Buffer::Where::kDevice, kBytes);
  Buffer sent(Buffer::Where::kHost, kBytes), back(Buffer::Where::kHost, kBytes);
  ASSERT_TRUE(device.data() != nullptr && sent.data() != nullptr && back.data() != nullptr);
  for (size_t i = 0; i < kBytes; ++i) sent.data()[i] = static_cast<std::byte>(i * 7 + i / 251);
  std::memset(back.data(), 0, kBytes);
  Stream stream;
  GPU_OK(Spin(stream, 2000));  // what follows must wait
  GPU_OK(cudaMemcpyAsync(device.data(), sent.data(), kBytes, cudaMemcpyHostToDevice, stream));
  const absl::Status status = broadcaster_->Broadcast(device.data(), kBytes, 0,
                                                      static_cast<cudaStream_t>(stream), kTimeout);
  ASSERT_TRUE(status.ok()) << status;
  GPU_OK(cudaMemcpyAsync(back.data(), device.data(), kBytes, cudaMemcpyDeviceToHost, stream));
  GPU_OK(cudaStreamSynchronize(stream));
  EXPECT_EQ(std::memcmp(back.data(), sent.data(), kBytes), 0);
  EXPECT_TRUE(broadcaster_->Check().ok());
  const absl::Status closed = broadcaster_->Close(kTimeout);
  EXPECT_TRUE(closed.ok()) << closed;
  std::printf("  NCCL %s\n", library_->VersionText().c_str());
}

TEST_F(GpuNccl, IsAbortedUnderWay) {
  Buffer device(Buffer::Where::kDevice, kBytes);
  ASSERT_NE(device.data(), nullptr);
  Stream stream;
  GPU_OK(Spin(stream, 2000));
  const absl::Status status = broadcaster_->Broadcast(device.data(), kBytes, 0,
                                                      static_cast<cudaStream_t>(stream), kTimeout);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(broadcaster_->Abort(kTimeout).ok());
  GPU_OK(cudaDeviceSynchronize());  // the context is none the worse for it
}

}  // namespace
}  // namespace flexkv::gpu
