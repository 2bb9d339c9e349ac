#include "connector/py_scheduler.h"

#include <structmember.h>

#include <algorithm>
#include <cstring>
#include <span>

namespace flexkv::python {
namespace {

nb::object Attribute(nb::handle object, nb::handle name) {
  PyObject* value = PyObject_GetAttr(object.ptr(), name.ptr());
  if (value == nullptr) nb::raise_python_error();
  return nb::steal(value);
}

std::string_view Text(nb::handle object) {
  Py_ssize_t length = 0;
  const char* text = PyUnicode_AsUTF8AndSize(object.ptr(), &length);
  if (text == nullptr) nb::raise_python_error();
  return {text, static_cast<size_t>(length)};
}

uint32_t Number(nb::handle object) {
  const long value = PyLong_AsLong(object.ptr());
  if (value == -1 && PyErr_Occurred() != nullptr) nb::raise_python_error();
  if (value < 0 || value > static_cast<long>(UINT32_MAX)) {
    throw nb::value_error("a number of the engine is out of range");
  }
  return static_cast<uint32_t>(value);
}

// The engine's lists point to objects that were made one by one and lie all over its heap: reading
// them is waiting for memory, unless it is asked for ahead of time.
constexpr Py_ssize_t kAhead = 16;
void PrefetchItem(PyObject** items, Py_ssize_t place, Py_ssize_t size) {
  if (place >= size) return;
  __builtin_prefetch(items[place]);
  __builtin_prefetch(reinterpret_cast<const char*>(items[place]) + 64);
}

// The first KV group of a tuple of block id lists; we register one group only.
void ReadBlockIds(nb::handle groups, std::vector<uint32_t>* ids) {
  ids->clear();
  if (groups.is_none()) return;
  if (!PyTuple_Check(groups.ptr()) || PyTuple_GET_SIZE(groups.ptr()) != 1) {
    throw nb::type_error("block ids of one KV cache group expected");
  }
  PyObject* list = PyTuple_GET_ITEM(groups.ptr(), 0);
  if (!PyList_Check(list)) throw nb::type_error("a list of block ids expected");
  const Py_ssize_t size = PyList_GET_SIZE(list);
  ids->reserve(static_cast<size_t>(size));
  PyObject** items = PySequence_Fast_ITEMS(list);
  for (Py_ssize_t i = 0; i < size; ++i) {
    PrefetchItem(items, i + kAhead, size);
    ids->push_back(Number(items[i]));
  }
}

nb::list CheckedList(nb::object object) {
  if (!PyList_Check(object.ptr())) throw nb::type_error("a list expected");
  return nb::borrow<nb::list>(object);
}

nb::object Scheduled(nb::handle num_scheduled, nb::handle id) {
  PyObject* value = PyDict_GetItemWithError(num_scheduled.ptr(), id.ptr());
  if (value == nullptr) {
    if (PyErr_Occurred() != nullptr) nb::raise_python_error();
    throw nb::key_error("a scheduled request has no number of tokens");
  }
  return nb::borrow(value);
}

}  // namespace

// --- RequestHashes ------------------------------------------------------------------------------

RequestHashes::RequestHashes()
    : name_block_hashes_(nb::steal(PyUnicode_InternFromString("block_hashes"))) {}

void RequestHashes::Add(std::string id, nb::handle request, bool cacheable) {
  requests_[std::move(id)] = Entry{nb::borrow(request), cacheable};
}

void RequestHashes::Remove(std::string_view id) {
  const auto it = requests_.find(id);
  if (it != requests_.end()) requests_.erase(it);
}

void RequestHashes::AppendHashes(std::string_view id, uint32_t from,
                                 std::vector<BlockHash>* hashes) {
  const auto it = requests_.find(id);
  if (it == requests_.end() || !it->second.cacheable) return;
  const nb::object list =
      nb::steal(PyObject_GetAttr(it->second.request.ptr(), name_block_hashes_.ptr()));
  if (!list.is_valid() || !PyList_Check(list.ptr())) {
    PyErr_Clear();
    ++errors_;
    return;
  }
  const Py_ssize_t size = PyList_GET_SIZE(list.ptr());
  if (size > from) hashes->reserve(hashes->size() + static_cast<size_t>(size) - from);
  PyObject** items = PySequence_Fast_ITEMS(list.ptr());
  for (Py_ssize_t i = from; i < size; ++i) {
    PrefetchItem(items, i + kAhead, size);
    PyObject* item = items[i];
    BlockHash hash;
    if (!PyBytes_Check(item) || PyBytes_GET_SIZE(item) == 0 ||
        PyBytes_GET_SIZE(item) > static_cast<Py_ssize_t>(sizeof(hash.words))) {
      ++errors_;
      return;  // a chain ends where it cannot be read
    }
    std::memcpy(hash.words.data(), PyBytes_AS_STRING(item),
                static_cast<size_t>(PyBytes_GET_SIZE(item)));
    hashes->push_back(hash);
  }
}

bool RequestHashes::CurrentBlocks(std::string_view id, std::vector<uint32_t>* block_ids) {
  if (!block_ids_of_.is_valid() || block_ids_of_.is_none() || !Contains(id)) return false;
  try {
    const nb::object groups = block_ids_of_(nb::str(id.data(), id.size()));
    ReadBlockIds(groups, block_ids);
    return true;
  } catch (const std::exception&) {  // of Python: the session between us and it knows no exceptions
    ++errors_;
    return false;
  }
}

// --- PyScheduler --------------------------------------------------------------------------------

struct PyScheduler::Names {
  static nb::object Intern(const char* text) { return nb::steal(PyUnicode_InternFromString(text)); }
  nb::object request_id = Intern("request_id"), num_prompt_tokens = Intern("num_prompt_tokens"),
             num_tokens = Intern("num_tokens"), blocks = Intern("blocks"),
             block_id = Intern("block_id"), scheduled_new_reqs = Intern("scheduled_new_reqs"),
             scheduled_cached_reqs = Intern("scheduled_cached_reqs"),
             num_scheduled_tokens = Intern("num_scheduled_tokens"),
             total_num_scheduled_tokens = Intern("total_num_scheduled_tokens"),
             req_id = Intern("req_id"), req_ids = Intern("req_ids"),
             block_ids = Intern("block_ids"), num_computed_tokens = Intern("num_computed_tokens"),
             resumed_req_ids = Intern("resumed_req_ids"), new_block_ids = Intern("new_block_ids");
};

PyScheduler::PyScheduler(const SchedulerOptions& options) : names_(std::make_unique<Names>()) {
  absl::StatusOr<std::unique_ptr<SchedulerSession>> session =
      SchedulerSession::Open(options, &hashes_);
  if (!session.ok()) throw nb::value_error(std::string(session.status().message()).c_str());
  session_ = *std::move(session);
}

PyScheduler::~PyScheduler() { Close(); }

void PyScheduler::Close() {
  if (session_ == nullptr) return;
  nb::gil_scoped_release unlocked;
  session_.reset();
}

SchedulerSession* PyScheduler::session() const {
  if (session_ == nullptr) throw std::runtime_error("the session is closed");
  return session_.get();
}

void PyScheduler::NewRequest(nb::handle request, bool cacheable, double continue_p,
                             double expected_in_s) {
  const nb::object id = Attribute(request, names_->request_id);
  const std::string_view text = Text(id);
  hashes_.Add(std::string(text), request, cacheable);
  const RequestHint hint{.continue_p = static_cast<float>(continue_p),
                         .expected_in_s = static_cast<float>(expected_in_s)};
  session()->NewRequest(text, Number(Attribute(request, names_->num_prompt_tokens)), hint);
}

nb::tuple PyScheduler::MatchedTokens(nb::handle request, uint32_t num_computed_tokens) {
  const nb::object id = Attribute(request, names_->request_id);
  const int64_t tokens = session()->MatchedTokens(Text(id), num_computed_tokens,
                                                  Number(Attribute(request, names_->num_tokens)));
  if (tokens == SchedulerSession::kAskAgain) return nb::make_tuple(nb::none(), false);
  return nb::make_tuple(tokens, tokens > 0 && !session()->OfferIsLayerwise(Text(id)));
}

void PyScheduler::BlocksAllocated(nb::handle request, nb::handle blocks,
                                  uint32_t num_external_tokens) {
  const nb::object id = Attribute(request, names_->request_id);
  const std::string_view text = Text(id);
  if (num_external_tokens == 0) {  // scheduled in this very step, which brings the block ids
    session()->BlocksAllocated(text, {}, 0);
    return;
  }
  const nb::object groups = Attribute(blocks, names_->blocks);
  if (!PyTuple_Check(groups.ptr()) || PyTuple_GET_SIZE(groups.ptr()) != 1) {
    throw nb::type_error("blocks of one KV cache group expected");
  }
  const nb::object sequence = nb::steal(
      PySequence_Fast(PyTuple_GET_ITEM(groups.ptr(), 0), "a sequence of blocks expected"));
  if (!sequence.is_valid()) nb::raise_python_error();
  const Py_ssize_t size = PySequence_Fast_GET_SIZE(sequence.ptr());
  PyObject** items = PySequence_Fast_ITEMS(sequence.ptr());
  block_ids_.clear();
  block_ids_.reserve(static_cast<size_t>(size));
  for (Py_ssize_t i = 0; i < size; ++i) {
    PrefetchItem(items, i + 2 * kAhead, size);
    if (i + kAhead < size) PrefetchBlockId(items[i + kAhead]);
    block_ids_.push_back(BlockId(items[i]));
  }
  const bool layerwise = session()->OfferIsLayerwise(text);
  session()->BlocksAllocated(text, block_ids_, num_external_tokens);
  if (layerwise && !session()->LoadOutstanding(text)) return;  // there was nothing to load
  loads_[std::string(text)] = {.delivered = false, .layerwise = layerwise};
}

void PyScheduler::PrefetchBlockId(PyObject* block) const {
  if (Py_TYPE(block) != block_type_) return;
  __builtin_prefetch(
      *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(block) + block_id_offset_));
}

