// SchedulerSession as Python sees it: takes the engine's own objects (Request, SchedulerOutput,
// KVCacheBlocks) and loops over them here, so that the Python side of a step is a handful of calls,
// however many requests run.
//
// The interpreter lock is held throughout, except where a call may wait for milliseconds
// (ResetCache, WaitReady, Close). MatchedTokens waits at most `lookup_wait_us`: giving the lock up
// for that and taking it back can cost a whole switch interval (5 ms) when another thread computes.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "flexkv/client/scheduler_session.h"

namespace flexkv::python {

namespace nb = nanobind;

// Reads `request.block_hashes` of the requests it was given.
class RequestHashes : public HashSource {
 public:
  RequestHashes();
  // A request that is not cacheable has no hashes: nothing of it is looked up or stored.
  void Add(std::string id, nb::handle request, bool cacheable);
  void Remove(std::string_view id);
  bool Contains(std::string_view id) const { return requests_.find(id) != requests_.end(); }
  // Never throws: a request whose hashes cannot be read has none, and is counted.
  void AppendHashes(std::string_view id, uint32_t from, std::vector<BlockHash>* hashes) override;
  // By the callable given to SetBlockTable: request id -> tuple of block id lists.
  bool CurrentBlocks(std::string_view id, std::vector<uint32_t>* block_ids) override;
  void SetBlockTable(nb::object block_ids_of) { block_ids_of_ = std::move(block_ids_of); }
  uint64_t errors() const { return errors_; }
  size_t size() const { return requests_.size(); }

 private:
  struct Entry {
    nb::object request;
    bool cacheable = true;
  };
  struct Hasher {
    using is_transparent = void;
    size_t operator()(std::string_view id) const { return std::hash<std::string_view>{}(id); }
  };
  std::unordered_map<std::string, Entry, Hasher, std::equal_to<>> requests_;
  nb::object name_block_hashes_;
  nb::object block_ids_of_;
  uint64_t errors_ = 0;
};

class PyScheduler {
 public:
  // Throws ValueError.
  explicit PyScheduler(const SchedulerOptions& options);
  ~PyScheduler();

  // Where the block table of a request is asked for (engines that give blocks of running requests
  // back).
  void SetBlockTable(nb::object block_ids_of) { hashes_.SetBlockTable(std::move(block_ids_of)); }
  // Negative hint values: not known.
  void NewRequest(nb::handle request, bool cacheable, double continue_p, double expected_in_s);
  // (tokens that can be loaded, whether asynchronously); (None, False): ask again.
  nb::tuple MatchedTokens(nb::handle request, uint32_t num_computed_tokens);
  // `blocks` is a KVCacheBlocks; read only when there is something to load.
  void BlocksAllocated(nb::handle request, nb::handle blocks, uint32_t num_external_tokens);
  // A step: the plan for the workers, from the engine's SchedulerOutput.
  nb::bytes Step(nb::handle scheduler_output);
  void LoadEnded(std::string_view id, bool failed);
  void RequestFinished(std::string_view id);
  // Reduced mode: see SchedulerSession.
  bool FinishWithStore(nb::handle request, const std::vector<uint32_t>& block_ids,
                       uint32_t num_computed_tokens);
  bool LoadOutstanding(std::string_view id) const { return session()->LoadOutstanding(id); }
  // What a worker tells of layerwise loads: (op, failed). Of those that have thereby failed on all
  // ranks: (request, GPU blocks that are not to be trusted).
  std::vector<std::pair<std::string, std::vector<uint32_t>>> LayerLoadsEnded(
      const std::vector<std::pair<uint64_t, bool>>& ends);
  // Requests with an asynchronous load under way into any of these GPU blocks.
  std::vector<std::string> LoadsInto(const std::vector<uint32_t>& block_ids) const;
  // (request, GPU blocks, layerwise) of loads that no plan has carried to the workers yet.
  std::vector<std::tuple<std::string, std::vector<uint32_t>, bool>> UndeliveredLoads() const;
  bool ResetCache(uint32_t timeout_ms);
  bool WaitReady(uint32_t timeout_ms);
  nb::dict Stats() const;
  void Close();

 private:
  struct Names;  // interned attribute names
  void PrefetchBlockId(PyObject* block) const;
  uint32_t BlockId(nb::handle block);
  void StepNew(nb::handle new_request, nb::handle num_scheduled);
  void StepCached(nb::handle cached, nb::handle num_scheduled);
  SchedulerSession* session() const;

  std::unique_ptr<Names> names_;
  // Where KVCacheBlock keeps its block_id, once looked up: its slots lie at fixed offsets, and a
  // request has hundreds.
  PyTypeObject* block_type_ = nullptr;
  Py_ssize_t block_id_offset_ = 0;
  RequestHashes hashes_;  // outlives the session
  std::unique_ptr<SchedulerSession> session_;
  struct Promise {
    bool delivered = false;  // a plan carried it
    bool layerwise = false;
  };
  std::unordered_map<std::string, Promise> loads_;  // under way
  std::vector<uint32_t> block_ids_;                 // reused
};

}  // namespace flexkv::python
