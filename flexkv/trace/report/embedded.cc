#include "flexkv/trace/report/embedded.h"

// The assembler copies a file between two symbols.
#define FLEXKV_EMBED(name, path)                                             \
  asm(".pushsection .rodata\n" #name "_begin:\n.incbin \"" path "\"\n" #name \
      "_end:\n.byte 0\n.popsection\n");                                      \
  extern "C" {                                                               \
  extern const char name##_begin[];                                          \
  extern const char name##_end[];                                            \
  }                                                                          \
  static_assert(true)

FLEXKV_EMBED(flexkv_report_frame, FLEXKV_REPORT_DIR "/page.html");
FLEXKV_EMBED(flexkv_report_style, FLEXKV_REPORT_DIR "/page.css");
FLEXKV_EMBED(flexkv_report_script, FLEXKV_REPORT_DIR "/page.js");
FLEXKV_EMBED(flexkv_report_chart, FLEXKV_CHART_JS);

namespace flexkv::trace {
namespace {

std::string_view Between(const char* begin, const char* end) {
  return {begin, static_cast<size_t>(end - begin)};
}

}  // namespace

std::string_view PageFrame() { return Between(flexkv_report_frame_begin, flexkv_report_frame_end); }
std::string_view PageStyle() { return Between(flexkv_report_style_begin, flexkv_report_style_end); }
std::string_view PageScript() {
  return Between(flexkv_report_script_begin, flexkv_report_script_end);
}
std::string_view ChartLibrary() {
  return Between(flexkv_report_chart_begin, flexkv_report_chart_end);
}

}  // namespace flexkv::trace