uint32_t PyScheduler::BlockId(nb::handle block) {
  if (Py_TYPE(block.ptr()) != block_type_) {
    const nb::object descriptor = nb::steal(PyObject_GetAttr(
        reinterpret_cast<PyObject*>(Py_TYPE(block.ptr())), names_->block_id.ptr()));
    if (!descriptor.is_valid() || Py_TYPE(descriptor.ptr()) != &PyMemberDescr_Type) {
      PyErr_Clear();
      return Number(Attribute(block, names_->block_id));
    }
    const PyMemberDef* member = reinterpret_cast<PyMemberDescrObject*>(descriptor.ptr())->d_member;
    if (member->type != T_OBJECT_EX) return Number(Attribute(block, names_->block_id));
    block_type_ = Py_TYPE(block.ptr());
    block_id_offset_ = member->offset;
  }
  PyObject* id =
      *reinterpret_cast<PyObject**>(reinterpret_cast<char*>(block.ptr()) + block_id_offset_);
  if (id == nullptr) throw nb::value_error("a block without an id");
  return Number(id);
}

void PyScheduler::StepNew(nb::handle new_request, nb::handle num_scheduled) {
  const nb::object id = Attribute(new_request, names_->req_id);
  ReadBlockIds(Attribute(new_request, names_->block_ids), &block_ids_);
  session_->ScheduledNew(Text(id), block_ids_,
                         Number(Attribute(new_request, names_->num_computed_tokens)),
                         Number(Scheduled(num_scheduled, id)));
}

