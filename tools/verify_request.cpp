#include "tools/verify_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "emu/paper/figures.h"
#include "tools/run_memory.h"
#include "tools/usage_error.h"

namespace shardproof::tools {
namespace {

/// The format that is judged: when none is asked for, the one that the model's weights are kept in.
ops::Format chosen_format(const VerifyFlags& flags, const ModelConfig& model) {
  // A baseline is of bits unless a float format is asked for: only those hold on every machine.
  if (!flags.format && flags.uses_baseline()) return ops::Format::exact;
  return flags.format ? ops::parse_format(*flags.format).value() : format_of(model);
}

std::optional<ops::Format> parsed(const std::optional<std::string>& format) {
  return format ? ops::parse_format(*format) : std::nullopt;
}

/// Opens the checkpoint that is `named` so, and holds the plan's model to it; weights cannot be scaled.
std::unique_ptr<Checkpoint> open_checkpoint(const std::string& directory, std::string_view named,
                                            const Request& request, FileUses& files) {
  if (directory.empty()) return nullptr;
  if (request.scale.mode == ScaleOptions::Mode::divide) {
    throw UsageError(fmt::format("--scale {}: a checkpoint's weights cannot be scaled; leave --scale out",
                                 to_string(request.scale)));
  }
  if (request.scale.layers) {
    throw UsageError(fmt::format("--layers {}: a checkpoint is run whole; leave --layers out", *request.scale.layers));
  }
  auto checkpoint = [&] {
    try {
      return std::make_unique<Checkpoint>(directory);
    } catch (const CheckpointError& error) {
      throw UsageError(fmt::format("{}: {}", named, error.what()));
    }
  }();
  for (const std::string& file : checkpoint->files()) files.reads(fmt::format("part of {}", named), file);
  const std::vector<Problem> problems = compare_models(request.original.model, checkpoint->model());
  if (!problems.empty()) throw UsageError(problems_text(request.name, problems));
  return checkpoint;
}

}  // namespace

Request read_request(const VerifyFlags& flags, const ScaleOptions& scale, FileUses& files) {
  PlanAndWeights read = read_plan_and_weights(flags.plan, files);
  Request request{.name = plan_name(flags.plan), .original = std::move(read.plan), .scale = scale};
  if (flags.seed) request.original.workload.seed = *flags.seed;
  const bool of_plan = flags.checkpoint.empty();
  request.checkpoint = open_checkpoint(of_plan ? read.directory : flags.checkpoint,
                                       of_plan ? "the plan's model" : "--checkpoint", request, files);
  if (request.checkpoint) request.scale.mode = ScaleOptions::Mode::full;
  request.options = {.format = chosen_format(flags, request.original.model),
                     .threads = flags.threads,
                     .schedule = flags.schedule,
                     .weights = request.checkpoint.get(),
                     .wire = parsed(flags.wire),
                     .accumulate = parsed(flags.accumulate),
                     .amplification = flags.amplification,
                     .max_amplification = flags.max_amplification};
  if (request.options.format == ops::Format::exact && (flags.amplification || flags.max_amplification)) {
    throw UsageError(fmt::format("{}: nothing rounds in exact; name another --format{}",
                                 flags.max_amplification ? "--max-amplification" : "--amplification",
                                 flags.uses_baseline() && !flags.format ? " (a baseline is in exact otherwise)" : ""));
  }
  if (flags.all_reduce == kAllOrders) {
    request.orders.assign(kAlgorithms.begin(), kAlgorithms.end());
  } else {
    request.orders.push_back(parse_algorithm(flags.all_reduce).value());
  }
  return request;
}

RunnablePlan scaled_to_run(const Request& request, const RunnablePlan& original) {
  RunnablePlan run = original.scaled(request.scale);
  dry_run_of(request.name, [&] {
    require_memory_to_run(original.plan(), request.scale,
                          {.format = request.options.format,
                           .threads = request.options.threads,
                           .whole_weights = request.checkpoint != nullptr});
  });
  return run;
}

}  // namespace shardproof::tools
