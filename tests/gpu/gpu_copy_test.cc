// CopyBatch and CopyKernel byte by byte: any alignment, any size, nothing beside the target.
#include <algorithm>
#include <cstring>

#include "tests/gpu/gpu_support.h"
#include "tests/support/test_seed.h"

namespace flexkv::gpu {
namespace {

constexpr size_t kRoom = size_t{24} << 20;
constexpr std::byte kGuard{0xC3};

struct Copies {
  struct Item {
    size_t target, source, bytes;  // offsets
  };
  std::vector<Item> items;
};

// Copies of random sizes at random offsets of no particular alignment, targets apart from each
// other by at least a byte.
Copies RandomCopies(TestRng* rng, size_t count, size_t max_bytes, size_t align) {
  Copies copies;
  size_t target = 0;
  for (size_t i = 0; i < count; ++i) {
    const size_t bytes = rng->Below(max_bytes + 1) / align * align;
    target += (1 + rng->Below(64)) * align;
    const size_t source = rng->Below((kRoom - bytes) / align) * align;
    if (target + bytes > kRoom) break;
    copies.items.push_back({target, source, bytes});
    target += bytes;
  }
  return copies;
}

class GpuCopy : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    api_ = OpenApi();
    rng_ = std::make_unique<TestRng>(TestSeed());
    device_ = std::make_unique<Buffer>(Buffer::Where::kDevice, kRoom);
    host_ = std::make_unique<Buffer>(Buffer::Where::kHost, kRoom);
    list_ = std::make_unique<Buffer>(Buffer::Where::kHost, 4096 * sizeof(cuda::CopyItem));
    expected_.resize(kRoom);
    source_.resize(kRoom);
    for (std::byte& byte : source_) byte = static_cast<std::byte>(rng_->Next());
  }

  // Fills source and target, copies, compares all of the target.
  void Check(const Copies& copies, bool load, int sms) {
    std::byte* const target = load ? device_->data() : host_->data();
    std::byte* const source = load ? host_->data() : device_->data();
    GPU_OK(cudaMemcpy(source, source_.data(), kRoom, cudaMemcpyDefault));
    std::fill(expected_.begin(), expected_.end(), kGuard);
    if (load) {
      GPU_OK(cudaMemset(target, static_cast<int>(kGuard), kRoom));
    } else {
      std::memset(target, static_cast<int>(kGuard), kRoom);
    }
    auto* items = reinterpret_cast<cuda::CopyItem*>(list_->data());
    std::vector<void*> targets;
    std::vector<const void*> sources;
    std::vector<size_t> sizes;
    for (const Copies::Item& item : copies.items) {
      items[targets.size()] = {target + item.target, source + item.source, item.bytes};
      targets.push_back(target + item.target);
      sources.push_back(source + item.source);
      sizes.push_back(item.bytes);
      std::memcpy(expected_.data() + item.target, source_.data() + item.source, item.bytes);
    }
    GPU_OK(cudaDeviceSynchronize());
    Stream stream;
    if (sms > 0) {
      API_OK(*api_, CopyKernel(items, targets.size(), sms, static_cast<cudaStream_t>(stream)));
    } else {
      API_OK(*api_, CopyBatch(targets.data(), sources.data(), sizes.data(), targets.size(),
                              static_cast<cudaStream_t>(stream)));
    }
    GPU_OK(cudaStreamSynchronize(stream));
    std::vector<std::byte> copied(kRoom);
    GPU_OK(cudaMemcpy(copied.data(), target, kRoom, cudaMemcpyDefault));
    const auto wrong = std::mismatch(copied.begin(), copied.end(), expected_.begin());
    ASSERT_EQ(copied.end(), wrong.first)
        << "first wrong byte at " << wrong.first - copied.begin() << ", " << copies.items.size()
        << " copies, " << (load ? "load" : "store") << ", " << sms << " SMs";
  }

  std::unique_ptr<cuda::Api> api_;
  std::unique_ptr<TestRng> rng_;
  std::unique_ptr<Buffer> device_, host_, list_;
  std::vector<std::byte> expected_, source_;
};

TEST_F(GpuCopy, KernelTakesAnyAlignmentAndSize) {
  for (const bool load : {true, false}) {
    for (const size_t align : {1, 2, 4, 8, 16}) {
      for (const size_t most : {40, 700, 9000, 300000}) {
        const size_t count = 1 + rng_->Below(most > 9000 ? 60 : 2500);
        Check(RandomCopies(rng_.get(), count, most, align), load,
              1 + static_cast<int>(rng_->Below(12)));
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(GpuCopy, KernelSplitsOneLargeCopy) {
  for (const bool load : {true, false}) {
    for (const size_t shift : {0, 1, 4, 8}) {
      Check({.items = {{.target = 3 + shift, .source = 3, .bytes = kRoom - 64}}}, load, 8);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(GpuCopy, EmptyAndSingle) {
  for (const int sms : {0, 4}) {
    Check({}, true, sms);
    Check({.items = {{.target = 5, .source = 77, .bytes = 1}}}, false, sms);
    Check({.items = {{.target = 5, .source = 77, .bytes = 0},
                     {.target = 9, .source = 1, .bytes = 3}}},
          true, sms);
    if (HasFatalFailure()) return;
  }
}

TEST_F(GpuCopy, BatchTakesAnyAlignmentAndSize) {
  for (const bool load : {true, false}) {
    for (const size_t most : {40, 9000, 300000}) {
      Check(RandomCopies(rng_.get(), 256, most, 1), load, 0);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(GpuCopy, OutlivesOneBadCall) {
  // A host address that no device knows: the call is refused, and the next one is not blamed.
  std::vector<std::byte> unknown(64);
  EXPECT_EQ(cuda::Error::kNotRegistered, api_->UnregisterHost(unknown.data()));
  EXPECT_NE(std::string(), api_->LastMessage());
  EXPECT_EQ(cuda::Error::kInvalid, api_->CopyKernel(nullptr, 1, 8, nullptr));
  bool capturing = true;
  Stream stream;
  EXPECT_EQ(cuda::Error::kOk, api_->IsCapturing(static_cast<cudaStream_t>(stream), &capturing));
  EXPECT_FALSE(capturing);
}

}  // namespace
}  // namespace flexkv::gpu
