#include "tests/storage/ssd_harness.h"

#include <utility>

#include "tests/support/content_oracle.h"

namespace flexkv {

SsdIdentity TestIdentity(uint64_t number, uint32_t epoch, uint8_t ns) {
  SsdIdentity identity;
  identity.ns.fill(ns);
  identity.epoch = epoch;
  identity.depth = static_cast<uint32_t>(number % 7);
  identity.hash = HashFromNumber(number * 1000 + epoch * 10 + ns);
  if (identity.depth > 0) identity.parent = HashFromNumber(number * 1000 + 999);
  return identity;
}

SsdHarness::SsdHarness(const SimDiskOptions& disk_options) : disk_options_(disk_options) {
  disk_options_.clock = &clock_;
  disk_ = std::make_unique<SimDisk>(disk_options_);
  options.max_bytes = 64ull << 20;
  options.new_store_id.fill(7);
}

absl::Status SsdHarness::Open() {
  store_.reset();
  absl::StatusOr<std::unique_ptr<SsdStore>> store = SsdStore::Open(options, disk_.get(), &clock_);
  if (!store.ok()) return store.status();
  store_ = *std::move(store);
  return store_->CheckInvariants();
}

absl::Status SsdHarness::Crash(CrashMode mode, uint64_t seed) {
  std::unique_ptr<SimDisk> copy = disk_->CrashedCopy(mode, seed, &clock_);
  store_.reset();
  disk_ = std::move(copy);
  return Open();
}

absl::Status SsdHarness::Kill(uint64_t seed) {
  std::unique_ptr<SimDisk> copy = disk_->KilledCopy(seed, &clock_);
  store_.reset();
  disk_ = std::move(copy);
  return Open();
}

uint64_t SsdHarness::Write(SsdPlace place, const SsdIdentity& identity) {
  const uint64_t tag = next_tag_++;
  auto memory = std::make_unique<SsdBlockBuffer>(shape.shard_bytes);
  memory->Fill(identity);
  if (!store_->SubmitWrite({tag, place, identity, memory->ToWrite()})) {
    results_[tag] = absl::ResourceExhaustedError("full");
  }
  ops_[tag] = {identity, std::move(memory)};
  return tag;
}

uint64_t SsdHarness::Read(SsdPlace place, const SsdIdentity& identity) {
  const uint64_t tag = next_tag_++;
  auto memory = std::make_unique<SsdBlockBuffer>(shape.shard_bytes);
  if (!store_->SubmitRead({tag, place, identity, memory->ToRead()})) {
    results_[tag] = absl::ResourceExhaustedError("full");
  }
  ops_[tag] = {identity, std::move(memory)};
  return tag;
}

uint64_t SsdHarness::Free(SsdPlace place) {
  const uint64_t tag = next_tag_++;
  if (!store_->SubmitFree(tag, place)) results_[tag] = absl::ResourceExhaustedError("full");
  return tag;
}

uint64_t SsdHarness::Raise(uint8_t ns, uint32_t epoch) {
  const uint64_t tag = next_tag_++;
  NamespaceDigest digest;
  digest.fill(ns);
  if (!store_->SubmitRaiseEpoch(tag, digest, epoch)) {
    results_[tag] = absl::ResourceExhaustedError("full");
  }
  return tag;
}

void SsdHarness::PollOnce(TimeNs timeout_ns) {
  std::vector<SsdResult> results;
  store_->Poll(timeout_ns, &results);
  for (const SsdResult& result : results) {
    if (results_.count(result.tag) > 0) {
      results_[result.tag] = absl::InternalError("two results");
      continue;
    }
    results_[result.tag] = result.status;
    auto op = ops_.find(result.tag);
    if (op == ops_.end()) continue;
    if (result.kind == SsdOpKind::kRead && result.status.ok() &&
        !op->second.memory->Matches(op->second.identity)) {
      results_[result.tag] = absl::InternalError("wrong bytes");
    }
    ops_.erase(op);
  }
}

bool SsdHarness::Drain(bool flush) {
  if (flush) store_->Flush();
  for (int i = 0; i < 20000 && !store_->idle(); ++i) PollOnce(kNsPerSecond);
  PollOnce(0);
  return store_->idle();
}

absl::Status SsdHarness::Wait(uint64_t tag) {
  store_->Flush();
  for (int i = 0; i < 20000 && !Has(tag); ++i) PollOnce(kNsPerSecond);
  return Has(tag) ? results_.at(tag) : absl::DeadlineExceededError("no result");
}

absl::Status SsdHarness::WriteNow(SsdPlace place, const SsdIdentity& identity) {
  return Wait(Write(place, identity));
}
absl::Status SsdHarness::ReadNow(SsdPlace place, const SsdIdentity& identity) {
  return Wait(Read(place, identity));
}
absl::Status SsdHarness::FreeNow(SsdPlace place) { return Wait(Free(place)); }
absl::Status SsdHarness::RaiseNow(uint8_t ns, uint32_t epoch) { return Wait(Raise(ns, epoch)); }

}  // namespace flexkv
