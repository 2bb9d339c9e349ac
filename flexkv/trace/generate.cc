// An event loop over sessions: the next start and the earliest session that asks again compete.
// Random numbers are made here from a 64-bit counter generator: the standard library's
// distributions differ between implementations.
#include "flexkv/trace/generate.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <queue>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/trace/mix.h"

namespace flexkv::trace {
namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(Mix(seed + 0x9E3779B97F4A7C15ull)) {}
  uint64_t Next() { return Mix(state_ += 0x9E3779B97F4A7C15ull); }
  double Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) * 0x1.0p-53; }  // in (0, 1)
  double Exponential(double mean) { return -mean * std::log(Uniform()); }
  double Normal() {
    const double radius = std::sqrt(-2 * std::log(Uniform()));
    return radius * std::cos(2 * std::numbers::pi * Uniform());
  }
  double LogNormal(double median, double sigma) { return median * std::exp(sigma * Normal()); }
  uint32_t Geometric(double mean) {  // at least 1
    if (mean <= 1) return 1;
    return 1 + static_cast<uint32_t>(std::log(Uniform()) / std::log1p(-1 / mean));
  }
  uint32_t Length(const LengthShape& shape) {
    const double tokens = LogNormal(shape.median_tokens, shape.sigma);
    return std::max(1u, static_cast<uint32_t>(std::min<double>(tokens, shape.longest_tokens)));
  }
  double Gap(const GapShape& shape) {
    const double gap = shape.law == GapShape::Law::kLogNormal
                           ? LogNormal(shape.median_s, shape.sigma)
                           : shape.median_s * std::pow(2 * Uniform(), -1 / shape.alpha);
    return std::min(gap, shape.longest_s);
  }

 private:
  uint64_t state_;
};

// Ranks 0 .. n-1 with probability proportional to 1 / (rank + 1)^exponent.
class Zipf {
 public:
  Zipf(uint32_t n, double exponent) : cumulative_(n) {
    double sum = 0;
    for (uint32_t i = 0; i < n; ++i) cumulative_[i] = sum += std::pow(i + 1.0, -exponent);
  }
  uint32_t Draw(Random* random) const {
    const double at = random->Uniform() * cumulative_.back();
    const auto it = std::lower_bound(cumulative_.begin(), cumulative_.end(), at);
    return static_cast<uint32_t>(std::min<ptrdiff_t>(
        it - cumulative_.begin(), static_cast<ptrdiff_t>(cumulative_.size()) - 1));
  }

 private:
  std::vector<double> cumulative_;
};

// A prompt as the chained ids of its full blocks. Text is a number: equal numbers, equal text.
struct Prompt {
  std::vector<uint64_t> blocks;
  uint64_t open = 1;  // of the path up to the end of what was appended
  uint32_t tokens = 0;

  void Append(uint64_t text, uint32_t length, uint32_t tokens_per_block) {
    uint32_t at = 0;
    while (at < length) {
      const uint32_t room = tokens_per_block - tokens % tokens_per_block;
      const uint32_t taken = std::min(room, length - at);
      open = Mix(open * 0x2545F4914F6CDD1Dull + Mix(text + at) + taken);
      tokens += taken;
      at += taken;
      if (tokens % tokens_per_block == 0) blocks.push_back(open);
    }
  }
};

enum Kind : uint8_t { kChat, kAgent, kDocument, kFlood, kScan, kKinds };

struct Session {
  Kind kind = kChat;
  uint32_t tenant = 0;
  uint32_t asks_left = 0;
  uint64_t number = 0;
  Prompt prompt;
};

struct Event {
  double time_s;
  uint64_t order;  // equal times: first come
  size_t session;
  bool operator>(const Event& other) const {
    return std::pair(time_s, order) > std::pair(other.time_s, other.order);
  }
};

