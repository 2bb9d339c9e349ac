// What a kLookup says beside its hashes, in fields that its kind of message has no other use for.
// Every field's zero means "not said". Hints are fixed-point numbers, so there is no NaN to meet.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "flexkv/base/request_hint.h"
#include "proto/shm_layout.h"

namespace flexkv::shm {

inline constexpr uint32_t kHintOne = 1'000'000;  // continue_p in millionths, plus one
inline constexpr uint32_t kHintMaxMs = std::numeric_limits<uint32_t>::max() - 1;  // 49 days

struct LookupFields {
  uint32_t prompt_tokens = 0;  // of the whole prompt; 0: not known
  RequestHint hint;
};

// A hint that is not valid() is left out.
inline void PackLookup(const LookupFields& fields, Message* message) {
  message->lease = fields.prompt_tokens;
  message->status = message->route = 0;
  if (!fields.hint.valid()) return;
  if (fields.hint.continue_p >= 0) {
    message->status = 1 + static_cast<uint32_t>(std::lround(fields.hint.continue_p * kHintOne));
  }
  if (fields.hint.expected_in_s >= 0) {
    const double ms = std::min(fields.hint.expected_in_s * 1e3, double{kHintMaxMs});
    message->route = 1 + static_cast<uint32_t>(ms);
  }
}

// False: no client of ours sends this.
inline bool UnpackLookup(const Message& message, LookupFields* fields) {
  if (message.lease > std::numeric_limits<uint32_t>::max() || message.status > kHintOne + 1) {
    return false;
  }
  fields->prompt_tokens = static_cast<uint32_t>(message.lease);
  fields->hint = {};
  if (message.status > 0) {
    fields->hint.continue_p = static_cast<float>((message.status - 1) / double{kHintOne});
  }
  if (message.route > 0) {
    fields->hint.expected_in_s = static_cast<float>((message.route - 1) * 1e-3);
  }
  return true;
}

}  // namespace flexkv::shm
