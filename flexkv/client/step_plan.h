// What the scheduler's half tells every worker for one step, as bytes inside the engine's own step
// metadata.
//
//   PlanHeader, fence block ids (u32 each), then per op: PlanOp, block ids (u32 each), request id
//   bytes, padding to 8.
//
// A plan comes from our own scheduler session, but through another process: readers check every
// length.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/base/ids.h"
#include "flexkv/transfer/transfer_op.h"

namespace flexkv {

inline constexpr uint32_t kPlanMagic = 0x504b5846;  // "FXKP"
inline constexpr uint32_t kPlanVersion = 2;

struct PlanHeader {
  uint32_t magic = kPlanMagic;
  uint32_t version = kPlanVersion;
  uint64_t number = 0;  // rises by one per plan of a session, starting at 1
  uint32_t num_fences = 0;
  uint32_t num_ops = 0;
};
static_assert(sizeof(PlanHeader) == 24);

struct PlanOp {
  uint64_t key = 0;
  uint32_t route = 0;  // Route
  uint32_t num_blocks = 0;
  uint32_t id_bytes = 0;   // request id, loads only
  uint32_t dead = 0;       // 1: the daemon was never asked; report failed at once (loads only)
  uint32_t layerwise = 0;  // 1: the engine computes with it in this very step (loads only)
  uint32_t reserved = 0;
};
static_assert(sizeof(PlanOp) == 32);

// Builds one plan into a buffer that is reused.
class PlanBuilder {
 public:
  void Start(uint64_t number);
  void AddFence(uint32_t block_id);  // all fences before the first op
  void AddOp(OpKey key, Route route, std::span<const uint32_t> block_ids,
             std::string_view request_id, bool dead, bool layerwise = false);
  bool empty() const { return header_.num_fences == 0 && header_.num_ops == 0; }
  std::span<const std::byte> Finish();

 private:
  PlanHeader header_;
  std::vector<std::byte> bytes_;
};

struct PlanOpView {
  PlanOp op;
  std::vector<uint32_t> block_ids;
  std::string request_id;
};
struct ParsedPlan {
  uint64_t number = 0;
  std::vector<uint32_t> fences;
  std::vector<PlanOpView> ops;
};
// InvalidArgument: not a plan.
absl::Status ParsePlan(std::span<const std::byte> bytes, ParsedPlan* plan);

}  // namespace flexkv
