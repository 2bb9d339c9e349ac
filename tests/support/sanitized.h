// Is this build under AddressSanitizer or ThreadSanitizer? Then everything takes several times as
// long.
#pragma once

namespace flexkv {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define FLEXKV_SANITIZED 1
#endif
#endif
#if defined(FLEXKV_SANITIZED) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

}  // namespace flexkv
