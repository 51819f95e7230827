#include "tools/search_request.h"

#include <fmt/format.h>

#include <filesystem>
#include <string_view>
#include <utility>
#include <vector>

#include "collectives/executor.h"
#include "emu/input/json_value.h"
#include "emu/model/families/load.h"
#include "emu/plan/load.h"
#include "emu/plan/validate.h"
#include "tools/arguments.h"
#include "tools/plan_argument.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

constexpr std::int64_t kMostBatch = 1'000'000;
constexpr std::int64_t kDefaultPrompt = 1024;
constexpr std::int64_t kDefaultOutput = 128;
constexpr std::int64_t kDefaultBatchOfGpu = 8;

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

std::vector<std::int64_t> parse_batches(const std::string& text) {
  std::vector<std::int64_t> batches;
  for (const std::string_view part : split(text, ',')) {
    batches.push_back(parse_whole("--batch", part, 1, kMostBatch));
    if (batches.size() > 1 && batches.back() <= batches[batches.size() - 2]) {
      throw UsageError(
          fmt::format("--batch: {} after {}; sizes that grow are needed", batches.back(), batches[batches.size() - 2]));
    }
  }
  return batches;
}

struct Model {
  Plan plan;
  bool is_plan = false;
};

/// A plan, a published config.json, or the folder of a checkpoint, which has one.
Model read_model_or_plan(const std::string& path, FileUses& files) {
  std::error_code error;
  const bool folder = std::filesystem::is_directory(path, error);
  const std::string file = folder ? (std::filesystem::path(path) / "config.json").string() : path;
  files.reads("the model", file);
  const FileText text = read_file(file, kMaxPlanBytes);
  if (!text.text) throw UsageError(problems_text(file, text.problems));
  JsonDocument document = parse_json(*text.text, file, kMaxPlanDepth);
  if (document.value && (document.value->find("parallel") != nullptr || document.value->find("model") != nullptr)) {
    return {read_plan(file, files), true};
  }
  Model model;
  if (document.value) {
    LoadedModel loaded = read_model(*document.value, "", document.problems);
    model.plan.model = std::move(loaded.model);
    model.plan.model_notes = std::move(loaded.notes);
    take_cache_format(model.plan);
  }
  if (!document.problems.empty()) throw UsageError(problems_text(file, document.problems));
  model.plan.name = model.plan.model.model_type;
  return model;
}

/// One request like another, so many tokens in and out.
void set_workload(Workload& workload, std::int64_t batch, std::int64_t prompt, std::int64_t output) {
  workload.token_ids.clear();
  workload.lengths.assign(static_cast<std::size_t>(batch), prompt);
  if (output == 0) {
    workload.serving.reset();
    return;
  }
  Serving serving = workload.serving.value_or(Serving{});
  serving.steps.clear();
  serving.requests.assign(static_cast<std::size_t>(batch), {.prompt = prompt, .output = output});
  workload.serving = std::move(serving);
  set_lengths(workload);
}

/// The flags' workload in place of the plan's, where they say one. Returns whether they do.
bool apply_workload(const SearchFlags& flags, const Model& model, SearchSpace& space) {
  Workload& workload = space.base.workload;
  if (!flags.batch.empty()) space.batches = parse_batches(flags.batch);
  if (model.is_plan && !flags.prompt && !flags.output && flags.batch.empty()) return false;
  const bool serves = workload.serving.has_value();
  const std::int64_t batch = !space.batches.empty() ? space.batches.front()
                             : model.is_plan        ? workload.batch()
                                                    : kDefaultBatchOfGpu * space.gpus;
  const std::int64_t prompt = flags.prompt     ? *flags.prompt
                              : !model.is_plan ? kDefaultPrompt
                              : serves         ? workload.serving->requests.front().prompt
                                               : workload.lengths.front();
  const std::int64_t output = flags.output     ? *flags.output
                              : !model.is_plan ? kDefaultOutput
                              : serves         ? workload.serving->requests.front().output
                                               : 0;
  set_workload(workload, batch, prompt, output);
  return true;
}

/// What the card has, unless the plan or a flag says it.
double memory_gb(const SearchFlags& flags, const Plan& plan, const HardwareBook& book, const HardwareChoice& chosen) {
  if (flags.memory_gb) return *flags.memory_gb;
  if (flags.hardware.preset.empty() && plan.hardware && plan.hardware->memory_gb > 0) return plan.hardware->memory_gb;
  const std::string& name = !flags.hardware.preset.empty()                    ? flags.hardware.preset
                            : plan.hardware && !plan.hardware->preset.empty() ? plan.hardware->preset
                                                                              : chosen.filled_from;
  return book.find(name)->memory_gb;
}

