#include "proto/lookup_fields.h"

#include <gtest/gtest.h>

#include <limits>

namespace flexkv::shm {
namespace {

LookupFields RoundTrip(const LookupFields& fields) {
  Message message;
  PackLookup(fields, &message);
  LookupFields read;
  EXPECT_TRUE(UnpackLookup(message, &read));
  return read;
}

TEST(LookupFieldsTest, ZeroMeansNotSaid) {
  LookupFields fields;
  EXPECT_TRUE(UnpackLookup(Message{}, &fields));
  EXPECT_EQ(fields.hint, RequestHint{});
  EXPECT_EQ(fields.prompt_tokens, 0u);
}

TEST(LookupFieldsTest, EveryValidHintArrives) {
  for (const float p : {-1.0f, 0.0f, 0.25f, 0.9f, 1.0f}) {
    for (const float seconds : {-1.0f, 0.0f, 0.5f, 3600.0f, 1e9f}) {
      const LookupFields read =
          RoundTrip({.prompt_tokens = 7, .hint = {.continue_p = p, .expected_in_s = seconds}});
      EXPECT_EQ(read.prompt_tokens, 7u);
      EXPECT_NEAR(read.hint.continue_p, p, 1e-6);
      const double most = kHintMaxMs * 1e-3;  // 49 days
      EXPECT_NEAR(read.hint.expected_in_s, std::min<double>(seconds, most), 1);
      EXPECT_TRUE(read.hint.valid());
    }
  }
}

TEST(LookupFieldsTest, WhatNoClientSendsIsRefused) {
  Message message;
  LookupFields fields;
  message.status = kHintOne + 1;
  EXPECT_TRUE(UnpackLookup(message, &fields));
  EXPECT_EQ(fields.hint.continue_p, 1.0f);
  message.status = kHintOne + 2;
  EXPECT_FALSE(UnpackLookup(message, &fields));
  message.status = 0;
  message.route = std::numeric_limits<uint32_t>::max();
  EXPECT_TRUE(UnpackLookup(message, &fields));
  EXPECT_TRUE(fields.hint.valid());
  message.lease = uint64_t{1} << 32;
  EXPECT_FALSE(UnpackLookup(message, &fields));
}

}  // namespace
}  // namespace flexkv::shm
