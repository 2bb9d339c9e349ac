#include "tests/sim/sim_device.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace flexkv {

uint64_t ContentWord(uint64_t identity, uint32_t rank) {
  TestRng mixed(identity ^ (uint64_t{rank} << 56));
  return mixed.Next();
}

void SimDevice::Fail(const std::string& what) {
  if (status_.ok()) status_ = absl::InternalError(what);
}

void SimDevice::AddHalf(EngineHandle engine, OpKey key, std::vector<uint64_t> identities,
                        std::vector<uint64_t> shard_bytes, bool replicated) {
  halves_[{engine, key}] = Half{std::move(identities), std::move(shard_bytes), replicated};
}

std::vector<uint32_t> SimDevice::RanksOf(EngineHandle engine, OpKey key) const {
  std::vector<uint32_t> ranks;
  const std::pair op(engine, key);
  for (auto it = next_parts_.lower_bound({op, 0}); it != next_parts_.end() && it->first.first == op;
       ++it) {
    ranks.push_back(it->first.second);
  }
  return ranks;
}

void SimDevice::ForgetHalf(EngineHandle engine, OpKey key) {
  halves_.erase({engine, key});
  std::erase_if(next_parts_,
                [&](const auto& entry) { return entry.first.first == std::pair(engine, key); });
}

void SimDevice::BeginUse(SegmentId segment, uint64_t offset, bool writes) {
  if (segments_->live().count(segment) == 0) return Fail("a use of a segment that is gone");
  int& users = users_[{segment, offset}];
  if (writes ? users != 0 : users < 0) return Fail("a slot in use was handed out");
  users = writes ? -1 : users + 1;
}

void SimDevice::EndUse(SegmentId segment, uint64_t offset, bool writes) {
  auto users = users_.find({segment, offset});
  if (segments_->live().count(segment) == 0) return Fail("a segment went away under a use");
  if (users == users_.end()) return Fail("a use ends that nobody began");
  users->second = writes ? 0 : users->second - 1;
  if (users->second == 0) users_.erase(users);
}

// Parts of an op come in order; nothing follows the last; only that may be empty.
void SimDevice::CheckPart(const TransferOp& op) {
  constexpr uint32_t kClosed = UINT32_MAX;
  uint32_t& next = next_parts_[{{op.engine, op.key}, op.rank}];
  if (op.part != next) return Fail("a part out of order");
  if (op.blocks.empty() && (op.more || op.part == 0))
    return Fail("an empty part that is not the last");
  if (op.route == Route::kDeviceToCpu && op.more) return Fail("a store in parts");
  next = op.more ? next + 1 : kClosed;
}

// Places must lie in live segments, inside them, and belong to this copy alone (loads may share).
void SimDevice::CheckPlaces(const TransferOp& op, const Half& half) {
  for (const ArenaPlace& place : op.blocks) {
    auto segment = segments_->live().find(place.segment);
    if (segment == segments_->live().end()) return Fail("an op names a segment that is gone");
    if (place.offset_bytes + half.shard_bytes[op.rank] > segment->second) {
      return Fail("an op reaches past its segment");
    }
    if (place.engine_index >= half.identities.size())
      return Fail("an op names a block the engine did not");
    int& users = users_[{place.segment, place.offset_bytes}];
    if (op.route == Route::kDeviceToCpu) {
      if (users != 0) return Fail("a slot under a copy was handed out");
      users = -1;
    } else {
      if (users < 0) return Fail("a load reads a slot that is being written");
      ++users;
    }
  }
}

bool SimDevice::Submit(const TransferOp& op) {
  if (faults_ && rng_->OneIn(10)) return false;
  auto half = halves_.find({op.engine, op.key});
  if (half == halves_.end()) {
    Fail("an op without engine half");
    return true;
  }
  CheckPart(op);
  CheckPlaces(op, half->second);
  Running running{.op = op};
  for (uint32_t i = 0; i < op.blocks.size(); ++i) running.left.push_back(i);
  for (size_t i = running.left.size(); i > 1; --i)
    std::swap(running.left[i - 1], running.left[rng_->Below(i)]);
  running.stuck = faults_ && rng_->OneIn(400);
  running_.push_back(std::move(running));
  return true;
}

void SimDevice::Poll(TimeNs, std::vector<OpResult>* results) {
  results->insert(results->end(), results_.begin(), results_.end());
  results_.clear();
}

void SimDevice::CopyOne(Running* running) {
  const uint32_t position = running->left.back();
  const ArenaPlace& place = running->op.blocks[position];
  const Half& half = halves_.at({running->op.engine, running->op.key});
  const uint64_t identity = half.identities[place.engine_index];
  const uint64_t right = ContentWord(identity, half.replicated ? 0 : running->op.rank);
  uint64_t& word = arena_[{place.segment, place.offset_bytes}];
  if (segments_->live().count(place.segment) == 0) Fail("a segment went away under a copy");
  if (running->op.route == Route::kDeviceToCpu) {
    running->torn = !running->torn;
    word = running->torn ? ~right : right;
    if (running->torn) return;
  } else {
    ++loads_checked_;
    if (word != right) Fail(absl::StrCat("wrong bytes in a load of engine ", running->op.engine));
  }
  running->left.pop_back();
}

void SimDevice::FailRest(Running* running) {
  running->failed.insert(running->failed.end(), running->left.begin(), running->left.end());
  running->left.clear();
}

void SimDevice::End(size_t index) {
  Running& running = running_[index];
  for (const ArenaPlace& place : running.op.blocks) {
    auto users = users_.find({place.segment, place.offset_bytes});
    users->second = running.op.route == Route::kDeviceToCpu ? 0 : users->second - 1;
    if (users->second == 0) users_.erase(users);
  }
  const OpStatus status = running.failed.empty()                              ? OpStatus::kOk
                          : running.failed.size() == running.op.blocks.size() ? OpStatus::kFailed
                                                                              : OpStatus::kPartial;
  results_.push_back(OpResult{running.op.id, status, std::move(running.failed)});
  if (faults_ && rng_->OneIn(50)) results_.push_back(results_.back());  // told twice
  running_[index] = std::move(running_.back());
  running_.pop_back();
}

void SimDevice::Step() {
  if (running_.empty()) return;
  const size_t index = rng_->Below(running_.size());
  Running& running = running_[index];
  if (dead_.count(running.op.engine) > 0) FailRest(&running);
  if (running.stuck && !running.left.empty()) return;
  if (faults_ && rng_->OneIn(400)) FailRest(&running);
  for (uint64_t n = 1 + rng_->Below(12); n > 0 && !running.left.empty(); --n) {
    if (faults_ && !running.torn && rng_->OneIn(1500)) {
      running.failed.push_back(running.left.back());
      running.left.pop_back();
      continue;
    }
    CopyOne(&running);
  }
  if (running.left.empty()) End(index);
}

void SimDevice::Cancel(EngineHandle engine, OpKey key) {
  for (Running& running : running_) {
    if (running.op.engine == engine && running.op.key == key) FailRest(&running);
  }
}

void SimDevice::Kill(EngineHandle engine) {
  dead_.insert(engine);
  for (Running& running : running_) {
    if (running.op.engine == engine) running.stuck = false;
  }
}

void SimDevice::Drain() {
  for (size_t i = running_.size(); i > 0; --i) {
    Running& running = running_[i - 1];
    const bool dead = dead_.count(running.op.engine) > 0;
    if (running.stuck && !dead && !running.left.empty()) continue;
    if (dead) FailRest(&running);
    while (!running.left.empty()) CopyOne(&running);
    End(i - 1);
  }
}

}  // namespace flexkv