void PyScheduler::StepCached(nb::handle cached, nb::handle num_scheduled) {
  const nb::list ids = CheckedList(Attribute(cached, names_->req_ids));
  const Py_ssize_t count = PyList_GET_SIZE(ids.ptr());
  if (count == 0) return;
  const nb::list new_blocks = CheckedList(Attribute(cached, names_->new_block_ids));
  const nb::list computed = CheckedList(Attribute(cached, names_->num_computed_tokens));
  const nb::object resumed = Attribute(cached, names_->resumed_req_ids);
  const bool any_resumed = PyObject_IsTrue(resumed.ptr()) == 1;
  if (PyList_GET_SIZE(new_blocks.ptr()) != count || PyList_GET_SIZE(computed.ptr()) != count) {
    throw nb::value_error("lists of scheduled requests differ in length");
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    const nb::handle id = PyList_GET_ITEM(ids.ptr(), i);
    bool is_resumed = false;
    if (any_resumed) {
      const int found = PySequence_Contains(resumed.ptr(), id.ptr());
      if (found < 0) nb::raise_python_error();
      is_resumed = found == 1;
    }
    ReadBlockIds(PyList_GET_ITEM(new_blocks.ptr(), i), &block_ids_);
    session_->ScheduledCached(Text(id), block_ids_, is_resumed,
                              Number(PyList_GET_ITEM(computed.ptr(), i)),
                              Number(Scheduled(num_scheduled, id)));
  }
}

nb::bytes PyScheduler::Step(nb::handle output) {
  SchedulerSession* session = this->session();
  const nb::object num_scheduled = Attribute(output, names_->num_scheduled_tokens);
  if (!PyDict_Check(num_scheduled.ptr()))
    throw nb::type_error("a dict of scheduled tokens expected");
  const nb::list new_requests = CheckedList(Attribute(output, names_->scheduled_new_reqs));
  session->BeginStep(Number(Attribute(output, names_->total_num_scheduled_tokens)));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(new_requests.ptr()); ++i) {
    StepNew(PyList_GET_ITEM(new_requests.ptr(), i), num_scheduled);
  }
  StepCached(Attribute(output, names_->scheduled_cached_reqs), num_scheduled);
  const std::span<const std::byte> plan = session->EndStep();
  nb::bytes bytes(reinterpret_cast<const char*>(plan.data()), plan.size());
  for (auto& [id, promise] : loads_) promise.delivered = true;
  return bytes;
}

