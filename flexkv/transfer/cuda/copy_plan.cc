#include "flexkv/transfer/cuda/copy_plan.h"

#include <algorithm>
#include <array>

namespace flexkv::cuda {
namespace {

// A launch costs about as much as so many copies of an engine.
constexpr size_t kFewKernelCopies = 4;

void Reserve(EngineCopies* copies, size_t more) {
  const size_t needed = copies->count + more;
  if (needed <= copies->sizes.size()) return;
  const size_t size = std::max(needed, 2 * copies->sizes.size());
  copies->targets.resize(size);
  copies->sources.resize(size);
  copies->sizes.resize(size);
}

void Reserve(KernelCopies* copies, size_t more) {
  const size_t needed = copies->count + more;
  if (needed > copies->items.size()) copies->items.resize(std::max(needed, 2 * copies->count));
}

void Append(EngineCopies* copies, const CopyItem& item) {
  Reserve(copies, 1);
  copies->targets[copies->count] = item.target;
  copies->sources[copies->count] = item.source;
  copies->sizes[copies->count] = item.bytes;
  ++copies->count;
}

template <typename T>
T* Advance(T* pointer, int64_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) + static_cast<uintptr_t>(bytes));
}

// Bytes of [address, address + bytes) that lie before `boundary`, where it lies strictly inside;
// else 0.
uint64_t HeadBytes(const void* address, uint64_t bytes, const std::byte* boundary) {
  const uint64_t head =
      reinterpret_cast<uintptr_t>(boundary) - reinterpret_cast<uintptr_t>(address);
  return head > 0 && head < bytes ? head : 0;  // before the address it wraps to a large number
}

}  // namespace

CopyPlanner::CopyPlanner(const internal::ShardMap& map) {
  views_.reserve(map.layers.size());
  for (const internal::ShardMap::Layer& layer : map.layers) views_.push_back(MakeView(layer));
}

CopyPlanner::View CopyPlanner::MakeView(const internal::ShardMap::Layer& layer) {
  View view;
  view.base = reinterpret_cast<std::byte*>(layer.view.base);
  view.block_stride = layer.view.block_stride_bytes;
  view.fragment = layer.view.fragment_bytes;
  view.offset = layer.offset;
  view.group = layer.group;
  for (auto loop = layer.view.outer.rbegin(); loop != layer.view.outer.rend(); ++loop) {
    if (loop->count == 1) continue;
    const bool innermost = view.outer.empty();
    if (innermost && loop->stride_bytes == static_cast<int64_t>(view.fragment)) {
      view.fragment *= loop->count;
      continue;
    }
    view.outer.insert(view.outer.begin(), {loop->count, loop->stride_bytes});
  }
  if (!view.outer.empty()) {
    view.row = view.outer.back();
    view.outer.pop_back();
  }
  return view;
}

void CopyPlanner::Begin(Route route, uint64_t kernel_below) {
  load_ = route == Route::kCpuToDevice;
  kernel_below_ = kernel_below;
  bytes_ = 0;
  engine_.count = kernel_.count = 0;
  engine_.bytes = kernel_.bytes = 0;
}

void CopyPlanner::Add(std::byte* shard, std::span<const uint32_t> block_ids, uint32_t first_layer,
                      uint32_t end_layer) {
  for (uint32_t layer = first_layer; layer < end_layer; ++layer) {
    const View& view = views_[layer];
    std::byte* device =
        Advance(view.base, static_cast<int64_t>(block_ids[view.group]) * view.block_stride);
    std::byte* arena = shard + view.offset;
    if (view.outer.empty()) {
      AddRow(device, arena, view);
      continue;
    }
    std::array<uint64_t, LayerView::kMaxOuterLoops> index{};
    const uint64_t row_bytes = view.row.count * view.fragment;
    for (int loop = 0; loop >= 0;) {
      AddRow(device, arena, view);
      arena += row_bytes;
      for (loop = static_cast<int>(view.outer.size()) - 1; loop >= 0; --loop) {
        const Loop& outer = view.outer[static_cast<size_t>(loop)];
        uint64_t& at = index[static_cast<size_t>(loop)];
        device = Advance(device, outer.stride);
        if (++at < outer.count) break;
        device = Advance(device, -outer.stride * static_cast<int64_t>(outer.count));
        at = 0;
      }
    }
  }
}

