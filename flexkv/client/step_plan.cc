#include "flexkv/client/step_plan.h"

#include <algorithm>
#include <cstring>

namespace flexkv {
namespace {

constexpr size_t kAlign = 8;

void Append(std::vector<std::byte>* bytes, const void* data, size_t size) {
  const auto* first = static_cast<const std::byte*>(data);
  bytes->insert(bytes->end(), first, first + size);
}

void Pad(std::vector<std::byte>* bytes) {
  bytes->resize((bytes->size() + kAlign - 1) / kAlign * kAlign);
}

// Reads consecutive pieces, refusing to run past the end.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool Read(void* target, size_t size) {
    if (size > bytes_.size() - at_) return false;
    if (size > 0) std::memcpy(target, bytes_.data() + at_, size);
    at_ += size;
    return true;
  }
  bool ReadIds(uint32_t count, std::vector<uint32_t>* ids) {
    if (count > (bytes_.size() - at_) / sizeof(uint32_t)) return false;
    ids->resize(count);
    return Read(ids->data(), count * sizeof(uint32_t));
  }
  bool ReadString(uint32_t size, std::string* text) {
    if (size > bytes_.size() - at_) return false;
    text->resize(size);
    return Read(text->data(), size);
  }
  bool SkipPadding() {
    at_ = (at_ + kAlign - 1) / kAlign * kAlign;
    return at_ <= bytes_.size();
  }
  bool AtEnd() const { return at_ == bytes_.size(); }

 private:
  std::span<const std::byte> bytes_;
  size_t at_ = 0;
};

}  // namespace

void PlanBuilder::Start(uint64_t number) {
  header_ = PlanHeader{};
  header_.number = number;
  bytes_.resize(sizeof(PlanHeader));
}

void PlanBuilder::AddFence(uint32_t block_id) {
  ++header_.num_fences;
  Append(&bytes_, &block_id, sizeof(block_id));
}

void PlanBuilder::AddOp(OpKey key, Route route, std::span<const uint32_t> block_ids,
                        std::string_view request_id, bool dead, bool layerwise) {
  if (header_.num_ops++ == 0) Pad(&bytes_);
  PlanOp op;
  op.key = key;
  op.route = static_cast<uint32_t>(route);
  op.num_blocks = static_cast<uint32_t>(block_ids.size());
  op.id_bytes = static_cast<uint32_t>(request_id.size());
  op.dead = dead ? 1 : 0;
  op.layerwise = layerwise ? 1 : 0;
  Append(&bytes_, &op, sizeof(op));
  Append(&bytes_, block_ids.data(), block_ids.size_bytes());
  Append(&bytes_, request_id.data(), request_id.size());
  Pad(&bytes_);
}

std::span<const std::byte> PlanBuilder::Finish() {
  if (empty()) return {};
  Pad(&bytes_);
  std::memcpy(bytes_.data(), &header_, sizeof(header_));
  return bytes_;
}

absl::Status ParsePlan(std::span<const std::byte> bytes, ParsedPlan* plan) {
  const auto bad = [] { return absl::InvalidArgumentError("not a step plan of this version"); };
  Reader reader(bytes);
  PlanHeader header;
  if (!reader.Read(&header, sizeof(header)) || header.magic != kPlanMagic ||
      header.version != kPlanVersion) {
    return bad();
  }
  plan->number = header.number;
  plan->ops.clear();
  if (!reader.ReadIds(header.num_fences, &plan->fences) || !reader.SkipPadding()) return bad();
  plan->ops.reserve(std::min<size_t>(header.num_ops, bytes.size() / sizeof(PlanOp)));
  for (uint32_t i = 0; i < header.num_ops; ++i) {
    PlanOpView& view = plan->ops.emplace_back();
    if (!reader.Read(&view.op, sizeof(view.op)) ||
        view.op.route >= static_cast<uint32_t>(Route::kNumRoutes) || view.op.key == 0 ||
        !reader.ReadIds(view.op.num_blocks, &view.block_ids) ||
        !reader.ReadString(view.op.id_bytes, &view.request_id) || !reader.SkipPadding()) {
      return bad();
    }
  }
  return reader.AtEnd() ? absl::OkStatus() : bad();
}

}  // namespace flexkv
