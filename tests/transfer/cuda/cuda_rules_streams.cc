// Rules of streams, events and captures.
#include <chrono>
#include <string>
#include <thread>

#include "tests/transfer/cuda/cuda_rules.h"

namespace flexkv {
namespace {

using cuda::Error;
constexpr size_t kBytes = 100'000;

std::string DeviceSaysWhatItIs(RulesDevice& device) {
  RuleLab lab(device);
  cuda::DeviceInfo info = {};
  lab.Ok(lab.api.GetDeviceInfo(&info), "GetDeviceInfo");
  lab.Expect(info.name[0] != '\0', "no name");
  lab.Expect(info.num_sms > 0, "no SMs");
  lab.Ok(lab.api.RelaxCapture(), "RelaxCapture");
  lab.Ok(lab.api.RelaxCapture(), "RelaxCapture, a second time");
  lab.Ok(lab.api.UseDevice(), "UseDevice, a second time");
  return lab.complaint();
}

std::string StreamsKeepOrder(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream stream = lab.Stream();
  std::byte *a = lab.Device(kBytes), *b = lab.Device(kBytes);
  std::byte *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  for (uint64_t round = 0; round < 10 && lab.fine(); ++round) {
    lab.Fill(in, kBytes, round);
    lab.Copy(a, in, kBytes, stream);
    lab.Copy(b, a, kBytes, stream);
    lab.Copy(out, b, kBytes, stream);
    lab.Sync(stream);
    lab.Expect(lab.Holds(out, kBytes, round), "a copy overtook the one before it");
  }
  return lab.complaint();
}

std::string WaitOrdersStreams(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream first = lab.Stream(), second = lab.Stream(1);
  const cuda::Event event = lab.Event();
  std::byte* memory = lab.Device(kBytes);
  std::byte *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  for (uint64_t round = 0; round < 10 && lab.fine(); ++round) {
    lab.Fill(in, kBytes, round);
    device.Delay(first);
    lab.Copy(memory, in, kBytes, first);
    lab.Ok(lab.api.RecordEvent(event, first), "RecordEvent");
    lab.Ok(lab.api.WaitEvent(second, event), "WaitEvent");
    lab.Copy(out, memory, kBytes, second);
    lab.Sync(second);
    lab.Expect(lab.Holds(out, kBytes, round), "the stream did not wait for the event");
  }
  return lab.complaint();
}

// A ring of marks may give an event away that somebody will wait for: the later record covers the
// earlier one.
std::string LaterRecordCoversEarlier(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream first = lab.Stream(), second = lab.Stream();
  const cuda::Event event = lab.Event();
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  if (!lab.fine()) return lab.complaint();
  lab.Fill(in, kBytes, 5);
  device.Delay(first);
  lab.Copy(a, in, kBytes, first);
  lab.Ok(lab.api.RecordEvent(event, first), "RecordEvent");
  device.Delay(first);
  lab.Ok(lab.api.RecordEvent(event, first), "RecordEvent");
  lab.Ok(lab.api.WaitEvent(second, event), "WaitEvent");
  lab.Copy(out, a, kBytes, second);
  lab.Sync(second);
  lab.Expect(lab.Holds(out, kBytes, 5), "the second record did not cover the first");
  lab.Sync(first);
  return lab.complaint();
}

std::string WaitKeepsTheRecordOfItsCall(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream first = lab.Stream(), second = lab.Stream();
  const cuda::Event event = lab.Event();
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  if (!lab.fine()) return lab.complaint();
  for (uint64_t round = 0; round < 5; ++round) {
    lab.Fill(in, kBytes, round);
    device.Delay(first);
    lab.Copy(a, in, kBytes, first);
    lab.Ok(lab.api.RecordEvent(event, first), "RecordEvent");
    lab.Ok(lab.api.WaitEvent(second, event), "WaitEvent");
    // Recorded again, and destroyed, by somebody else: the wait stays what it was.
    lab.Ok(lab.api.RecordEvent(event, second), "RecordEvent of an event that is waited for");
    lab.Copy(out, a, kBytes, second);
    lab.Sync(second);
    lab.Expect(lab.Holds(out, kBytes, round), "recording again took the wait away");
    lab.Sync(first);
  }
  return lab.complaint();
}

std::string DestroyedEventIsStillWaitedFor(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream first = lab.Stream(), second = lab.Stream();
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  cuda::Event event = nullptr;
  lab.Ok(lab.api.CreateEvent(false, &event), "CreateEvent");
  if (!lab.fine()) return lab.complaint();
  lab.Fill(in, kBytes, 8);
  device.Delay(first);
  lab.Copy(a, in, kBytes, first);
  lab.Ok(lab.api.RecordEvent(event, first), "RecordEvent");
  lab.Ok(lab.api.WaitEvent(second, event), "WaitEvent");
  lab.Ok(lab.api.DestroyEvent(event), "DestroyEvent of an event under way");
  lab.Copy(out, a, kBytes, second);
  lab.Sync(second);
  lab.Expect(lab.Holds(out, kBytes, 8), "destroying the event took the wait away");
  return lab.complaint();
}

std::string NeverRecordedIsDone(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream stream = lab.Stream();
  const cuda::Event event = lab.Event();
  if (!lab.fine()) return lab.complaint();
  lab.Ok(lab.api.QueryEvent(event), "QueryEvent of an event never recorded");
  lab.Ok(lab.api.WaitEvent(stream, event), "WaitEvent of an event never recorded");
  lab.Sync(stream);
  return lab.complaint();
}

std::string QueryEndsWithTheBytes(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream stream = lab.Stream();
  const cuda::Event event = lab.Event();
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  for (uint64_t round = 0; round < 10 && lab.fine(); ++round) {
    lab.Fill(in, kBytes, round);
    device.Delay(stream);
    lab.Copy(a, in, kBytes, stream);
    lab.Copy(out, a, kBytes, stream);
    lab.Ok(lab.api.RecordEvent(event, stream), "RecordEvent");
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    Error error = Error::kNotReady;
    while ((error = lab.api.QueryEvent(event)) == Error::kNotReady &&
           std::chrono::steady_clock::now() < deadline) {
      if (round % 2 == 1) lab.Sync(stream);
      std::this_thread::yield();
    }
    lab.Ok(error, "QueryEvent");
    lab.Expect(lab.Holds(out, kBytes, round), "the event was done before the bytes were there");
    lab.Ok(lab.api.QueryEvent(event), "QueryEvent, once done");
  }
  return lab.complaint();
}

std::string TimesAreNotNegative(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream stream = lab.Stream();
  const cuda::Event start = lab.Event(true), end = lab.Event(true);
  if (!lab.fine()) return lab.complaint();
  lab.Ok(lab.api.RecordEvent(start, stream), "RecordEvent");
  device.Delay(stream);
  lab.Ok(lab.api.RecordEvent(end, stream), "RecordEvent");
  lab.Sync(stream);
  int64_t ns = -1;
  lab.Ok(lab.api.ElapsedNs(start, end, &ns), "ElapsedNs");
  lab.Expect(ns >= 0 && ns < 10'000'000'000, "a delay took " + std::to_string(ns) + " ns");
  return lab.complaint();
}

std::string PrioritiesAreTaken(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream low = lab.Stream(0), high = lab.Stream(1);
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes), *out = lab.Host(kBytes);
  if (!lab.fine()) return lab.complaint();
  lab.Fill(in, kBytes, 3);
  lab.Copy(a, in, kBytes, low);
  lab.Sync(low);
  lab.Copy(out, a, kBytes, high);
  lab.Sync(high);
  lab.Expect(lab.Holds(out, kBytes, 3), "wrong bytes");
  return lab.complaint();
}

std::string CaptureIsSeen(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream stream = lab.Stream(), other = lab.Stream();
  if (!lab.fine()) return lab.complaint();
  if (!device.BeginCapture(stream)) return "skip: this device captures nothing";
  bool here = false, there = true;
  lab.Ok(lab.api.IsCapturing(stream, &here), "IsCapturing");
  lab.Ok(lab.api.IsCapturing(other, &there), "IsCapturing");
  lab.Expect(here, "the captured stream was not seen to be captured");
  lab.Expect(!there, "another stream was");
  lab.Expect(device.EndCapture(stream), "asking broke the capture");
  lab.Ok(lab.api.IsCapturing(stream, &here), "IsCapturing");
  lab.Expect(!here, "captured, after the capture");
  return lab.complaint();
}

// All that the agent does beside the engine's thread, while that one captures a graph.
std::string RelaxedThreadDoesNotDisturbCaptures(RulesDevice& device) {
  RuleLab lab(device);
  const cuda::Stream captured = lab.Stream(), stream = lab.Stream();
  const cuda::Event event = lab.Event();
  std::byte *a = lab.Device(kBytes), *in = lab.Host(kBytes);
  constexpr size_t kPages = 64 << 10;
  std::byte* pages = lab.Unregistered(kPages);
  if (!lab.fine()) return lab.complaint();
  for (int round = 0; round < 20 && lab.fine(); ++round) {
    if (!device.BeginCapture(captured)) return "skip: this device captures nothing";
    std::thread([&] {
      lab.Ok(lab.api.UseDevice(), "UseDevice");
      lab.Ok(lab.api.RelaxCapture(), "RelaxCapture");
      lab.Ok(lab.api.RegisterHost(pages, kPages), "RegisterHost");
      lab.Copy(a, in, kBytes, stream);
      lab.Copy(pages, a, kPages, stream);
      lab.Ok(lab.api.RecordEvent(event, stream), "RecordEvent");
      Error error = Error::kNotReady;
      for (int i = 0; i < 1000 && (error = lab.api.QueryEvent(event)) == Error::kNotReady; ++i) {
      }
      lab.Expect(error == Error::kOk || error == Error::kNotReady, "QueryEvent failed");
      lab.Sync(stream);
      lab.Ok(lab.api.UnregisterHost(pages), "UnregisterHost");
      void* host = nullptr;
      lab.Ok(lab.api.AllocateHost(4096, &host), "AllocateHost");
      lab.Ok(lab.api.FreeHost(host), "FreeHost");
    }).join();
    lab.Expect(device.EndCapture(captured), "the capture was broken");
  }
  return lab.complaint();
}

}  // namespace

void internal::AddStreamRules(std::vector<CudaRule>* rules) {
  for (const CudaRule& rule : std::initializer_list<CudaRule>{
           {"DeviceSaysWhatItIs", DeviceSaysWhatItIs},
           {"StreamsKeepOrder", StreamsKeepOrder},
           {"WaitOrdersStreams", WaitOrdersStreams},
           {"LaterRecordCoversEarlier", LaterRecordCoversEarlier},
           {"WaitKeepsTheRecordOfItsCall", WaitKeepsTheRecordOfItsCall},
           {"DestroyedEventIsStillWaitedFor", DestroyedEventIsStillWaitedFor},
           {"NeverRecordedIsDone", NeverRecordedIsDone},
           {"QueryEndsWithTheBytes", QueryEndsWithTheBytes},
           {"TimesAreNotNegative", TimesAreNotNegative},
           {"PrioritiesAreTaken", PrioritiesAreTaken},
           {"CaptureIsSeen", CaptureIsSeen},
           {"RelaxedThreadDoesNotDisturbCaptures", RelaxedThreadDoesNotDisturbCaptures}}) {
    rules->push_back(rule);
  }
}

}  // namespace flexkv
