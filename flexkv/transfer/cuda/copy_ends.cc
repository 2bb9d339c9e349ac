// Ends of chunks, and what becomes possible by them. See cuda_copier_impl.h.
#include <algorithm>

#include "flexkv/transfer/cuda/cuda_copier_impl.h"

namespace flexkv::cuda {
namespace {

constexpr TimeNs kShortestLookNs = 20 * kNsPerUs;
constexpr TimeNs kLongestLookNs = 500 * kNsPerUs;
// A device that so many times in a row cannot say whether a leg has ended is as good as lost.
constexpr uint32_t kMaxErrors = 8;
constexpr uint64_t kLeastBytesForRate = 64u << 10;

}  // namespace

TimeNs CudaCopierImpl::ExpectedNs(const Leg& leg) const {
  const size_t direction = Direction(leg.chunk->route);
  return static_cast<TimeNs>(static_cast<double>(leg.bytes) / bytes_per_ns_[direction]);
}

// The stream has a first leg that nobody has asked for yet.
void CudaCopierImpl::LookAtFirst(StreamState* stream) {
  const TimeNs expected = ExpectedNs(*stream->under_way.front());
  stream->due = clock_.Now() + expected;
  stream->look_at = clock_.Now() + std::clamp<TimeNs>(expected, kShortestLookNs, kLongestLookNs);
}

TimeNs CudaCopierImpl::CollectAfter() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!ended_.empty() || loss_.lost()) return 0;
  TimeNs look_at = UINT64_MAX;
  for (const StreamState& stream : streams_) {
    if (!stream.under_way.empty()) look_at = std::min(look_at, stream.look_at);
  }
  const TimeNs now = clock_.Now();
  return look_at == UINT64_MAX || look_at <= now ? 0 : look_at - now;
}

void CudaCopierImpl::Collect(std::vector<ChunkEnd>* ends) {
  for (StreamState& stream : streams_) CollectStream(&stream);
  BeginWaiting();
  if (loss_.lost()) FailAll();
  std::lock_guard<std::mutex> lock(mutex_);
  ends->insert(ends->end(), ended_.begin(), ended_.end());
  ended_.clear();
}

// Takes the legs off the stream that have ended. A store waits for a step of the engine, so what is
// late is asked for less and less often.
void CudaCopierImpl::CollectStream(StreamState* stream) {
  for (;;) {
    Leg* leg = nullptr;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (stream->under_way.empty()) return;
      leg = stream->under_way.front();
    }
    const bool ended = !loss_.lost() && LegEnded(leg);
    int64_t ns = 0;
    if (ended && leg->has_end) {
      if (!Ok(loss_.Note(api_->ElapsedNs(leg->start, leg->end, &ns)))) ns = 0;
    }
    if (loss_.lost()) return;
    Chunk* chunk = leg->chunk;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (!ended) {
        const TimeNs now = clock_.Now();
        const TimeNs late = now > stream->due ? now - stream->due : 0;
        stream->look_at =
            std::max(stream->look_at, now + std::clamp(late / 4, kShortestLookNs, kLongestLookNs));
        return;
      }
      if (ns > 0 && leg->bytes >= kLeastBytesForRate) {
        double& rate = bytes_per_ns_[Direction(chunk->route)];
        rate += (static_cast<double>(leg->bytes) / static_cast<double>(ns) - rate) / 8;
      }
      stream->under_way.pop_front();
      if (!stream->under_way.empty()) LookAtFirst(stream);
      leg->chunk = nullptr;
    }
    chunk->round_ns = std::max(chunk->round_ns, static_cast<TimeNs>(std::max<int64_t>(ns, 0)));
    if (--chunk->legs_open == 0) EndRound(chunk);
  }
}

bool CudaCopierImpl::LegEnded(Leg* leg) {
  const Error error =
      loss_.Note(leg->has_end ? api_->QueryEvent(leg->end)
                              : api_->SynchronizeStream(streams_[leg->stream].handle));
  if (Ok(error)) return true;
  if (error == Error::kNotReady) {
    leg->errors = 0;
    return false;
  }
  leg->chunk->failed = true;
  if (++leg->errors >= kMaxErrors) loss_.Declare();
  return false;
}

void CudaCopierImpl::EndRound(Chunk* chunk) {
  chunk->copy_ns += chunk->round_ns;
  if (chunk->route == Route::kDeviceToCpu && !chunk->failed) CopyStaged(chunk);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (chunk->failed || chunk->handed) {
      EndChunk(chunk, !chunk->failed);
      return;
    }
    GiveSupplies(chunk);
    chunk->busy = true;
  }
  BeginRound(chunk, chunk->pieces);
}

// Chunks that found no supplies, layers first; each kind in its order.
void CudaCopierImpl::BeginWaiting() {
  for (std::deque<Chunk*>& waiting : waiting_) {
    for (;;) {
      Chunk* chunk = nullptr;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (waiting.empty() || loss_.lost()) break;
        chunk = waiting.front();
        waiting.pop_front();
        chunk->busy = true;
      }
      if (!BeginRound(chunk, chunk->pieces)) break;
    }
  }
}

// The device is lost. Chunks that some thread is putting on it are ended by that thread.
void CudaCopierImpl::FailAll() {
  std::lock_guard<std::mutex> lock(mutex_);
  for (StreamState& stream : streams_) stream.under_way.clear();
  for (std::deque<Chunk*>& waiting : waiting_) waiting.clear();
  std::vector<Chunk*> chunks;
  for (const auto& [ticket, chunk] : chunks_) {
    if (!chunk->busy) chunks.push_back(chunk.get());
  }
  for (Chunk* chunk : chunks) EndChunk(chunk, false);
}

}  // namespace flexkv::cuda
