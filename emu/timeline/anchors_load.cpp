#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "emu/input/json_value.h"
#include "emu/input/object_reader.h"
#include "emu/model/families/load.h"
#include "emu/timeline/anchors.h"

namespace shardproof {

extern const std::string_view kAnchorsJson;

namespace {

constexpr std::string_view kAnchorsSchema = "shardproof.anchors/1";
constexpr std::int64_t kMostOfAnything = std::int64_t{1} << 40;

class AnchorReader {
 public:
  AnchorReader(const JsonValue& value, const std::string& path, std::vector<Problem>& problems)
      : reader_(value, path, problems) {}

  Anchor read() {
    Anchor anchor;
    anchor.id = text("id");
    anchor.engine = reader_.string({"engine"}).value_or("");
    anchor.card = text("card");
    anchor.kind =
        one_of<AnchorKind>("kind", {"decode", "prefill", "first_token", "training", "fused_moe", "gemm", "collective"});
    anchor.calibrates = one_of<int>("use", {"held_out", "calibrate"}) == 1;
    anchor.seconds = number("seconds");
    anchor.source = text("source");
    if (anchor.kind == AnchorKind::collective) {
      read_collective(anchor);
    } else {
      read_computation(anchor);
    }
    reader_.finish();
    return anchor;
  }

 private:
  void read_collective(Anchor& anchor) {
    constexpr Operation kOperations[] = {Operation::all_reduce, Operation::all_gather, Operation::reduce_scatter,
                                         Operation::all_to_all};
    anchor.operation =
        kOperations[one_of<std::size_t>("operation", {"all_reduce", "all_gather", "reduce_scatter", "all_to_all"})];
    anchor.ranks = static_cast<int>(whole("ranks", 2, 1 << 20));
    anchor.bytes = number("bytes");
    anchor.direct = one_of<int>("algorithm", {"ring", "direct"}) == 1;
  }

  void read_computation(Anchor& anchor) {
    anchor.weights = one_of<WeightFormat>("weights", {"bf16", "fp8", "four_bit"});
    if (anchor.kind == AnchorKind::gemm) {
      for (auto [key, to] : {std::pair{"m", &anchor.m}, {"n", &anchor.n}, {"k", &anchor.k}}) *to = whole(key);
      return;
    }
    for (auto [key, to] : {std::pair{"tp", &anchor.tp},
                           {"dp", &anchor.dp},
                           {"ep", &anchor.ep},
                           {"etp", &anchor.etp},
                           {"pp", &anchor.pp},
                           {"cp", &anchor.cp}}) {
      *to = static_cast<int>(reader_.integer({key}, 1, 1 << 20).value_or(1));
    }
    if (anchor.kind == AnchorKind::fused_moe) {
      for (auto [key, to] : {std::pair{"tokens", &anchor.tokens},
                             {"hidden", &anchor.hidden},
                             {"width", &anchor.width},
                             {"experts", &anchor.experts},
                             {"top_k", &anchor.top_k}}) {
        *to = whole(key);
      }
      return;
    }
    anchor.model = text("model");
    anchor.batch = whole("batch", 1, 1 << 22);
    anchor.context = whole("context", 1, 1 << 24);
    anchor.sp = reader_.boolean({"sp"}).value_or(false);
    anchor.dispatch = optional_of<DispatchComm>("dispatch", {"all_to_all", "all_gather", "all_reduce"});
    anchor.overlap = optional_of<Overlap>("overlap", {"none", "shared_expert", "two_batch"});
    if (anchor.kind == AnchorKind::training) read_training(anchor);
    const std::int64_t attention = std::int64_t{anchor.tp} * anchor.cp * anchor.dp;
    if (attention % (std::int64_t{anchor.ep} * anchor.etp) != 0) {
      reader_.problem(reader_.field("ep"), fmt::format("ep {} * etp {} does not divide tp {} * cp {} * dp {}",
                                                       anchor.ep, anchor.etp, anchor.tp, anchor.cp, anchor.dp));
      anchor.ep = anchor.etp = 1;
    }
  }

