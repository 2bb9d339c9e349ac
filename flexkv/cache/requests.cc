// Chains, lookups and leases.
//
// A lease is one pin on the last matched block. While no load runs under it, it sits in a list
// ordered by deadline (the timeout is the same for all, so new ones go to the end). A load takes
// the lease out of the list and holds a pin of its own: replacing or releasing the request's lease
// never unpins a running load.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/cache/manager_state.h"

namespace flexkv {

Request* CacheManager::Impl::FindRequest(Engine* engine, RequestKey key) {
  auto it = engine->requests.find(key);
  return it == engine->requests.end() ? nullptr : it->second.get();
}

absl::StatusOr<Request*> CacheManager::Impl::RequestFor(Engine* engine, RequestKey key,
                                                        uint32_t first) {
  if (Request* known = FindRequest(engine, key); known != nullptr) return known;
  if (first != 0)
    return absl::InvalidArgumentError("unknown request, and its chain does not start at 0");
  if (engine->requests.size() >= options.max_requests_per_engine) {
    return absl::ResourceExhaustedError("too many requests");
  }
  std::unique_ptr<Request> request;
  if (spare_requests.empty()) {
    request = std::make_unique<Request>();
  } else {
    request = std::move(spare_requests.back());
    spare_requests.pop_back();
  }
  request->key = key;
  request->engine = engine;
  Request* raw = request.get();
  engine->requests.emplace(key, std::move(request));
  ++requests;
  return raw;
}

absl::Status CacheManager::Impl::Extend(Request* request, uint32_t first,
                                        std::span<const BlockHash> suffix) {
  std::vector<BlockHash>& chain = request->chain;
  if (first > chain.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("gap in the chain: ", chain.size(), " known, suffix at ", first));
  }
  if (suffix.size() > options.max_chain_blocks ||
      first > options.max_chain_blocks - suffix.size()) {
    return absl::InvalidArgumentError("chain too long");
  }
  size_t keep = chain.size();
  size_t known = std::min<size_t>(chain.size() - first, suffix.size());
  if (known > 0 && std::memcmp(&chain[first], suffix.data(), known * sizeof(BlockHash)) != 0) {
    keep = first;  // another chain from here on
    known = 0;
  }
  const uint64_t others = request->engine->chain_blocks - chain.size();
  const size_t length = std::max<size_t>(keep, first + suffix.size());
  if (length > chain.size() && others + length > options.max_chain_blocks_per_engine) {
    return absl::ResourceExhaustedError("too many blocks in chains");
  }
  if (keep < chain.size() && request->lease.blocks > keep) EndLease(request);
  request->touched = static_cast<uint32_t>(std::min<size_t>(request->touched, keep));
  chain.resize(keep);
  chain.insert(chain.end(), suffix.begin() + known, suffix.end());
  request->engine->chain_blocks = others + chain.size();
  return absl::OkStatus();
}

absl::StatusOr<Request*> CacheManager::Impl::ExtendOrCreate(Engine* engine, RequestKey key,
                                                            uint32_t first,
                                                            std::span<const BlockHash> suffix) {
  absl::StatusOr<Request*> request = RequestFor(engine, key, first);
  if (!request.ok()) return request;
  if (absl::Status status = Extend(*request, first, suffix); !status.ok()) {
    if ((*request)->chain.empty()) EndRequest(engine, key);
    return status;
  }
  return request;
}

absl::StatusOr<LookupAnswer> CacheManager::Impl::Lookup(Engine* engine, RequestKey key,
                                                        uint32_t first,
                                                        std::span<const BlockHash> suffix,
                                                        RequestHint hint) {
  absl::StatusOr<Request*> found = ExtendOrCreate(engine, key, first, suffix);
  if (!found.ok()) return found.status();
  Request* request = *found;
  if (hint.known()) request->hint = hint;
  EndLease(request);
  RadixTree& tree = engine->size_class->store->tree();
  const PrefixMatch match =
      WithoutDamaged(*engine->size_class,
                     tree.Match(engine->ns->id, request->chain, {}, NextAccess(request, true)));
  request->touched = std::max(request->touched, match.num_blocks);
  Count(engine->ns, &CacheCounters::lookups, 1);
  Count(engine->ns, &CacheCounters::lookup_blocks, request->chain.size());
  Count(engine->ns, &CacheCounters::matched_blocks, match.num_blocks);
  if (match.num_blocks == 0) return LookupAnswer{};
  Lease& lease = request->lease;
  lease.id = next_lease++;
  lease.blocks = match.num_blocks;
  lease.last = match.last;
  lease.ns = tree.Pin(match.last);
  lease.loads = 0;
  lease.deadline = now + options.lease_timeout_ns;
  ++leases;
  Enlist(request);
  LookupAnswer answer{
      .matched_blocks = match.num_blocks, .warm_blocks = match.num_blocks, .lease = lease.id};
  FindTiers(*engine->size_class, lease, &answer);
  if (answer.warm_blocks < lease.blocks)
    ssd.hints.push_back({engine->handle, key, lease.id, now + kPrefetchDelayNs});
  return answer;
}