void PyScheduler::LoadEnded(std::string_view id, bool failed) {
  session()->LoadEnded(id, failed);
  loads_.erase(std::string(id));
}

void PyScheduler::RequestFinished(std::string_view id) {
  session()->RequestFinished(id);
  hashes_.Remove(id);
}

bool PyScheduler::FinishWithStore(nb::handle request, const std::vector<uint32_t>& block_ids,
                                  uint32_t num_computed_tokens) {
  const nb::object id = Attribute(request, names_->request_id);
  const bool held = session()->FinishWithStore(Text(id), block_ids, num_computed_tokens);
  hashes_.Remove(Text(id));
  return held;
}

std::vector<std::string> PyScheduler::LoadsInto(const std::vector<uint32_t>& block_ids) const {
  std::vector<uint32_t> wanted = block_ids;
  std::sort(wanted.begin(), wanted.end());
  std::vector<std::string> hit;
  for (const auto& [id, promise] : loads_) {
    if (promise.layerwise) continue;
    const std::span<const uint32_t> own = session()->LoadBlocks(id);
    if (std::any_of(own.begin(), own.end(), [&](uint32_t block) {
          return std::binary_search(wanted.begin(), wanted.end(), block);
        })) {
      hit.push_back(id);
    }
  }
  return hit;
}

std::vector<std::tuple<std::string, std::vector<uint32_t>, bool>> PyScheduler::UndeliveredLoads()
    const {
  std::vector<std::tuple<std::string, std::vector<uint32_t>, bool>> result;
  for (const auto& [id, promise] : loads_) {
    if (promise.delivered) continue;
    const std::span<const uint32_t> own = session()->LoadBlocks(id);
    result.emplace_back(id, std::vector<uint32_t>(own.begin(), own.end()), promise.layerwise);
  }
  return result;
}

std::vector<std::pair<std::string, std::vector<uint32_t>>> PyScheduler::LayerLoadsEnded(
    const std::vector<std::pair<uint64_t, bool>>& ends) {
  std::vector<std::pair<std::string, std::vector<uint32_t>>> result;
  for (const auto& [key, failed] : ends) {
    std::string id;
    std::vector<uint32_t> tainted = session()->LayerLoadEnded(key, failed, &id);
    if (id.empty()) continue;
    loads_.erase(id);
    if (!tainted.empty()) result.emplace_back(std::move(id), std::move(tainted));
  }
  return result;
}

bool PyScheduler::ResetCache(uint32_t timeout_ms) {
  SchedulerSession* session = this->session();
  nb::gil_scoped_release unlocked;
  return session->ResetCache(timeout_ms);
}

bool PyScheduler::WaitReady(uint32_t timeout_ms) {
  SchedulerSession* session = this->session();
  nb::gil_scoped_release unlocked;
  return session->WaitReady(timeout_ms);
}

nb::dict PyScheduler::Stats() const {
  const SchedulerStats stats = session()->stats();
  nb::dict out;
#define FLEXKV_PUT(field) out[#field] = stats.field
  FLEXKV_PUT(lookups);
  FLEXKV_PUT(lookup_timeouts);
  FLEXKV_PUT(breaker_opens);
  FLEXKV_PUT(loads);
  FLEXKV_PUT(load_failures);
  FLEXKV_PUT(puts);
  FLEXKV_PUT(put_blocks);
  FLEXKV_PUT(fenced_blocks);
  FLEXKV_PUT(short_hits_skipped);
  FLEXKV_PUT(stampede_waits);
  FLEXKV_PUT(ring_full);
  FLEXKV_PUT(reattaches);
  FLEXKV_PUT(layer_loads);
  FLEXKV_PUT(layer_loads_failed);
  FLEXKV_PUT(prompt_tokens);
  FLEXKV_PUT(engine_matched_tokens);
  FLEXKV_PUT(offered_tokens);
  FLEXKV_PUT(taken_tokens);
  FLEXKV_PUT(loaded_tokens);
  FLEXKV_PUT(failed_tokens);
  FLEXKV_PUT(prefill_tokens_per_s);
  FLEXKV_PUT(step_ms);
  FLEXKV_PUT(load_tokens_per_s);
  FLEXKV_PUT(min_load_tokens);
  FLEXKV_PUT(ready);
  FLEXKV_PUT(breaker_open);
#undef FLEXKV_PUT
  out["hash_errors"] = hashes_.errors();
  out["open_requests"] = hashes_.size();
  out["loads_under_way"] = loads_.size();
  return out;
}

}  // namespace flexkv::python
