#include "flexkv/trace/trace_writer.h"

#include <gtest/gtest.h>
#include <cstdio>
TEST(W, Smoke) {
  using namespace flexkv; using namespace flexkv::trace;
  system("rm -rf /tmp/w/formats/wt; mkdir -p /tmp/w/formats/wt");
  TraceWriterOptions o; o.path="/tmp/w/formats/wt/a.jsonl"; o.rotate_bytes = 2000; o.start_ns=5;
  o.config_json="{\"a\": 1,\n \"b\":[2]}";
  auto w = TraceWriter::Open(o); ASSERT_TRUE(w.ok()) << w.status();
  (*w)->NameNamespace(3, "model \"x\"\n");
  std::vector<BlockHash> c(4); for (size_t i=0;i<4;++i) c[i].words={i+1,2,3,4};
  for (int i=0;i<20;++i){ TraceRecord r; r.time_ns=10+i; r.ns=3; r.request=i; r.prompt_tokens=70; r.tokens_per_block=16; r.hint={0.9f,5};
    (*w)->Record(r,c); r.kind=RecordKind::kPut; r.first_block=2; r.blocks=2; r.accepted_blocks=2; r.result=RecordResult::kPartial; (*w)->Record(r,c);}
  EXPECT_TRUE((*w)->Close(kNsPerSecond));
  auto s=(*w)->stats(); printf("%lu %lu %lu %lu %lu\n", s.records,s.dropped,s.lost,s.written_bytes,s.files);
}