  void read_training(Anchor& anchor) {
    TrainingStep& step = anchor.training;
    step.batch = anchor.batch;
    step.microbatch = reader_.integer({"microbatch"}, 1, 1 << 20).value_or(1);
    step.chunks = static_cast<int>(reader_.integer({"chunks"}, 1, 1 << 20).value_or(1));
    step.recompute = optional_of<Recompute>("recompute", {"none", "attention", "layer"});
    step.scores_in_memory = reader_.boolean({"scores_in_memory"}).value_or(false);
    step.hides_tp = reader_.boolean({"hides_tp"}).value_or(false);
    if (step.batch % (step.microbatch * anchor.dp) != 0) {
      reader_.problem(reader_.field("microbatch"), fmt::format("dp {} * microbatch {} does not divide batch {}",
                                                               anchor.dp, step.microbatch, step.batch));
      step.microbatch = 1;
    }
    if (anchor.pp == 1 && step.chunks > 1) {
      reader_.problem(reader_.field("chunks"), fmt::format("{} of one stage; 1 is needed", step.chunks));
      step.chunks = 1;
    }
  }

  std::string text(std::string_view key) {
    const auto value = reader_.string({key});
    if (!value || value->empty()) reader_.missing(key, "a string is needed");
    return value.value_or("");
  }

  std::int64_t whole(std::string_view key, std::int64_t least = 1, std::int64_t most = kMostOfAnything) {
    const auto value = reader_.integer({key}, least, most);
    if (!value) reader_.missing(key, "a whole number is needed");
    return value.value_or(least);
  }

  double number(std::string_view key) {
    const auto value = reader_.number({key}, 1e-12, 1e18);
    if (!value) reader_.missing(key, "a number above 0 is needed");
    return value.value_or(1);
  }

  /// The first name where it is left out.
  template <class Value>
  Value optional_of(std::string_view key, std::initializer_list<std::string_view> names) {
    return reader_.find({key}) ? one_of<Value>(key, names) : Value{};
  }

  template <class Value>
  Value one_of(std::string_view key, std::initializer_list<std::string_view> names) {
    const auto value = reader_.string({key});
    const auto* const found = std::ranges::find(names, value.value_or(""));
    if (found == names.end()) {
      reader_.problem(reader_.field(key),
                      fmt::format("{}; one of {} is needed", in_quotes(value.value_or("")), fmt::join(names, ", ")));
      return {};
    }
    return static_cast<Value>(found - names.begin());
  }

  ObjectReader reader_;
};

}  // namespace

LoadedAnchors parse_anchors(std::string_view text, std::string_view name) {
  LoadedAnchors loaded;
  JsonDocument document = parse_json(text, name, 12);
  std::vector<Problem>& problems = loaded.problems = std::move(document.problems);
  if (!document.value) return loaded;
  ObjectReader reader(*document.value, "", problems);
  if (reader.string({"schema"}) != kAnchorsSchema) {
    reader.problem("schema", fmt::format("\"{}\" is needed", kAnchorsSchema));
  }
  AnchorBook book;
  if (const auto models = reader.find({"models"})) {
    for (const JsonMember& member : models->value->members) {
      book.models[member.key] = read_model(member.value, "models." + member.key, problems).model;
    }
  }
  if (const auto cases = reader.find({"cases"})) {
    for (std::size_t i = 0; i < cases->value->items.size(); ++i) {
      book.cases.push_back(AnchorReader(cases->value->items[i], fmt::format("cases[{}]", i), problems).read());
    }
  }
  if (book.cases.empty()) reader.missing("cases", "an array of measurements is needed");
  reader.finish();
  if (problems.empty()) loaded.book = std::move(book);
  return loaded;
}

const AnchorBook& built_in_anchors() {
  static const AnchorBook book = [] {
    LoadedAnchors loaded = parse_anchors(kAnchorsJson, "anchors.json");
    if (!loaded.book) {
      throw std::logic_error("anchors.json: " + loaded.problems.front().field + ": " + loaded.problems.front().message);
    }
    return std::move(*loaded.book);
  }();
  return book;
}

}  // namespace shardproof
