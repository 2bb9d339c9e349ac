#include "flexkv/transfer/cuda/compute_order.h"

#include <algorithm>

namespace flexkv::cuda {

Error ComputeOrder::CreateEvents() {
  for (Event& event : marks_) {
    if (Error error = api_->CreateEvent(false, &event); !Ok(error)) return error;
  }
  return api_->CreateEvent(false, &join_);
}

void ComputeOrder::DestroyEvents() {
  for (Event& event : marks_) {
    if (event != nullptr) (void)api_->DestroyEvent(event);
    event = nullptr;
  }
  if (join_ != nullptr) (void)api_->DestroyEvent(join_);
  join_ = nullptr;
}

// What cannot be asked counts as a capture.
bool ComputeOrder::Captures(Stream stream) {
  bool capturing = false;
  return !Ok(loss_->Note(api_->IsCapturing(stream, &capturing))) || capturing;
}

void ComputeOrder::SetStream(Stream stream) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (has_stream_ && stream == stream_) return;
  if (has_stream_) {
    std::erase(earlier_, stream);
    earlier_.push_back(stream_);
  }
  has_stream_ = true;
  stream_ = stream;
  if (!earlier_.empty() && !loss_->lost()) JoinEarlier();
}

// Makes the stream wait for those before it. While one of them captures, later.
bool ComputeOrder::JoinEarlier() {
  if (earlier_.empty()) return true;
  if (Captures(stream_)) return false;
  while (!earlier_.empty()) {
    Event event = join_;
    bool capturing = false;
    Error error = loss_->Note(api_->IsCapturing(earlier_.back(), &capturing));
    if (capturing || error == Error::kCapture) return false;
    if (Ok(error)) error = loss_->Note(api_->RecordEvent(join_, earlier_.back()));
    if (!Ok(error)) {
      if (loss_->lost() || error != Error::kInvalid) return false;
      // The engine has destroyed that stream; what it still had to do there is the engine's to
      // wait for. Our marks on it count.
      if (last_ == 0) {
        earlier_.pop_back();
        continue;
      }
      event = EventOf(last_);
    }
    if (!Ok(loss_->Note(api_->WaitEvent(stream_, event)))) return false;
    earlier_.pop_back();
  }
  return true;
}

ComputeMark ComputeOrder::Mark() {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!has_stream_ || loss_->lost() || Captures(stream_) || !JoinEarlier()) return kNoMark;
  const ComputeMark mark = last_ + 1;
  if (!Ok(loss_->Note(api_->RecordEvent(EventOf(mark), stream_)))) return kNoMark;
  last_ = mark;
  return mark;
}

bool ComputeOrder::Hold(std::span<const Event> events) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (!has_stream_ || loss_->lost() || Captures(stream_) || !JoinEarlier()) return false;
  return std::ranges::all_of(
      events, [this](Event event) { return Ok(loss_->Note(api_->WaitEvent(stream_, event))); });
}

}  // namespace flexkv::cuda