void CopyPlanner::AddRow(std::byte* device, std::byte* arena, const View& view) {
  if (bytes_ > 0 && device == device_ + bytes_ && arena == arena_ + bytes_) {
    bytes_ += view.fragment;
  } else {
    Flush();
    device_ = device;
    arena_ = arena;
    bytes_ = view.fragment;
  }
  if (view.row.count == 1) return;
  Flush();
  const uint64_t between = view.row.count - 2;
  device = Advance(device, view.row.stride);
  arena += view.fragment;
  if (between > 0) {
    if (view.fragment < kernel_below_) {
      EmitToKernel(device, arena, view.fragment, between, view.row.stride);
    } else {
      Emit(device, arena, view.fragment, between, view.row.stride);
    }
  }
  device_ = Advance(device, view.row.stride * static_cast<int64_t>(between));
  arena_ = arena + view.fragment * between;
  bytes_ = view.fragment;
}

void CopyPlanner::Flush() {
  if (bytes_ == 0) return;
  if (bytes_ < kernel_below_) {
    EmitToKernel(device_, arena_, bytes_, 1, 0);
  } else {
    Emit(device_, arena_, bytes_, 1, 0);
  }
  bytes_ = 0;
}

void CopyPlanner::Emit(std::byte* device, std::byte* arena, uint64_t bytes, uint64_t count,
                       int64_t stride) {
  Reserve(&engine_, count);
  void** targets = engine_.targets.data() + engine_.count;
  const void** sources = engine_.sources.data() + engine_.count;
  size_t* sizes = engine_.sizes.data() + engine_.count;
  for (uint64_t i = 0; i < count; ++i) {
    targets[i] = load_ ? device : arena;
    sources[i] = load_ ? arena : device;
    sizes[i] = bytes;
    device = Advance(device, stride);
    arena += bytes;
  }
  engine_.count += count;
  engine_.bytes += bytes * count;
}

void CopyPlanner::EmitToKernel(std::byte* device, std::byte* arena, uint64_t bytes, uint64_t count,
                               int64_t stride) {
  Reserve(&kernel_, count);
  CopyItem* items = kernel_.items.data() + kernel_.count;
  for (uint64_t i = 0; i < count; ++i) {
    items[i] = load_ ? CopyItem{device, arena, bytes} : CopyItem{arena, device, bytes};
    device = Advance(device, stride);
    arena += bytes;
  }
  kernel_.count += count;
  kernel_.bytes += bytes * count;
}

void CopyPlanner::Finish() {
  Flush();
  if (kernel_.count <= kFewKernelCopies && engine_.count > 0) UseEngineOnly();
}

void CopyPlanner::UseEngineOnly() {
  for (size_t i = 0; i < kernel_.count; ++i) Append(&engine_, kernel_.items[i]);
  engine_.bytes += kernel_.bytes;
  kernel_.count = 0;
  kernel_.bytes = 0;
}

void CopyPlanner::CutAt(const std::byte* boundary) {
  const size_t engine_count = engine_.count;
  for (size_t i = 0; i < engine_count; ++i) {
    const void* arena = load_ ? engine_.sources[i] : engine_.targets[i];
    const uint64_t head = HeadBytes(arena, engine_.sizes[i], boundary);
    if (head == 0) continue;
    Append(&engine_,
           {static_cast<std::byte*>(engine_.targets[i]) + head,
            static_cast<const std::byte*>(engine_.sources[i]) + head, engine_.sizes[i] - head});
    engine_.sizes[i] = head;
  }
  const size_t kernel_count = kernel_.count;
  for (size_t i = 0; i < kernel_count; ++i) {
    const CopyItem item = kernel_.items[i];
    const uint64_t head = HeadBytes(load_ ? item.source : item.target, item.bytes, boundary);
    if (head == 0) continue;
    Reserve(&kernel_, 1);
    kernel_.items[i].bytes = head;
    kernel_.items[kernel_.count++] = {static_cast<std::byte*>(item.target) + head,
                                      static_cast<const std::byte*>(item.source) + head,
                                      item.bytes - head};
  }
}

}  // namespace flexkv::cuda