class Generator {
 public:
  explicit Generator(const TrafficOptions& options)
      : options_(options),
        random_(options.seed),
        tenants_(options.tenants, options.tenant_zipf),
        systems_(options.chat.system_prompts, options.chat.zipf),
        prefixes_(options.agent.prefixes, options.agent.zipf),
        documents_(options.document.documents, options.document.zipf),
        scanned_(options.tenants) {
    const std::array<double, kKinds> weights = {options.chat.weight, options.agent.weight,
                                                options.document.weight, options.flood.weight,
                                                options.scan.weight};
    const AgentShape& agent = options.agent;
    // Each sub-agent asks too; they start none of their own.
    const double agent_asks =
        agent.mean_steps * (1 + agent.branch_p * std::max(1.0, agent.mean_steps / 2));
    const std::array<double, kKinds> asks = {options.chat.mean_turns, agent_asks,
                                             options.document.mean_questions, 1, 1};
    double weight = 0, sessions = 0;
    for (int kind = 0; kind < kKinds; ++kind) {
      weight += weights[kind];
      start_weights_[kind] = sessions += weights[kind] / std::max(1.0, asks[kind]);
    }
    sessions_per_s_ = options.requests_per_s * sessions / weight;
  }

  RequestBatch Run() {
    double next_start = NextStart(0);
    while (batch_.requests.size() < options_.requests) {
      if (events_.empty() || next_start <= events_.top().time_s) {
        const size_t session = Start();
        Ask(session, next_start);
        next_start = NextStart(next_start);
      } else {
        const Event event = events_.top();
        events_.pop();
        Ask(event.session, event.time_s);
      }
    }
    return std::move(batch_);
  }

 private:
  // Thinning: candidates at the highest rate, kept with the present rate's share of it.
  double NextStart(double now_s) {
    const bool bursts = options_.burst_every_s > 0;
    const double highest = (1 + options_.day_swing) * (bursts ? options_.burst_factor : 1.0);
    for (;;) {
      now_s += random_.Exponential(1 / (sessions_per_s_ * highest));
      double rate =
          1 + options_.day_swing * std::sin(2 * std::numbers::pi * now_s / options_.day_s);
      if (bursts && std::fmod(now_s, options_.burst_every_s) < options_.burst_s) {
        rate *= options_.burst_factor;
      }
      if (random_.Uniform() * highest < rate) return now_s;
    }
  }

  size_t Start() {
    Session session;
    const double at = random_.Uniform() * start_weights_.back();
    while (session.kind + 1 < kKinds && at >= start_weights_[session.kind]) {
      session.kind = static_cast<Kind>(session.kind + 1);
    }
    session.tenant = tenants_.Draw(&random_);
    switch (session.kind) {
      case kChat:
        AppendShared(&session, systems_.Draw(&random_), options_.chat.system);
        Append(&session, options_.chat.first);
        session.asks_left = random_.Geometric(options_.chat.mean_turns);
        break;
      case kAgent:
        AppendShared(&session, prefixes_.Draw(&random_), options_.agent.prefix);
        Append(&session, options_.agent.task);
        session.asks_left = random_.Geometric(options_.agent.mean_steps);
        break;
      case kDocument:
        AppendShared(&session, documents_.Draw(&random_), options_.document.document);
        Append(&session, options_.document.question);
        session.asks_left = random_.Geometric(options_.document.mean_questions);
        break;
      case kFlood:
        Append(&session, options_.flood.prompt);
        session.asks_left = 1;
        break;
      default:
        AppendShared(&session, scanned_[session.tenant]++ % options_.scan.items,
                     options_.scan.item);
        session.asks_left = 1;
    }
    return Keep(std::move(session));
  }

  size_t Keep(Session session) {
    session.number = ++sessions_started_;
    if (free_.empty()) {
      sessions_.push_back(std::move(session));
      return sessions_.size() - 1;
    }
    const size_t at = free_.back();
    free_.pop_back();
    sessions_[at] = std::move(session);
    return at;
  }

  void Ask(size_t at, double time_s) {
    Record(sessions_[at], time_s);
    Session& session = sessions_[at];
    const bool agent = session.kind == kAgent;
    const bool may_branch = agent && session.asks_left < kSubAgent;
    const uint32_t left = --session.asks_left % kSubAgent;
    if (left == 0) {
      session.prompt = Prompt{};
      free_.push_back(at);
      return;
    }
    Continue(&session);
    if (may_branch && random_.Uniform() < options_.agent.branch_p) {
      Session branch = session;
      Append(&branch, options_.agent.task);
      branch.asks_left =
          kSubAgent + random_.Geometric(std::max(1.0, options_.agent.mean_steps / 2));
      Schedule(Keep(std::move(branch)), time_s + random_.Gap(options_.agent.gap));
    }
    const Kind kind = sessions_[at].kind;
    Schedule(at, time_s + random_.Gap(kind == kChat    ? options_.chat.gap
                                      : kind == kAgent ? options_.agent.gap
                                                       : options_.document.gap));
  }

