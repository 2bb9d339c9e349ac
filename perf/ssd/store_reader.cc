#include "perf/ssd/store_reader.h"

#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "flexkv/base/units.h"
#include "perf/bench_util.h"

namespace flexkv::bench {
namespace {

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "flexkv_ssd_bench: %s\n", why.c_str());
  std::exit(2);
}

}  // namespace

ArenaPiece::ArenaPiece(size_t bytes) {
  constexpr int kTimeoutMs = 60000;
  absl::StatusOr<std::unique_ptr<MemfdSegmentStore>> opened = MemfdSegmentStore::Open({});
  if (!opened.ok()) Fail(opened.status().ToString());
  store = *std::move(opened);
  const absl::StatusOr<SegmentId> segment = store->Create(RoundUp(bytes, kSegmentAlign));
  if (!segment.ok() || !store->WaitPrefaulted(kTimeoutMs)) Fail("no memory");
  span = {store->Data(*segment), bytes};
  pages = store->stats().page_kind;
}

StoreReader::StoreReader(const std::string& directory, size_t block_bytes, uint32_t blocks,
                         std::span<std::byte> memory, bool threads)
    : directory_(directory), block_bytes_(block_bytes), blocks_(blocks), memory_(memory) {
  std::filesystem::remove_all(directory_);  // of a run that was ended
  mkdir(directory_.c_str(), 0700);
  const DirectoryDiskOptions options = {.directory = directory_, .queue_depth = 64};
  absl::StatusOr<std::unique_ptr<Disk>> disk =
      threads ? MakeThreadDisk(options) : MakeUringDisk(options);
  if (!disk.ok()) Fail(disk.status().ToString());
  disk_ = *std::move(disk);
  registered_ = disk_->RegisterMemory(memory_);
  options_.max_bytes = (block_bytes + 4096) * blocks + (uint64_t{64} << 20);
  Reopen(true);
  Fill();
}

StoreReader::~StoreReader() {
  store_.reset();
  disk_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(directory_, ignored);
}

void StoreReader::Reopen(bool verify_reads) {
  store_.reset();
  options_.verify_reads = verify_reads;
  absl::StatusOr<std::unique_ptr<SsdStore>> store = SsdStore::Open(options_, disk_.get(), &clock_);
  if (!store.ok()) Fail(store.status().ToString());
  store_ = *std::move(store);
}

SsdIdentity StoreReader::IdentityOf(uint32_t block) const {
  SsdIdentity identity;
  identity.hash.words[0] = SplitMix(block);
  return identity;
}

std::vector<std::span<std::byte>> StoreReader::Place(uint64_t index) const {
  return {memory_.subspan(index * block_bytes_, block_bytes_)};
}

void StoreReader::Fill() {
  Rng rng(1);  // drives may compress
  for (size_t i = 0; i < memory_.size(); i += 8) {
    const uint64_t word = rng.Next();
    std::memcpy(memory_.data() + i, &word, 8);
  }
  const absl::StatusOr<uint32_t> segment =
      store_->CreateSegment({{static_cast<uint32_t>(block_bytes_)}, blocks_});
  if (!segment.ok()) Fail(segment.status().ToString());
  segment_ = *segment;
  std::vector<SsdResult> results;
  uint32_t written = 0;
  for (uint32_t block = 0; written < blocks_;) {
    // The same bytes for many blocks: what tells them apart is in the checksum.
    if (block < blocks_ && block - written < 64) {
      const std::span<std::byte> from = Place(block % (memory_.size() / block_bytes_)).front();
      store_->SubmitWrite({block, {segment_, block}, IdentityOf(block), {from}});
      ++block;
      continue;
    }
    results.clear();
    store_->Poll(kNsPerSecond, &results);
    for (const SsdResult& result : results) {
      if (!result.status.ok()) Fail("cannot fill: " + result.status.ToString());
    }
    written += static_cast<uint32_t>(results.size());
  }
}

void StoreReader::Submit(uint32_t block, uint64_t place) {
  if (!store_->SubmitRead({place, {segment_, block}, IdentityOf(block), Place(place)}))
    Fail("the queue is full");
}

SsdRate StoreReader::Read(const std::function<std::optional<uint32_t>()>& next) {
  const uint64_t places = memory_.size() / block_bytes_;
  std::vector<SsdResult> results;
  const uint64_t cpu = ProcessCpuNs(), start = NowNs();
  uint64_t started = 0, done = 0;
  for (; started < places; ++started) {
    const std::optional<uint32_t> block = next();
    if (!block.has_value()) break;
    Submit(*block, started);
  }
  while (done < started) {
    results.clear();
    store_->Poll(kNsPerSecond, &results);
    for (const SsdResult& result : results) {
      if (!result.status.ok()) Fail("a read failed: " + result.status.ToString());
      if (const std::optional<uint32_t> block = next()) {
        Submit(*block, result.tag);
        ++started;
      }
    }
    done += results.size();
  }
  const auto transfers = static_cast<double>(done);
  return {.bytes_per_ns =
              transfers * static_cast<double>(block_bytes_) / static_cast<double>(NowNs() - start),
          .cpu_us = static_cast<double>(ProcessCpuNs() - cpu) / 1000 / transfers,
          .transfers = done};
}

}  // namespace flexkv::bench
