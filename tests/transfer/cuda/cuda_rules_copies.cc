// Rules of copies by engine and by kernel.
#include <cstring>
#include <string>

#include "tests/support/test_seed.h"
#include "tests/transfer/cuda/cuda_rules.h"

namespace flexkv {
namespace {

using cuda::CopyItem;
using cuda::Error;

struct Batch {
  std::vector<void*> targets;
  std::vector<const void*> sources;
  std::vector<size_t> sizes;

  void Add(void* target, const void* source, size_t bytes) {
    targets.push_back(target);
    sources.push_back(source);
    sizes.push_back(bytes);
  }
  void Run(RuleLab* lab, cuda::Stream stream) const {
    lab->Ok(lab->api.CopyBatch(targets.data(), sources.data(), sizes.data(), sizes.size(), stream),
            "CopyBatch");
  }
};

// Copies `items` by kernel, from a list in registered memory.
void Kernel(RuleLab* lab, const std::vector<CopyItem>& items, cuda::Stream stream, int sms = 8) {
  auto* list = reinterpret_cast<CopyItem*>(lab->Host(items.size() * sizeof(CopyItem) + 1));
  if (!lab->fine()) return;
  if (!items.empty()) std::memcpy(list, items.data(), items.size() * sizeof(CopyItem));
  lab->Ok(lab->api.CopyKernel(list, items.size(), sms, stream), "CopyKernel");
}

bool KernelsReadHost(RuleLab* lab) {
  cuda::DeviceInfo info = {};
  return lab->Ok(lab->api.GetDeviceInfo(&info), "GetDeviceInfo") && info.kernels_read_host;
}

std::string BatchesOfAnySizesArriveWhole(RulesDevice& device) {
  RuleLab lab(device);
  constexpr size_t kBytes = 1 << 20;
  const cuda::Stream stream = lab.Stream();
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  if (!lab.fine()) return lab.complaint();
  lab.Fill(in, kBytes, 1);
  for (size_t most : {64, 4096, 40000}) {
    TestRng rng(most);
    Batch up, down;
    for (size_t at = 0; at < kBytes;) {
      const size_t bytes = std::min<size_t>(1 + rng.Below(most), kBytes - at);
      up.Add(a + at, in + at, bytes);
      down.Add(out + at, a + at, bytes);
      at += bytes;
    }
    std::memset(out, 0, kBytes);
    up.Run(&lab, stream);
    down.Run(&lab, stream);
    lab.Sync(stream);
    lab.Expect(lab.Holds(out, kBytes, 1), "wrong bytes, fragments up to " + std::to_string(most));
  }
  return lab.complaint();
}

std::string BatchesKeepOrderAsWholes(RulesDevice& device) {
  RuleLab lab(device);
  constexpr size_t kPiece = 3000, kCount = 100, kBytes = kPiece * kCount;
  const cuda::Stream stream = lab.Stream();
  std::byte *a = lab.Device(kBytes), *in = lab.Host(2 * kBytes), *out = lab.Host(kBytes);
  if (!lab.fine()) return lab.complaint();
  lab.Fill(in, kBytes, 1);
  lab.Fill(in + kBytes, kBytes, 2);
  Batch first, second;
  for (size_t i = 0; i < kCount; ++i) {
    first.Add(a + i * kPiece, in + i * kPiece, kPiece);
    const size_t j = kCount - 1 - i;
    second.Add(a + j * kPiece, in + kBytes + j * kPiece, kPiece);
  }
  first.Run(&lab, stream);
  second.Run(&lab, stream);
  lab.Copy(out, a, kBytes, stream);
  lab.Sync(stream);
  lab.Expect(lab.Holds(out, kBytes, 2), "a batch overtook the one before it");
  return lab.complaint();
}

std::string DirectionsRunTogether(RulesDevice& device) {
  RuleLab lab(device);
  constexpr size_t kBytes = 1 << 20;
  const cuda::Stream up = lab.Stream(1), down = lab.Stream(0);
  std::byte *a = lab.Device(kBytes), *b = lab.Device(kBytes);
  std::byte *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  if (!lab.fine()) return lab.complaint();
  lab.Upload(b, kBytes, 21);
  lab.Fill(in, kBytes, 20);
  for (int round = 0; round < 8; ++round) {
    lab.Copy(a, in, kBytes, up);
    lab.Copy(out, b, kBytes, down);
  }
  lab.Sync(up);
  lab.Sync(down);
  lab.Expect(lab.Holds(out, kBytes, 21), "wrong bytes on the way down");
  lab.Expect(lab.Holds(lab.Download(a, kBytes).data(), kBytes, 20), "wrong bytes on the way up");
  return lab.complaint();
}

std::string NoCopiesAreNoError(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream stream = lab.Stream();
  if (!lab.fine()) return lab.complaint();
  Batch{}.Run(&lab, stream);
  if (KernelsReadHost(&lab)) Kernel(&lab, {}, stream);
  lab.Sync(stream);
  return lab.complaint();
}

// Every misalignment of both sides for a size, with bytes around that must stay.
void TryAlignments(RuleLab* lab, size_t size, bool to_device) {
  const size_t room = size + 64;
  const size_t bytes = 256 * room;
  const cuda::Stream stream = lab->Stream();
  std::byte *memory = lab->Device(bytes), *in = lab->Host(bytes), *out = lab->Host(bytes);
  std::byte* zeros = lab->Host(bytes);
  if (!lab->fine()) return;
  lab->Fill(in, bytes, size);
  lab->Copy(memory, to_device ? zeros : in, bytes, stream);
  std::vector<CopyItem> items;
  for (size_t i = 0; i < 256; ++i) {
    std::byte* base = to_device ? memory : out;
    const std::byte* source = to_device ? in : memory;
    items.push_back({base + i * room + 16 + i / 16, source + i * room + 16 + i % 16, size});
  }
  Kernel(lab, items, stream, 1 + static_cast<int>(size % 16));
  if (to_device) lab->Copy(out, memory, bytes, stream);
  lab->Sync(stream);
  for (size_t i = 0; i < 256 && lab->fine(); ++i) {
    std::vector<std::byte> want(room);
    std::memcpy(want.data() + 16 + i / 16, in + i * room + 16 + i % 16, size);
    lab->Expect(std::memcmp(out + i * room, want.data(), room) == 0,
                "wrong bytes: " + std::to_string(size) + " from +" + std::to_string(i % 16) +
                    " to +" + std::to_string(i / 16));
  }
}

std::string KernelCopiesAnyAlignment(RulesDevice& device) {
  RuleLab probe(device);
  if (!KernelsReadHost(&probe)) return "skip: kernels do not read registered memory here";
  std::vector<size_t> sizes = {100,  127,  128,  129,  255,  256,  257,  511,  512, 1000,
                               1023, 1024, 1025, 2047, 2048, 3000, 4095, 4096, 4097};
  for (size_t size = 1; size <= 66; ++size) sizes.push_back(size);
  for (size_t size : sizes) {
    for (bool to_device : {true, false}) {
      RuleLab lab(device);
      TryAlignments(&lab, size, to_device);
      if (!lab.fine()) return lab.complaint() + (to_device ? ", up" : ", down");
    }
  }
  return probe.complaint();
}

std::string KernelEqualsEngine(RulesDevice& device) {
  RuleLab lab(device);
  if (!KernelsReadHost(&lab)) return "skip: kernels do not read registered memory here";
  constexpr size_t kBytes = 1 << 20;
  const cuda::Stream engine = lab.Stream(), kernel = lab.Stream();
  std::byte *a = lab.Device(kBytes), *b = lab.Device(kBytes), *in = lab.Host(kBytes);
  std::byte *from_a = lab.Host(kBytes), *from_b = lab.Host(kBytes);
  if (!lab.fine()) return lab.complaint();
  lab.Fill(in, kBytes, 9);
  for (size_t most : {7, 600, 30000, 1 << 20}) {
    TestRng rng(most);
    Batch up, down;
    std::vector<CopyItem> up_items, down_items;
    for (size_t at = 0; at < kBytes;) {
      const size_t bytes = std::min<size_t>(1 + rng.Below(most), kBytes - at);
      if (most > 7) {
        up.Add(a + at, in + at, bytes);
        down.Add(from_a + at, a + at, bytes);
      }
      up_items.push_back({b + at, in + at, bytes});
      down_items.push_back({from_b + at, b + at, bytes});
      at += bytes + (most == 7 ? 1000 : 0);
    }
    up.Run(&lab, engine);
    down.Run(&lab, engine);
    Kernel(&lab, up_items, kernel);
    Kernel(&lab, down_items, kernel);
    lab.Sync(engine);
    lab.Sync(kernel);
    for (const CopyItem& item : down_items) {
      const size_t at = static_cast<size_t>(static_cast<std::byte*>(item.target) - from_b);
      lab.Expect(std::memcmp(from_b + at, in + at, item.bytes) == 0, "kernel: wrong bytes");
      if (most > 7) {
        lab.Expect(std::memcmp(from_a + at, from_b + at, item.bytes) == 0, "engine: other bytes");
      }
    }
  }
  return lab.complaint();
}

std::string KernelTakesManyItems(RulesDevice& device) {
  RuleLab lab(device);
  if (!KernelsReadHost(&lab)) return "skip: kernels do not read registered memory here";
  constexpr size_t kItems = 20'000, kSize = 24, kBytes = kItems * kSize;
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  const cuda::Stream stream = lab.Stream();
  if (!lab.fine()) return lab.complaint();
  lab.Fill(in, kBytes, 4);
  std::vector<CopyItem> up, down;
  for (size_t i = 0; i < kItems; ++i) {
    up.push_back({a + i * kSize, in + i * kSize, kSize});
    down.push_back({out + i * kSize, a + i * kSize, kSize});
  }
  for (int sms : {1, 8, 132, 1000}) {
    std::memset(out, 0, kBytes);
    Kernel(&lab, up, stream, sms);
    Kernel(&lab, down, stream, sms);
    lab.Sync(stream);
    lab.Expect(lab.Holds(out, kBytes, 4), "wrong bytes on " + std::to_string(sms) + " SMs");
  }
  return lab.complaint();
}

// A single large item is shared by all threads, a few of no bytes disturb nobody.
std::string KernelTakesUnevenItems(RulesDevice& device) {
  RuleLab lab(device);
  if (!KernelsReadHost(&lab)) return "skip: kernels do not read registered memory here";
  constexpr size_t kBytes = (4 << 20) + 5;
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  const cuda::Stream stream = lab.Stream();
  if (!lab.fine()) return lab.complaint();
  lab.Fill(in, kBytes, 6);
  Kernel(&lab,
         {{a, in, 1},
          {a, in, 0},
          {a + 1, in + 1, kBytes - 3},
          {a, in, 0},
          {a + kBytes - 2, in + kBytes - 2, 2}},
         stream);
  Kernel(&lab, {{out, a, kBytes}}, stream, 2);
  lab.Sync(stream);
  lab.Expect(lab.Holds(out, kBytes, 6), "wrong bytes");
  return lab.complaint();
}

std::string KernelAndEngineKeepStreamOrder(RulesDevice& device) {
  RuleLab lab(device);
  if (!KernelsReadHost(&lab)) return "skip: kernels do not read registered memory here";
  constexpr size_t kBytes = 300'000;
  std::byte *a = lab.Device(kBytes), *b = lab.Device(kBytes);
  std::byte *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  const cuda::Stream stream = lab.Stream();
  for (uint64_t round = 0; round < 5 && lab.fine(); ++round) {
    lab.Fill(in, kBytes, round);
    lab.Copy(a, in, kBytes, stream);
    Kernel(&lab, {{b, a, kBytes}}, stream);
    lab.Copy(a, b, kBytes, stream);
    Kernel(&lab, {{out, a, kBytes}}, stream);
    lab.Sync(stream);
    lab.Expect(lab.Holds(out, kBytes, round), "wrong bytes");
  }
  return lab.complaint();
}

}  // namespace

void internal::AddCopyRules(std::vector<CudaRule>* rules) {
  for (const CudaRule& rule : std::initializer_list<CudaRule>{
           {"BatchesOfAnySizesArriveWhole", BatchesOfAnySizesArriveWhole},
           {"BatchesKeepOrderAsWholes", BatchesKeepOrderAsWholes},
           {"DirectionsRunTogether", DirectionsRunTogether},
           {"NoCopiesAreNoError", NoCopiesAreNoError},
           {"KernelCopiesAnyAlignment", KernelCopiesAnyAlignment},
           {"KernelEqualsEngine", KernelEqualsEngine},
           {"KernelTakesManyItems", KernelTakesManyItems},
           {"KernelTakesUnevenItems", KernelTakesUnevenItems},
           {"KernelAndEngineKeepStreamOrder", KernelAndEngineKeepStreamOrder}}) {
    rules->push_back(rule);
  }
}

}  // namespace flexkv