  // The answer joins the prompt, and what is asked next.
  void Continue(Session* session) {
    switch (session->kind) {
      case kChat:
        Append(session, options_.chat.answer);
        Append(session, options_.chat.turn);
        break;
      case kAgent:
        Append(session, options_.agent.answer);
        Append(session, options_.agent.observation);
        break;
      default:
        Append(session, options_.document.answer);
        Append(session, options_.document.question);
    }
  }

  void Schedule(size_t session, double time_s) { events_.push({time_s, ++order_, session}); }

  // New text that no other session has.
  void Append(Session* session, const LengthShape& shape) {
    session->prompt.Append(Mix(++texts_) | 1, random_.Length(shape), options_.tokens_per_block);
  }
  // The tenant's text of this rank: length and content follow from the rank.
  void AppendShared(Session* session, uint32_t rank, const LengthShape& shape) {
    const uint64_t text =
        Mix(Mix(options_.seed * 64 + session->kind) + (uint64_t{session->tenant} << 32) + rank);
    Random of_text(text);
    session->prompt.Append(text & ~1ull, of_text.Length(shape), options_.tokens_per_block);
  }

  void Record(const Session& session, double time_s) {
    Random of_answer(random_.Next());
    const LengthShape& answer = session.kind == kChat       ? options_.chat.answer
                                : session.kind == kAgent    ? options_.agent.answer
                                : session.kind == kDocument ? options_.document.answer
                                                            : kShortAnswer;
    if (batch_.requests.empty()) first_s_ = time_s;
    TraceRequest request;
    request.time_ns = static_cast<TimeNs>((time_s - first_s_) * 1e9);
    request.ns = session.tenant;
    request.prompt_tokens = session.prompt.tokens;
    request.output_tokens = of_answer.Length(answer);
    request.tokens_per_block = options_.tokens_per_block;
    request.session = session.number;
    request.first_block = batch_.blocks.size();
    request.num_blocks = static_cast<uint32_t>(session.prompt.blocks.size());
    batch_.requests.push_back(request);
    batch_.blocks.insert(batch_.blocks.end(), session.prompt.blocks.begin(),
                         session.prompt.blocks.end());
  }

  // Added to asks_left of sub-agents: they start none of their own.
  static constexpr uint32_t kSubAgent = 1u << 30;
  static constexpr LengthShape kShortAnswer{.median_tokens = 100, .sigma = 0.5};

  const TrafficOptions& options_;
  Random random_;
  Zipf tenants_, systems_, prefixes_, documents_;
  std::vector<uint32_t> scanned_;               // by tenant: prompts of the scan so far
  std::array<double, kKinds> start_weights_{};  // cumulative
  double sessions_per_s_ = 0;
  double first_s_ = 0;
  std::vector<Session> sessions_;
  std::vector<size_t> free_;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  uint64_t order_ = 0, texts_ = 0, sessions_started_ = 0;
  RequestBatch batch_;
};

bool SaneLength(const LengthShape& shape) {
  return shape.median_tokens > 0 && shape.sigma >= 0 && shape.sigma <= 5 &&
         shape.longest_tokens > 0 && shape.longest_tokens <= (1u << 24);
}

bool SaneGap(const GapShape& gap) {
  return gap.median_s > 0 && gap.sigma >= 0 && gap.sigma <= 5 && gap.alpha > 0 && gap.longest_s > 0;
}