Objective objective_of(const SearchFlags& flags) {
  if (!flags.most.empty() && !flags.least.empty()) {
    throw UsageError("--max and --min: one objective is needed; give the other as a limit (--slo)");
  }
  if (flags.least.empty()) return Objective::throughput;
  return flags.least == "tpot" ? Objective::output_token : Objective::first_token;
}

}  // namespace

ServiceLimits parse_slo(const std::string& text) {
  ServiceLimits limits;
  for (const std::string_view part : split(text, ',')) {
    const std::size_t equals = part.find('=');
    const std::string_view name = part.substr(0, equals);
    if (equals == std::string_view::npos || (name != "ttft" && name != "tpot")) {
      throw UsageError(fmt::format("--slo: '{}' is none of ttft=10s, tpot=50ms", part));
    }
    const std::string_view value = part.substr(equals + 1);
    const std::size_t digits = value.find_last_of("0123456789.") + 1;
    const std::string_view unit = value.substr(digits);
    const double scale = unit == "s" ? 1 : unit == "ms" ? 1e-3 : unit == "us" ? 1e-6 : 0;
    if (scale == 0) {
      throw UsageError(fmt::format("--slo: {}: '{}' has {}; s, ms or us is needed, as in {}=50ms", name, value,
                                   unit.empty() ? "no unit" : fmt::format("the unit '{}'", unit), name));
    }
    double& limit = name == "ttft" ? limits.first_token : limits.output_token;
    if (limit != 0) throw UsageError(fmt::format("--slo: {} is there twice", name));
    limit = scale * parse_positive("--slo: " + std::string(name), value.substr(0, digits));
  }
  return limits;
}

SearchRequest read_request(const SearchFlags& flags, FileUses& files) {
  if (flags.model.empty()) throw UsageError("MODEL is needed: a config.json, a checkpoint's folder or a plan");
  SearchRequest request;
  request.options.objective = objective_of(flags);
  if (!flags.slo.empty()) request.options.limits = parse_slo(flags.slo);
  request.options.exhaustive = flags.exhaustive;
  const HardwareBook book = flags.hardware.book(files);
  const Model model = read_model_or_plan(flags.model, files);
  const Plan& plan = model.plan;
  if (!flags.gpus && !model.is_plan) throw UsageError("--gpus: how many there are is needed, unless MODEL is a plan");
  SearchSpace& space = request.space;
  space.base = plan;
  space.base.claims.clear();
  space.base.defaults.clear();
  space.base.parallel.layers_per_stage.clear();
  space.gpus = static_cast<int>(flags.gpus.value_or(plan.world()));
  const bool own_hardware = plan.hardware && flags.hardware.preset.empty();
  if (!plan.hardware && flags.hardware.preset.empty()) {
    throw UsageError(fmt::format("--preset: {} states no hardware; one of {} is needed", flags.model, book.names()));
  }
  request.options.hardware = flags.hardware.choice(book, plan);
  Hardware hardware = own_hardware ? *plan.hardware : Hardware{};
  // A plan cannot name a card of --calibrate.
  if (!own_hardware && built_in_hardware().find(flags.hardware.preset) != nullptr) {
    hardware.preset = flags.hardware.preset;
  }
  hardware.gpus = space.gpus;
  if (plan.hardware) hardware.gpus_per_node = plan.hardware->gpus_per_node;
  if (flags.gpus_per_node) hardware.gpus_per_node = *flags.gpus_per_node;
  hardware.memory_gb = memory_gb(flags, plan, book, request.options.hardware);
  request.options.memory_bytes = hardware.memory_gb * 1e9;
  space.base.hardware = hardware;
  const bool other_workload = apply_workload(flags, model, space);
  request.options.projection = flags.hardware.options(plan);
  request.options.threads = flags.threads > 0 ? flags.threads : available_threads();
  if (model.is_plan && plan.world() == space.gpus && !other_workload) {
    request.given = plan;
    request.given->hardware = hardware;
    if (const auto problems = validate(*request.given); !problems.empty()) {
      throw UsageError(problems_text(flags.model, problems));
    }
  }
  return request;
}

}  // namespace shardproof::tools