BlockAccess CacheManager::Impl::NextAccess(Request* request, bool lookup) const {
  return BlockAccess{
      .now = now,
      .hint = request->hint,
      .chain_blocks = static_cast<uint32_t>(request->chain.size()),
      .touched_before = request->touched,
      .new_request = lookup && !request->chain.empty() && !std::exchange(request->accessed, true),
      .tokens_per_block = request->engine->ns->tokens_per_block};
}

// How many blocks from the root on need no SSD, and how many of all of them do.
void CacheManager::Impl::FindTiers(const ClassState& size_class, const Lease& lease,
                                   LookupAnswer* answer) {
  const SizeClass& store = *size_class.store;
  if (store.resident(Tier::kSsd) == store.num_copies()) return;
  store.tree().PathSlots(lease.last, lease.blocks, &path_slots);
  for (uint32_t i = 0; i < lease.blocks; ++i) {
    if (store.InMemory(path_slots[i]).valid()) continue;
    if (answer->ssd_blocks++ == 0) answer->warm_blocks = i;
  }
}

// Requests that come again and again would hold a damaged block in the tree for ever, and every
// load of it would fail.
PrefixMatch CacheManager::Impl::WithoutDamaged(const ClassState& size_class,
                                               PrefixMatch match) const {
  const RadixTree& tree = size_class.store->tree();
  for (SlotId slot : size_class.ssd.damaged) {
    const uint32_t depth = tree.Contains(slot) ? tree.DepthOf(slot) : match.num_blocks;
    if (depth >= match.num_blocks) continue;
    if (tree.Ancestor(match.last, match.num_blocks - 1 - depth) != slot) continue;
    match = {depth, tree.Ancestor(slot, 1)};
  }
  return match;
}

void CacheManager::Impl::EndLease(Request* request) {
  Lease& lease = request->lease;
  if (lease.id == 0) return;
  Unlist(request);
  request->engine->size_class->store->tree().Unpin(lease.ns, lease.last);
  lease = Lease{};
  --leases;
}

void CacheManager::Impl::EndRequest(Engine* engine, RequestKey key) {
  auto it = engine->requests.find(key);
  if (it == engine->requests.end()) return;
  EndLease(it->second.get());
  std::unique_ptr<Request> request = std::move(it->second);
  engine->requests.erase(it);
  Retire(std::move(request));
}

// In a fixed order: the same calls give the same run, whatever a hash table's order is.
void CacheManager::Impl::EndLeases(Engine* engine) {
  std::vector<Request*> holders;
  for (auto& [key, request] : engine->requests) {
    if (request->lease.id != 0) holders.push_back(request.get());
  }
  std::sort(holders.begin(), holders.end(),
            [](const Request* a, const Request* b) { return a->lease.id < b->lease.id; });
  for (Request* request : holders) EndLease(request);
}

void CacheManager::Impl::EndAllRequests(Engine* engine) {
  EndLeases(engine);
  for (auto& [key, request] : engine->requests) Retire(std::move(request));
  engine->requests.clear();
}

void CacheManager::Impl::Retire(std::unique_ptr<Request> request) {
  --requests;
  request->engine->chain_blocks -= request->chain.size();
  if (spare_requests.size() >= kSpareRequests || request->chain.capacity() > kSpareChainBlocks)
    return;
  request->chain.clear();
  request->touched = 0;
  request->accessed = false;
  request->hint = RequestHint{};
  request->engine = nullptr;
  spare_requests.push_back(std::move(request));
}

void CacheManager::Impl::Enlist(Request* request) {
  request->older = newest_lease;
  request->newer = nullptr;
  (newest_lease != nullptr ? newest_lease->newer : oldest_lease) = request;
  newest_lease = request;
  request->listed = true;
}

void CacheManager::Impl::Unlist(Request* request) {
  if (!request->listed) return;
  (request->older != nullptr ? request->older->newer : oldest_lease) = request->newer;
  (request->newer != nullptr ? request->newer->older : newest_lease) = request->older;
  request->older = request->newer = nullptr;
  request->listed = false;
}

void CacheManager::Impl::ExpireLeases() {
  // Bounded: what is left over expires in the next tick.
  for (int i = 0; i < 4096 && oldest_lease != nullptr && oldest_lease->lease.deadline <= now; ++i) {
    Count(oldest_lease->engine->ns, &CacheCounters::leases_expired, 1);
    EndLease(oldest_lease);
  }
}

}  // namespace flexkv