absl::Status Check(const TrafficOptions& o) {
  const std::array<double, kKinds> weights = {o.chat.weight, o.agent.weight, o.document.weight,
                                              o.flood.weight, o.scan.weight};
  double sum = 0;
  for (double weight : weights) {
    if (!(weight >= 0)) return absl::InvalidArgumentError("a weight of traffic is negative");
    sum += weight;
  }
  if (!(sum > 0)) return absl::InvalidArgumentError("no kind of traffic has a weight");
  const bool lengths =
      SaneLength(o.chat.system) && SaneLength(o.chat.first) && SaneLength(o.chat.turn) &&
      SaneLength(o.chat.answer) && SaneLength(o.agent.prefix) && SaneLength(o.agent.task) &&
      SaneLength(o.agent.observation) && SaneLength(o.agent.answer) &&
      SaneLength(o.document.document) && SaneLength(o.document.question) &&
      SaneLength(o.document.answer) && SaneLength(o.flood.prompt) && SaneLength(o.scan.item);
  if (!lengths) return absl::InvalidArgumentError("a length of traffic is out of range");
  if (!SaneGap(o.chat.gap) || !SaneGap(o.agent.gap) || !SaneGap(o.document.gap)) {
    return absl::InvalidArgumentError("a gap of traffic is out of range");
  }
  if (!(o.requests_per_s > 0) || o.tokens_per_block == 0 || !(o.day_swing >= 0) ||
      o.day_swing > 1 || !(o.day_s > 0) || !(o.burst_every_s >= 0) || !(o.burst_factor > 0)) {
    return absl::InvalidArgumentError("a rate of traffic is out of range");
  }
  if (o.tenants == 0 || o.chat.system_prompts == 0 || o.agent.prefixes == 0 ||
      o.document.documents == 0 || o.scan.items == 0) {
    return absl::InvalidArgumentError("traffic needs at least one of each shared thing");
  }
  return absl::OkStatus();
}

constexpr std::array<std::string_view, 10> kNames = {
    "chat",  "chat-pareto", "chat-long", "agents", "documents",
    "flood", "scan",        "mixed",     "bursts", "tenants"};

}  // namespace

std::span<const std::string_view> TrafficNames() { return kNames; }

absl::StatusOr<TrafficOptions> NamedTraffic(std::string_view name) {
  TrafficOptions o;
  o.chat.weight = 1;
  if (name == "chat") return o;
  if (name == "chat-pareto") {
    o.chat.gap = {.law = GapShape::Law::kPareto, .median_s = 30, .alpha = 0.9};
    return o;
  }
  if (name == "chat-long") {  // long histories: the prompt grows by thousands of tokens a turn
    o.requests_per_s = 2;
    o.chat.mean_turns = 8;
    o.chat.turn.median_tokens = 1500;
    o.chat.answer.median_tokens = 1200;
    return o;
  }
  if (name == "agents") {
    o.chat.weight = 0;
    o.agent.weight = 1;
    return o;
  }
  if (name == "documents") {
    o.chat.weight = 0;
    o.document.weight = 1;
    return o;
  }
  if (name == "flood") {  // conversations under a stream of one-shot prompts
    o.flood.weight = 1;
    return o;
  }
  if (name == "scan") {
    o.scan.weight = 1;
    return o;
  }
  o.agent.weight = 0.5;
  o.document.weight = 0.5;
  o.flood.weight = 0.25;
  if (name == "mixed") return o;
  if (name == "bursts") {
    o.day_swing = 0.8;
    o.burst_every_s = 300;
    return o;
  }
  if (name == "tenants") {
    o.tenants = 20;
    o.chat.system_prompts = 5;
    o.document.documents = 100;
    return o;
  }
  std::string names;
  for (std::string_view known : kNames) names.append(names.empty() ? "" : ", ").append(known);
  return absl::NotFoundError(absl::StrCat("no traffic of that name; there are ", names));
}

absl::StatusOr<RequestBatch> GenerateTraffic(const TrafficOptions& options) {
  if (absl::Status status = Check(options); !status.ok()) return status;
  return Generator(options).Run();
}

absl::Status WriteMooncake(const RequestBatch& batch, std::ostream* out) {
  std::unordered_map<uint64_t, uint64_t> numbers;
  uint64_t next = 0;
  for (const TraceRequest& request : batch.requests) {
    std::string line =
        absl::StrCat("{\"timestamp\": ", request.time_ns / 1'000'000,
                     ", \"input_length\": ", request.prompt_tokens,
                     ", \"output_length\": ", request.output_tokens, ", \"hash_ids\": [");
    const char* separator = "";
    for (uint64_t block : batch.BlocksOf(request)) {
      const auto [it, is_new] = numbers.try_emplace(block, next);
      if (is_new) ++next;
      absl::StrAppend(&line, separator, it->second);
      separator = ", ";
    }
    if (request.tokens_per_block != 0 && request.prompt_tokens % request.tokens_per_block != 0) {
      absl::StrAppend(&line, separator, next++);
    }
    line += "]}\n";
    out->write(line.data(), static_cast<std::streamsize>(line.size()));
  }
  out->flush();
  if (!out->good()) return absl::UnavailableError("writing the traffic failed");
  return absl::OkStatus();
}

}  // namespace flexkv::trace
