// Quantities of the mesh and of what is placed on it: GPUs, stages, heads, experts, modules.
#include <fmt/format.h>

#include <cmath>

#include "emu/paper/internal/quantity_tables.h"

namespace shardproof::quantity_table {
namespace {

std::string world_product(const Parallel& p) {
  return fmt::format("tp {} * cp {} * dp {} * pp {} = {}", p.tp, p.cp, p.dp, p.pp, p.world());
}

/// Which attention axes the expert-parallel axis lies on, in words.
std::string folded_onto(const Parallel& p) {
  if (p.etp == p.tp) return p.cp == 1 ? "DP" : "CP and DP";
  if (p.ep * p.etp <= p.tp) return "TP";
  return p.cp == 1 ? "TP and DP" : "TP, CP and DP";
}

QuantityValue world(const QuantityContext& context) {
  const Parallel& p = context.plan.parallel;
  QuantityValue value = number(p.world(), world_product(p));
  const long long plain = 1LL * p.tp * p.cp * p.dp * p.pp * p.ep;
  if (plain != p.world()) {
    value.condition = fmt::format(
        "EP is folded onto {} (etp {} * ep {} * edp {} * pp {} = {}); as a plain product "
        "tp {} * cp {} * dp {} * pp {} * ep {} = {}",
        folded_onto(p), p.etp, p.ep, p.edp, p.pp, p.world(), p.tp, p.cp, p.dp, p.pp, p.ep, plain);
  }
  return value;
}

double modules_of(const Plan& plan, const RankFigures& rank) {
  return static_cast<double>(rank.layers.count) / plan.parallel.tp +
         static_cast<double>(rank.expert_layers * rank.experts.count) / plan.parallel.etp;
}

double expert_equivalents(const Plan& plan, const RankFigures& rank) {
  return static_cast<double>(rank.expert_layers * rank.experts.count) / plan.parallel.etp;
}

void add_degrees(std::vector<QuantityDefinition>& table) {
  const auto degree = [&](const char* name, int Parallel::*member, const char* meaning) {
    table.push_back(entry(name, "", Dimension::count, meaning, [name, member](const QuantityContext& context) {
      const int value = context.plan.parallel.*member;
      return number(value, fmt::format("{} {}", name, value));
    }));
  };
  degree("tp", &Parallel::tp, "tensor parallel degree");
  degree("cp", &Parallel::cp, "context parallel degree");
  degree("dp", &Parallel::dp, "data parallel degree");
  degree("pp", &Parallel::pp, "pipeline stages");
  degree("ep", &Parallel::ep, "expert parallel degree");
  degree("etp", &Parallel::etp, "tensor parallel degree inside an expert");
  degree("edp", &Parallel::edp, "replicas of each expert = tp * cp * dp / (ep * etp)");
}

void add_model(std::vector<QuantityDefinition>& table) {
  const auto size = [&](const char* name, std::int64_t (*value_of)(const ModelConfig&), const char* meaning) {
    table.push_back(entry(name, "", Dimension::count, meaning, [name, value_of](const QuantityContext& context) {
      const std::int64_t value = value_of(context.plan.model);
      return number(static_cast<double>(value), fmt::format("{} {}", name, value));
    }));
  };
  using Model = const ModelConfig&;
  size(
      "layers", [](Model m) { return m.layers.size(); }, "layers of the model");
  size(
      "experts", [](Model m) { return m.experts().num_experts; }, "experts of a layer");
  size(
      "top_k", [](Model m) { return m.experts().top_k; }, "experts that serve a token");
  size(
      "heads", [](Model m) { return m.layers[0].attention.heads; }, "query heads of a layer");
  size(
      "kv_heads", [](Model m) { return m.layers[0].attention.kv_heads; }, "key-value heads of a layer");
  table.push_back(entry("expert_instances", "experts", Dimension::count, "layers with experts * experts",
                        [](const QuantityContext& context) {
                          const ModelConfig& model = context.plan.model;
                          return number(static_cast<double>(model.moe_layers() * model.experts().num_experts),
                                        fmt::format("{} layers * {} experts = {}", model.moe_layers(),
                                                    model.experts().num_experts,
                                                    model.moe_layers() * model.experts().num_experts));
                        }));
}

void add_gpus(std::vector<QuantityDefinition>& table) {
  table.push_back(entry("world", "GPUs", Dimension::count, "tp * cp * dp * pp", world));
  table.push_back(entry("gpus", "GPUs", Dimension::count, "hardware.gpus", [](const QuantityContext& context) {
    if (!context.plan.hardware) return unknown("the plan states no hardware");
    return number(static_cast<double>(context.plan.hardware->gpus),
                  fmt::format("hardware.gpus {}", context.plan.hardware->gpus));
  }));
  table.push_back(entry("gpus_used", "GPUs", Dimension::count, "tp * cp * dp * pp", [](const QuantityContext& context) {
    const Parallel& p = context.plan.parallel;
    const auto of = context.plan.hardware ? fmt::format(" of {}", context.plan.hardware->gpus) : std::string();
    return number(p.world(), world_product(p) + of);
  }));
  table.push_back(entry("gpus_idle", "GPUs", Dimension::count, "gpus - world", [](const QuantityContext& context) {
    if (!context.plan.hardware) return unknown("the plan states no hardware");
    const auto idle = context.plan.hardware->gpus - context.plan.world();
    return number(static_cast<double>(idle),
                  fmt::format("{} GPUs - world {} = {}", context.plan.hardware->gpus, context.plan.world(), idle));
  }));
  table.push_back(entry("gpus_per_stage", "GPUs", Dimension::count, "tp * cp * dp", [](const QuantityContext& context) {
    const Parallel& p = context.plan.parallel;
    const int stage = p.tp * p.cp * p.dp;
    QuantityValue value = number(
        stage, fmt::format("tp {} * cp {} * dp {} = {}: stage 0 is GPUs 0-{}", p.tp, p.cp, p.dp, stage, stage - 1));
    value.remedy = [p, stage](double stated) {
      if (stated * p.dp != stage) return std::string();
      return fmt::format(
          "{} GPUs a stage are one of {} data-parallel replicas; {} of {} GPUs are mapped, the other "
          "replicas have none",
          stated, p.dp, stated * p.pp, stage * p.pp);
    };
    return value;
  }));
  table.push_back(entry("dp_that_fits", "replicas", Dimension::count, "gpus / (tp * cp * pp), rounded down",
                        [](const QuantityContext& context) {
                          if (!context.plan.hardware) return unknown("the plan states no hardware");
                          const Parallel& p = context.plan.parallel;
                          const std::int64_t gpus = context.plan.hardware->gpus;
                          const std::int64_t rest = std::int64_t{p.tp} * p.cp * p.pp;
                          const std::int64_t replicas = gpus / rest;
                          return number(
                              static_cast<double>(replicas),
                              fmt::format("{} GPUs / (tp {} * cp {} * pp {}) = {}", gpus, p.tp, p.cp, p.pp, replicas));
                        }));
}

void add_placement(std::vector<QuantityDefinition>& table) {
  table.push_back(entry("layers_per_stage", "layers", Dimension::count,
                        "layers / pp, the first stages one more where it "
                        "does not divide",
                        [](const QuantityContext& context) {
                          const Plan& plan = context.plan;
                          return over_ranks(
                              context, [](const RankFigures& r) { return static_cast<double>(r.layers.count); },
                              [&](const RankFigures& r) {
                                return fmt::format("{} layers / pp {} = {}", plan.model.layers.size(), plan.parallel.pp,
                                                   r.layers.count);
                              });
                        }));
  table.push_back(entry("heads_per_rank", "heads", Dimension::count, "heads / tp", [](const QuantityContext& context) {
    const Plan& plan = context.plan;
    return over_ranks(
        context, [](const RankFigures& r) { return static_cast<double>(r.heads.count); },
        [&](const RankFigures& r) {
          return fmt::format("{} heads / tp {} = {}", plan.model.layers[0].attention.heads, plan.parallel.tp,
                             r.heads.count);
        });
  }));
  table.push_back(entry(
      "kv_heads_per_rank", "heads", Dimension::count, "max(1, kv_heads / tp)", [](const QuantityContext& context) {
        const Plan& plan = context.plan;
        return over_ranks(
            context, [](const RankFigures& r) { return static_cast<double>(r.kv_heads.count); },
            [&](const RankFigures& r) {
              return fmt::format("max(1, {} key-value heads / tp {}) = {}", plan.model.layers[0].attention.kv_heads,
                                 plan.parallel.tp, r.kv_heads.count);
            });
      }));
  table.push_back(entry(
      "experts_per_rank", "experts", Dimension::count,
      "experts / ep: experts of one layer that a GPU holds, whole or in part", [](const QuantityContext& context) {
        const Plan& plan = context.plan;
        return over_ranks(
            context, [](const RankFigures& r) { return static_cast<double>(r.experts.count); },
            [&](const RankFigures& r) {
              return fmt::format(
                  "{} experts of a layer{} / ep {} = {}{}", plan.model.experts().num_experts,
                  plan.parallel.experts.redundant > 0 ? fmt::format(" + {} redundant", plan.parallel.experts.redundant)
                                                      : "",
                  plan.parallel.ep, r.experts.count,
                  plan.parallel.etp > 1 ? fmt::format(", each split over etp {} GPUs", plan.parallel.etp) : "");
            });
      }));
}

void add_modules(std::vector<QuantityDefinition>& table) {
  table.push_back(entry("expert_equivalents_per_gpu", "experts", Dimension::count,
                        "layers of the stage * experts / ep / etp: whole experts that the GPU's parts add up to",
                        [](const QuantityContext& context) {
                          const Plan& plan = context.plan;
                          return over_ranks(
                              context, [&](const RankFigures& r) { return expert_equivalents(plan, r); },
                              [&](const RankFigures& r) {
                                return fmt::format("{} layers * {} experts / etp {} = {:.6g}", r.layers.count,
                                                   r.experts.count, plan.parallel.etp, expert_equivalents(plan, r));
                              });
                        }));
  table.push_back(
      entry("modules_per_gpu", "modules", Dimension::count,
            "layers of the stage * (1 attention / tp + experts / ep / etp)", [](const QuantityContext& context) {
              const Plan& plan = context.plan;
              return over_ranks(
                  context, [&](const RankFigures& r) { return modules_of(plan, r); },
                  [&](const RankFigures& r) {
                    return fmt::format("{} layers * (1/{} attention + {}/{} experts) = {:.6g}; {} modules / {} GPUs",
                                       r.layers.count, plan.parallel.tp, r.experts.count, plan.parallel.etp,
                                       modules_of(plan, r),
                                       plan.model.layers.size() * (1 + plan.model.experts().num_experts), plan.world());
                  });
            }));
  table.push_back(entry("modules_variance", "modules^2", Dimension::count, "variance of modules_per_gpu over the GPUs",
                        [](const QuantityContext& context) {
                          const QuantityValue modules =
                              over_ranks(context, [&](const RankFigures& r) { return modules_of(context.plan, r); });
                          double sum = 0;
                          for (const RankFigures& rank : context.ranks) {
                            const double off = modules_of(context.plan, rank) - modules.mean;
                            sum += off * off;
                          }
                          const double variance = sum / static_cast<double>(context.ranks.size());
                          return number(variance,
                                        fmt::format("modules from {:.6g} to {:.6g}, mean {:.6g}: variance {:.6g}",
                                                    modules.min, modules.max, modules.mean, variance));
                        }));
}

}  // namespace

void add_mesh_quantities(std::vector<QuantityDefinition>& table) {
  add_gpus(table);
  add_degrees(table);
  add_model(table);
  add_placement(table);
  add_modules(table);
}

}  // namespace shardproof::quantity_table
