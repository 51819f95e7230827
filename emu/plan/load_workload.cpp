#include "emu/plan/internal/load_workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "emu/input/object_reader.h"

namespace shardproof {
namespace {

using Kind = JsonValue::Kind;
using Problems = std::vector<Problem>;

constexpr std::int64_t kMaxBatch = 1'000'000;
constexpr std::int64_t kMaxSequence = 1 << 24;
constexpr std::int64_t kMaxSteps = 1 << 24;
constexpr double kMaxSeconds = 1e9;

constexpr double kMaxZipf = 16;

/// "even", {"zipf": 1.2} or {"counts": [[...], ...]}; what is wrong with the counts is for validate() to say.
Routing read_routing(const JsonValue& value, const std::string& field, Problems& problems) {
  Routing routing;
  if (value.is(Kind::string) && value.text == "even") return routing;
  if (!value.is(Kind::object) || value.members.size() != 1) {
    problems.push_back(
        {field, fmt::format(R"({}; "even", {{"zipf": s}} or {{"counts": [[...], ...]}} is needed)", describe(value))});
    return routing;
  }
  ObjectReader reader(value, field, problems);
  routing.zipf = reader.number({"zipf"}, 0, kMaxZipf).value_or(0);
  if (const auto counts = reader.find({"counts"})) {
    const auto rows = [&](const JsonValue& array, const std::string& at) {
      const bool good = array.is(Kind::array) && !array.items.empty();
      if (!good) problems.push_back({at, fmt::format("{} where an array of counts is needed", describe(array))});
      return good;
    };
    if (!rows(*counts->value, counts->field)) return routing;
    for (std::size_t layer = 0; layer < counts->value->items.size(); ++layer) {
      const JsonValue& row = counts->value->items[layer];
      const std::string at = fmt::format("{}[{}]", counts->field, layer);
      if (!rows(row, at)) return routing;
      std::vector<std::int64_t>& read = routing.counts.emplace_back();
      for (std::size_t expert = 0; expert < row.items.size(); ++expert) {
        const auto count =
            integer_of(row.items[expert], fmt::format("{}[{}]", at, expert), 0, kMaxRoutedTokens, problems);
        if (!count) return routing;
        read.push_back(*count);
      }
    }
  }
  reader.finish();
  return routing;
}

/// Lists of token ids, one a sequence; the vocabulary is validate()'s to hold them to. Stops at the first problem.
std::vector<std::vector<std::int32_t>> read_token_ids(const JsonValue& value, const std::string& field,
                                                      Problems& problems) {
  const auto list = [&](const JsonValue& json, const std::string& at, const char* of) {
    const bool right = json.is(Kind::array) && !json.items.empty();
    if (!right) problems.push_back({at, fmt::format("{} where {} is needed", describe(json), of)});
    return right;
  };
  std::vector<std::vector<std::int32_t>> ids;
  if (!list(value, field, "an array of sequences, each an array of token ids,")) return ids;
  for (std::size_t i = 0; i < value.items.size(); ++i) {
    const JsonValue& sequence = value.items[i];
    const std::string at = fmt::format("{}[{}]", field, i);
    if (!list(sequence, at, "an array of token ids")) return ids;
    std::vector<std::int32_t>& read = ids.emplace_back();
    for (std::size_t j = 0; j < sequence.items.size(); ++j) {
      const auto id = integer_of(sequence.items[j], fmt::format("{}[{}]", at, j), 0, INT32_MAX, problems);
      if (!id) return ids;
      read.push_back(static_cast<std::int32_t>(*id));
    }
  }
  return ids;
}

/// The lengths that `tokens`, `lengths`, or `batch` and `prompt` (also `sequence`), state.
std::vector<std::int64_t> read_lengths(ObjectReader& reader, int dp, const Workload& workload, Problems& problems) {
  std::vector<std::int64_t> read;
  const auto batch = reader.integer({"batch"}, 1, kMaxBatch);
  const auto sequence = reader.integer({"sequence", "prompt"}, 1, kMaxSequence);
  const auto lengths = reader.find({"lengths"});
  if (!workload.token_ids.empty()) {
    for (const std::vector<std::int32_t>& ids : workload.token_ids) read.push_back(std::ssize(ids));
    if (sequence || lengths) {
      reader.problem(reader.field(sequence ? "sequence" : "lengths"),
                     "given together with \"tokens\", which says how long every sequence is; leave it out");
    }
    if (batch && *batch != std::ssize(read)) {
      reader.problem(reader.field("batch"), fmt::format("{} but \"tokens\" has {} sequences", *batch, read.size()));
    }
  } else if (lengths && lengths->value->is(Kind::array)) {
    const std::vector<JsonValue>& items = lengths->value->items;
    if (items.empty()) reader.problem(lengths->field, "is empty; a length for each sequence of the batch is needed");
    int wrong = 0;
    for (std::size_t i = 0; i < items.size(); ++i) {
      const auto length = integer_of(items[i], fmt::format("{}[{}]", lengths->field, i), 1, kMaxSequence, problems);
      if (length) read.push_back(*length);
      if (!length && ++wrong == 10) break;
    }
    if (sequence) {
      reader.problem(reader.field("sequence"),
                     "given together with \"lengths\", which says the same for every sequence; "
                     "keep one");
    }
    if (batch && *batch != static_cast<std::int64_t>(items.size())) {
      reader.problem(reader.field("batch"), fmt::format("{} but \"lengths\" has {} entries", *batch, items.size()));
    }
  } else if (lengths) {
    reader.problem(lengths->field, fmt::format("{} where an array of lengths is needed", describe(*lengths->value)));
  } else {
    read.assign(static_cast<std::size_t>(batch.value_or(dp)), sequence.value_or(128));
  }
  return read;
}

/// An array that is not empty, or a problem.
const std::vector<JsonValue>* array_of(const JsonValue& value, const std::string& field, std::string_view what,
                                       Problems& problems) {
  if (value.is(Kind::array) && !value.items.empty()) return &value.items;
  const std::string found = value.is(Kind::array) ? "is empty" : describe(value);
  problems.push_back({field, fmt::format("{}; an array of {} is needed", found, what)});
  return nullptr;
}

constexpr std::size_t kMostProblems = 10;

std::vector<Request> read_requests(const ObjectReader::Found& found, Problems& problems) {
  std::vector<Request> requests;
  const auto* items =
      array_of(*found.value, found.field, R"({"prompt": tokens, "output": tokens, "arrival": step})", problems);
  const std::size_t before = problems.size();
  for (std::size_t i = 0; items != nullptr && i < items->size() && problems.size() < before + kMostProblems; ++i) {
    const std::string field = fmt::format("{}[{}]", found.field, i);
    ObjectReader reader((*items)[i], field, problems);
    const std::size_t sound = problems.size();
    const auto prompt = reader.integer({"prompt"}, 1, kMaxSequence);
    if (!prompt && problems.size() == sound)
      reader.missing("prompt", "the tokens of the prompt, at least 1, are needed");
    const auto arrival = reader.integer({"arrival"}, 0, kMaxSteps);
    const auto arrival_s = reader.number({"arrival_s"}, 0, kMaxSeconds);
    if (arrival && arrival_s) {
      reader.problem(reader.field("arrival_s"), "given together with \"arrival\", which is in steps; keep one");
    }
    requests.push_back({.prompt = prompt.value_or(1),
                        .output = reader.integer({"output"}, 0, kMaxSequence).value_or(0),
                        .arrival = arrival.value_or(0),
                        .arrival_s = arrival_s.value_or(0),
                        .prefix = reader.integer({"prefix"}, 0, kMaxSequence).value_or(0),
                        .prefix_group = reader.integer({"prefix_group"}, 0, kMaxBatch).value_or(0)});
    reader.finish();
  }
  return requests;
}

std::vector<std::vector<StatedChunk>> read_steps(const ObjectReader::Found& found, Problems& problems) {
  std::vector<std::vector<StatedChunk>> steps;
  const auto* items = array_of(*found.value, found.field, "steps", problems);
  const std::size_t before = problems.size();
  for (std::size_t i = 0; items != nullptr && i < items->size() && problems.size() < before + kMostProblems; ++i) {
    const std::string field = fmt::format("{}[{}]", found.field, i);
    const auto* chunks = array_of((*items)[i], field, R"({"request": index, "tokens": count})", problems);
    std::vector<StatedChunk>& step = steps.emplace_back();
    for (std::size_t j = 0; chunks != nullptr && j < chunks->size(); ++j) {
      ObjectReader reader((*chunks)[j], fmt::format("{}[{}]", field, j), problems);
      const std::size_t sound = problems.size();
      const auto request = reader.integer({"request"}, 0, kMaxBatch);
      const auto tokens = reader.integer({"tokens"}, 1, kMaxSequence);
      if (!request && problems.size() == sound) reader.missing("request", "the index of a request is needed");
      if (!tokens && problems.size() == sound) reader.missing("tokens", "how many of its tokens are run is needed");
      reader.finish();
      step.push_back({request.value_or(0), tokens.value_or(1)});
    }
  }
  return steps;
}

/// What only requests have; none where nothing says that there are some.
std::optional<Serving> read_serving(ObjectReader& reader, int dp, Workload& workload, Problems& problems) {
  const auto requests = reader.find({"requests"});
  const auto output = reader.integer({"output"}, 0, kMaxSequence);
  const auto tokens = reader.integer({"max_tokens_per_step", "max_num_batched_tokens"}, 1, kMaxSequence);
  const auto sequences = reader.integer({"max_sequences", "max_num_seqs"}, 1, kMaxBatch);
  const auto block_size = reader.integer({"kv_block_size", "block_size"}, 1, kMaxSequence);
  const auto blocks = reader.integer({"kv_blocks", "num_gpu_blocks_override"}, 1, INT32_MAX);
  const auto steps = reader.find({"steps"});
  const auto prefix = reader.integer({"prefix"}, 0, kMaxSequence);
  const auto sharing = reader.boolean({"prefix_sharing", "enable_prefix_caching"});
  if (requests) {
    for (const std::string_view beside : {"batch", "sequence", "prompt", "lengths", "output", "prefix"}) {
      if (const auto given = reader.find({beside})) {
        reader.problem(given->field, "given together with \"requests\", each of which has its own; keep one");
      }
    }
  } else {
    workload.lengths = read_lengths(reader, dp, workload, problems);
    if (!workload.token_ids.empty() && output.value_or(0) > 1) {
      reader.problem(reader.field("output"),
                     "given together with \"tokens\", of which it does not say where a prompt "
                     "ends; \"requests\" do");
    }
  }
  if (!requests && !output && !tokens && !sequences && !block_size && !blocks && !steps && !prefix && !sharing) {
    return std::nullopt;
  }
  Serving serving{.requests = {},
                  .max_tokens_per_step = tokens.value_or(0),
                  .max_sequences = sequences.value_or(0),
                  .kv_block_size = block_size.value_or(Serving{}.kv_block_size),
                  .kv_blocks = blocks.value_or(0),
                  .steps = {}};
  if (requests) {
    serving.requests = read_requests(*requests, problems);
  } else {
    for (const std::int64_t length : workload.lengths) {
      serving.requests.push_back({.prompt = length, .output = output.value_or(0), .prefix = prefix.value_or(0)});
    }
  }
  const bool alike = std::ranges::any_of(serving.requests, [](const Request& request) { return request.prefix > 0; });
  serving.prefix_sharing = sharing.value_or(alike);
  if (alike && !workload.token_ids.empty()) {
    reader.problem(reader.field("tokens"),
                   "given together with a prefix of requests, which is made from the seed; "
                   "\"prefix_sharing\" shares what the given tokens have in common");
  }
  if (steps) serving.steps = read_steps(*steps, problems);
  return serving;
}

/// What the cache holds its elements in; empty: the format of the run.
std::string read_cache_dtype(ObjectReader& reader) {
  const std::string dtype = reader.string({"kv_cache_dtype"}).value_or("");
  if (dtype.empty() || dtype == "auto") return {};
  if (bytes_of_cache_dtype(dtype) == 0) {
    reader.problem(
        reader.field("kv_cache_dtype"),
        fmt::format("{}; \"auto\", \"fp8\", \"fp8_e4m3\", \"fp8_e5m2\", \"int8\", \"bfloat16\", \"float16\" or "
                    "\"float32\" is needed",
                    in_quotes(dtype)));
  }
  return dtype;
}

std::optional<LatentForm> read_latent_decode(ObjectReader& reader) {
  const auto form = reader.string({"latent_decode"});
  if (!form) return std::nullopt;
  for (const LatentForm known : {LatentForm::absorbed, LatentForm::plain}) {
    if (*form == to_string(known)) return known;
  }
  reader.problem(
      reader.field("latent_decode"),
      fmt::format("{}; \"absorbed\" or \"plain\", the form of latent attention that tokens after a prompt are "
                  "computed in, is needed",
                  in_quotes(*form)));
  return std::nullopt;
}

}  // namespace

Workload read_workload(const JsonValue* value, int dp, Problems& problems) {
  Workload workload;
  if (value == nullptr) {
    workload.lengths.assign(static_cast<std::size_t>(dp), 128);
    return workload;
  }
  ObjectReader reader(*value, "workload", problems);
  if (const auto tokens = reader.find({"tokens"})) {
    workload.token_ids = read_token_ids(*tokens->value, tokens->field, problems);
  }
  workload.serving = read_serving(reader, dp, workload, problems);
  if (workload.serving) set_lengths(workload);
  const std::string idle = reader.string({"idle"}).value_or("zero");
  if (idle == to_string(Idle::pad)) workload.idle = Idle::pad;
  if (idle != to_string(workload.idle)) {
    reader.problem(reader.field("idle"), fmt::format("{}; \"zero\" or \"pad\", where a replica without work joins the "
                                                     "experts' collectives with no token or a padded one, is needed",
                                                     in_quotes(idle)));
  }
  workload.kv_cache_dtype = read_cache_dtype(reader);
  workload.latent_decode = read_latent_decode(reader);
  workload.microbatches = reader.integer({"microbatches", "num_microbatches"}, 1, kMaxBatch).value_or(1);
  workload.seed = static_cast<std::uint64_t>(reader.integer({"seed"}, 0, INT64_MAX).value_or(1));
  if (const auto routing = reader.find({"routing"})) {
    workload.routing = read_routing(*routing->value, routing->field, problems);
  }
  reader.finish();
  return workload;
}

}  // namespace shardproof
