#include "emu/plan/load.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "emu/input/object_reader.h"
#include "emu/plan/internal/load_context_parallel.h"
#include "emu/plan/internal/load_model.h"
#include "emu/plan/internal/load_workload.h"
#include "emu/plan/validate.h"

namespace shardproof {
namespace {

using Kind = JsonValue::Kind;
using Problems = std::vector<Problem>;

constexpr std::int64_t kMaxExperts = 1 << 20;
constexpr std::int64_t kMaxGpus = 1'000'000;

Hardware read_hardware(const JsonValue& value, Problems& problems) {
  Hardware hardware;
  ObjectReader reader(value, "hardware", problems);
  const std::size_t before = problems.size();
  const auto gpus = reader.integer({"gpus"}, 1, kMaxGpus);
  if (!gpus && problems.size() == before) reader.missing("gpus", "the number of GPUs is needed");
  hardware.gpus = gpus.value_or(0);
  hardware.gpus_per_node = reader.integer({"gpus_per_node"}, 1, kMaxGpus).value_or(hardware.gpus_per_node);
  const auto positive = [&](std::string_view name, double most) {
    return reader.number({name}, 1e-6, most).value_or(0);
  };
  hardware.memory_gb = positive("memory_gb", 1e6);
  hardware.tflops = positive("tflops", 1e9);
  hardware.mfu = positive("mfu", 1.0);
  hardware.memory_bandwidth_tbps = positive("memory_bandwidth_tbps", 1e6);
  hardware.bandwidth_utilization = positive("bandwidth_utilization", 1.0);
  hardware.link_gbps = positive("link_gbps", 1e9);
  hardware.link_latency_us = reader.number({"link_latency_us"}, 0.0, 1e9).value_or(0);
  if (const auto preset = reader.string({"preset"})) {
    hardware.preset = *preset;
    if (std::ranges::find(kHardwarePresets, *preset) == std::end(kHardwarePresets)) {
      reader.problem(reader.field("preset"),
                     fmt::format("{}; one of {} is needed", in_quotes(*preset), fmt::join(kHardwarePresets, ", ")));
    }
  }
  reader.finish();
  return hardware;
}

/// `sp` is true or false; documents also write the degree, which is that of tp, or 1 for none.
bool read_sequence_parallel(ObjectReader& reader, int tp) {
  const auto found = reader.find({"sp", "sequence_parallel"});
  if (!found) return false;
  const JsonValue& value = *found->value;
  if (value.is(Kind::boolean)) return value.boolean;
  if (value.is(Kind::integer) && value.integer == 1) return false;
  if (value.is(Kind::integer) && value.integer == tp) return true;
  reader.problem(found->field,
                 fmt::format("{}; sequence parallelism shards activations over the tensor-parallel group: "
                             "true or false is needed (or its degree, tp = {})",
                             describe(value), tp));
  return false;
}

/// How the experts are sliced where a plan does not say it: the degrees' names tell whose plan it is.
struct ExpertDefault {
  int etp = 1;
  std::string note;  ///< which system's default was taken; empty for our own names, where it is 1
};

/// Of a stage; an absurd number is for validate() to refuse.
int attention_ranks(const Parallel& parallel) {
  const std::int64_t of_replica = std::int64_t{parallel.tp} * parallel.cp;
  return static_cast<int>(std::min<std::int64_t>(of_replica * parallel.dp, kMaxWorld));
}
/// "tp 2 * dp 4".
std::string attention_degrees(const Parallel& parallel) {
  return fmt::format("tp {}{} * dp {}", parallel.tp, parallel.cp > 1 ? fmt::format(" * cp {}", parallel.cp) : "",
                     parallel.dp);
}

ExpertDefault expert_default(const Parallel& parallel, std::string_view tp_name, bool expert_parallel) {
  const int attention = attention_ranks(parallel);
  if (tp_name == "tensor_parallel_size" && !expert_parallel && attention > 1) {
    return {attention,
            fmt::format("etp = {} = {}, edp = 1: vLLM without expert parallelism slices each expert over all "
                        "attention ranks of a stage",
                        attention_degrees(parallel), attention)};
  }
  if (tp_name == "tensor_model_parallel_size" && parallel.tp > 1) {
    return {parallel.tp,
            fmt::format("etp = tp = {}: Megatron's default where expert_tensor_parallel_size is unset", parallel.tp)};
  }
  return {};
}

constexpr std::int64_t kMostLayers = 1'000'000;
constexpr std::int64_t kMaxVocabularyMultiple = 1 << 20;

/// A list with the layers of each stage, or Megatron's numbers for the first and the last, between which the others
/// share what is left.
std::vector<std::int64_t> read_stages(ObjectReader& reader, int pp, std::int64_t layers, Problems& problems) {
  std::vector<std::int64_t> stages;
  const auto first =
      reader.integer({"num_layers_in_first_pipeline_stage", "decoder_first_pipeline_num_layers"}, 1, kMostLayers);
  const auto last =
      reader.integer({"num_layers_in_last_pipeline_stage", "decoder_last_pipeline_num_layers"}, 1, kMostLayers);
  if (const auto found = reader.find({"layers_per_stage"})) {
    if (first || last)
      reader.problem(found->field, "given together with the layers of the first or last stage; keep one");
    if (!found->value->is(Kind::array) || found->value->items.empty()) {
      reader.problem(found->field,
                     fmt::format("{} where an array with the layers of each stage is needed", describe(*found->value)));
      return {};
    }
    for (std::size_t i = 0; i < found->value->items.size(); ++i) {
      const auto count =
          integer_of(found->value->items[i], fmt::format("{}[{}]", found->field, i), 1, kMostLayers, problems);
      if (!count) return {};
      stages.push_back(*count);
    }
    return stages;
  }
  if (!first && !last) return {};
  const std::int64_t others = pp - (first ? 1 : 0) - (last ? 1 : 0);
  const std::int64_t left = layers - first.value_or(0) - last.value_or(0);
  const bool shared = others > 0 ? left >= others && left % others == 0 : others == 0 && left == 0;
  if (!shared) {
    reader.problem(reader.field(first ? "num_layers_in_first_pipeline_stage" : "num_layers_in_last_pipeline_stage"),
                   fmt::format("{} layers - {} - {} = {} do not spread evenly over the other {} stages", layers,
                               first.value_or(0), last.value_or(0), left, others));
    return {};
  }
  if (first) stages.push_back(*first);
  stages.insert(stages.end(), static_cast<std::size_t>(others), others > 0 ? left / others : 0);
  if (last) stages.push_back(*last);
  return stages;
}

std::vector<std::vector<std::int64_t>> read_expert_map(const ObjectReader::Found& found, Problems& problems) {
  std::vector<std::vector<std::int64_t>> rows;
  for (std::size_t layer = 0; layer < found.value->items.size(); ++layer) {
    const JsonValue& row = found.value->items[layer];
    const std::string field = fmt::format("{}[{}]", found.field, layer);
    if (!row.is(Kind::array) || row.items.empty()) {
      problems.push_back(
          {field, fmt::format("{} where an array with the expert of each physical one is needed", describe(row))});
      return rows;
    }
    std::vector<std::int64_t>& read = rows.emplace_back();
    for (std::size_t i = 0; i < row.items.size(); ++i) {
      const auto expert = integer_of(row.items[i], fmt::format("{}[{}]", field, i), 0, kMaxExperts, problems);
      if (!expert) return rows;
      read.push_back(*expert);
    }
  }
  return rows;
}

/// {"redundant": 32, "map": "balanced" or [[...]], "replica": "nearest"}
ExpertPlacement read_expert_placement(const ObjectReader::Found& found, Problems& problems) {
  ExpertPlacement placement;
  ObjectReader reader(*found.value, found.field, problems);
  placement.redundant = reader.integer({"redundant", "num_redundant_experts"}, 0, kMaxExperts).value_or(0);
  if (const auto map = reader.find({"map"})) {
    using Map = ExpertPlacement::Map;
    const std::string& text = map->value->text;
    if (map->value->is(Kind::array) && !map->value->items.empty()) {
      placement.map = Map::given;
      placement.given = read_expert_map(*map, problems);
    } else if (map->value->is(Kind::string) && (text == "linear" || text == "round_robin" || text == "balanced")) {
      placement.map = text == "linear" ? Map::linear : text == "balanced" ? Map::balanced : Map::round_robin;
    } else {
      reader.problem(map->field,
                     fmt::format(R"({}; "linear", "round_robin", "balanced" or an array for each layer (or )"
                                 R"(one for all) with the expert of each physical one is needed)",
                                 describe(*map->value)));
    }
  }
  if (const auto replica = reader.string({"replica"})) {
    if (*replica != "round_robin" && *replica != "nearest") {
      reader.problem(reader.field("replica"),
                     fmt::format(R"({}; "round_robin" or "nearest" is needed)", in_quotes(*replica)));
    }
    if (*replica == "nearest") placement.replica = ExpertPlacement::Replica::nearest;
  }
  reader.finish();
  return placement;
}

DispatchComm read_dispatch(ObjectReader& reader) {
  const std::optional<std::string> name = reader.string({"dispatch"});
  if (!name) return DispatchComm::all_to_all;
  for (const DispatchComm dispatch : {DispatchComm::all_to_all, DispatchComm::all_gather, DispatchComm::all_reduce}) {
    if (*name == to_string(dispatch)) return dispatch;
  }
  reader.problem(reader.field("dispatch"),
                 fmt::format(R"({}; "all_to_all", "all_gather" or "all_reduce" is needed)", in_quotes(*name)));
  return DispatchComm::all_to_all;
}

Overlap read_overlap(ObjectReader& reader) {
  const std::optional<std::string> name = reader.string({"overlap"});
  if (!name) return Overlap::none;
  for (const Overlap overlap : {Overlap::none, Overlap::shared_expert, Overlap::two_batch}) {
    if (*name == to_string(overlap)) return overlap;
  }
  reader.problem(reader.field("overlap"),
                 fmt::format(R"({}; "none", "shared_expert" or "two_batch" is needed)", in_quotes(*name)));
  return Overlap::none;
}

/// `defaults` gets a line for each degree that another system's default has set.
Parallel read_parallel(const JsonValue& value, const std::optional<Hardware>& hardware, const LayerList& layers,
                       std::vector<std::string>& defaults, Problems& problems) {
  Parallel parallel;
  ObjectReader reader(value, "parallel", problems);
  const auto degree = [&](ObjectReader::Names names) -> std::optional<int> {
    const auto read = reader.integer(names, 1, kMaxWorld);
    if (!read) return std::nullopt;
    return static_cast<int>(*read);
  };
  parallel.tp = degree({"tp", "tensor_model_parallel_size", "tensor_parallel_size"}).value_or(1);
  parallel.cp = degree({"cp", "context_parallel_size", "prefill_context_parallel_size"}).value_or(1);
  parallel.pp = degree({"pp", "pipeline_model_parallel_size", "pipeline_parallel_size"}).value_or(1);
  const auto ep = degree({"ep", "expert_model_parallel_size", "expert_parallel_size"});
  const auto etp = degree({"etp", "expert_tensor_parallel_size"});
  const auto expert_parallel = reader.boolean({"enable_expert_parallel"});
  const std::int64_t without_dp = std::int64_t{parallel.tp} * parallel.cp * parallel.pp;
  if (const auto dp = degree({"dp", "data_parallel_size"})) {
    parallel.dp = *dp;
  } else if (hardware && hardware->gpus > 0) {
    parallel.dp = static_cast<int>(std::clamp<std::int64_t>(hardware->gpus / without_dp, 1, kMaxWorld));
  }
  parallel.ep = ep.value_or(expert_parallel.value_or(false) ? attention_ranks(parallel) : 1);
  if (expert_parallel.value_or(false) && !ep) {
    defaults.push_back(
        fmt::format("ep = {} = {}: vLLM's enable_expert_parallel spreads whole experts over all attention ranks of a "
                    "stage",
                    attention_degrees(parallel), parallel.ep));
  }
  std::string_view tp_name;
  for (const std::string_view name : {"tensor_model_parallel_size", "tensor_parallel_size"}) {
    if (value.find(name) != nullptr) tp_name = name;
  }
  // Without experts there is nothing that a system would slice.
  const bool experts = layers.size() == 0 || std::ranges::any_of(layers.kinds(), [](const LayerSpec& layer) {
                         return !layer.feed_forward.dense();
                       });
  const ExpertDefault by_system = experts ? expert_default(parallel, tp_name, parallel.ep > 1) : ExpertDefault{};
  parallel.etp = etp.value_or(by_system.etp);
  if (!etp && !by_system.note.empty()) defaults.push_back(by_system.note);
  const std::int64_t attention = std::int64_t{parallel.tp} * parallel.cp * parallel.dp;
  const std::int64_t replicas = attention / (std::int64_t{parallel.etp} * parallel.ep);
  parallel.edp = static_cast<int>(std::clamp<std::int64_t>(replicas, 1, INT32_MAX));
  if (const auto edp = degree({"edp", "expert_data_parallel_size"})) parallel.edp = *edp;
  read_cp_comm(reader, parallel, problems);
  parallel.dispatch = read_dispatch(reader);
  parallel.overlap = read_overlap(reader);
  parallel.dcp = degree({"dcp", "decode_context_parallel_size", "dcp_size"}).value_or(1);
  parallel.dcp_interleave = degree({"dcp_interleave", "cp_kv_cache_interleave_size"}).value_or(1);
  parallel.sp = read_sequence_parallel(reader, parallel.tp);
  parallel.make_vocab_size_divisible_by =
      reader.integer({"make_vocab_size_divisible_by"}, 1, kMaxVocabularyMultiple).value_or(0);
  if (const auto placement = reader.find({"experts"})) {
    parallel.experts = read_expert_placement(*placement, problems);
  }
  parallel.layers_per_stage = read_stages(reader, parallel.pp, layers.size(), problems);
  reader.finish();
  return parallel;
}

std::vector<std::string> read_notes(const JsonValue& value, Problems& problems) {
  std::vector<std::string> notes;
  if (value.is(Kind::string)) return {value.text};
  if (!value.is(Kind::array)) {
    problems.push_back({"notes", fmt::format("{} where a string or an array of strings is needed", describe(value))});
    return notes;
  }
  for (std::size_t i = 0; i < value.items.size(); ++i) {
    if (value.items[i].is(Kind::string)) {
      notes.push_back(value.items[i].text);
    } else {
      problems.push_back(
          {fmt::format("notes[{}]", i), fmt::format("{} where a string is needed", describe(value.items[i]))});
      return notes;
    }
  }
  return notes;
}

Claim read_claim(const JsonValue& value, const std::string& path, Problems& problems) {
  Claim claim;
  ObjectReader reader(value, path, problems);
  if (!value.is(Kind::object)) return claim;
  const auto require = [&](std::string_view name, std::string_view what) {
    const std::size_t before = problems.size();
    auto text = reader.string({name});
    if (!text && problems.size() == before) reader.missing(name, what);
    return text.value_or("");
  };
  claim.document = reader.string({"document"}).value_or("");
  claim.text = reader.string({"text"}).value_or("");
  claim.unit = reader.string({"unit"}).value_or("");
  claim.quantity = require("quantity", "the name of a quantity is needed");
  const std::size_t before = problems.size();
  claim.relation = require("relation", "one of \"=\", \"<=\", \">=\", \"~\" is needed");
  if (problems.size() == before && claim.relation != "=" && claim.relation != "<=" && claim.relation != ">=" &&
      claim.relation != "~") {
    reader.problem(reader.field("relation"),
                   fmt::format("{}; one of \"=\", \"<=\", \">=\", \"~\" is needed", in_quotes(claim.relation)));
  }
  const std::size_t before_stated = problems.size();
  const auto stated = reader.number({"stated"}, -1e30, 1e30);
  if (!stated && problems.size() == before_stated) reader.missing("stated", "the figure that is claimed is needed");
  claim.stated = stated.value_or(0);
  reader.finish();
  return claim;
}

Plan read_plan(const JsonValue& root, const std::filesystem::path& base_dir, LoadedPlan& files, Problems& problems) {
  Plan plan;
  ObjectReader reader(root, "", problems);
  if (!root.is(Kind::object)) return plan;
  plan.name = reader.string({"name"}).value_or("");
  LoadedModel loaded;
  if (const auto model = reader.find({"model"})) {
    loaded = read_model_member(*model->value, base_dir, files, problems);
    plan.model = loaded.model;
  } else {
    reader.missing("model", "a Hugging Face config.json object, or a path to one, is needed");
  }
  if (const auto hardware = reader.find({"hardware"})) plan.hardware = read_hardware(*hardware->value, problems);
  if (const auto parallel = reader.find({"parallel"})) {
    plan.parallel = read_parallel(*parallel->value, plan.hardware, plan.model.layers, plan.defaults, problems);
  } else {
    reader.missing("parallel", "the degrees tp, cp, dp, pp, ep, etp (1 where left out) are needed");
  }
  const auto workload = reader.find({"workload"});
  plan.workload = read_workload(workload ? workload->value : nullptr, plan.parallel.dp, problems);
  if (const auto notes = reader.find({"notes"})) plan.notes = read_notes(*notes->value, problems);
  plan.model_notes = std::move(loaded.notes);
  take_cache_format(plan);
  if (const auto claims = reader.find({"claims"})) {
    if (!claims->value->is(Kind::array)) {
      reader.problem("claims", fmt::format("{} where an array is needed", describe(*claims->value)));
    }
    for (std::size_t i = 0; i < claims->value->items.size(); ++i) {
      plan.claims.push_back(read_claim(claims->value->items[i], fmt::format("claims[{}]", i), problems));
      if (problems.size() > 100) break;
    }
  }
  reader.finish();
  return plan;
}

}  // namespace

LoadedPlan parse_plan(std::string_view text, std::string_view name, const std::filesystem::path& base_dir) {
  LoadedPlan loaded;
  if (text.size() > kMaxPlanBytes) {
    loaded.problems.push_back({std::string(name), fmt::format("{} bytes, larger than the limit of {} bytes; not read",
                                                              text.size(), kMaxPlanBytes)});
    return loaded;
  }
  JsonDocument document = parse_json(text, name, kMaxPlanDepth);
  loaded.problems = std::move(document.problems);
  if (!document.value) return loaded;
  Plan plan = read_plan(*document.value, base_dir, loaded, loaded.problems);
  if (plan.name.empty()) plan.name = std::filesystem::path(name).stem().string();
  if (loaded.problems.empty()) loaded.plan = std::move(plan);
  return loaded;
}

LoadedPlan load_plan(const std::filesystem::path& path) {
  FileText file = read_file(path, kMaxPlanBytes);
  if (!file.text) return {.plan = std::nullopt, .problems = std::move(file.problems)};
  return parse_plan(*file.text, path.string(), path.parent_path());
}

void take_cache_format(Plan& plan) {
  const std::string& stated = plan.model.quantisation.kv_cache_dtype;
  if (stated.empty() || !plan.workload.kv_cache_dtype.empty()) return;
  plan.workload.kv_cache_dtype = stated;
  plan.defaults.push_back(fmt::format("kv_cache_dtype: {}, as the model's kv_cache_scheme has it", in_quotes(stated)));
}

}  // namespace shardproof
