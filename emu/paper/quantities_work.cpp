// Quantities of work: floating-point operations, active experts, the pipeline, communication.
#include <fmt/format.h>

#include <cmath>

#include "emu/paper/internal/quantity_tables.h"

namespace shardproof::quantity_table {
namespace {

/// The chance that an expert serves at least one of t tokens, each choosing top_k of the experts evenly.
double active_share(const ModelConfig& model, double tokens) {
  if (model.dense()) return 1;
  return 1 - std::pow(1 - static_cast<double>(model.experts().top_k) / static_cast<double>(model.experts().num_experts),
                      tokens);
}

double tokens_of_microbatch(const Plan& plan) {
  return static_cast<double>(plan.workload.tokens()) /
         (static_cast<double>(plan.workload.microbatches) * plan.parallel.dp);
}

bool is_attention(Op op) {
  return op >= Op::attention_norm && op <= Op::attention_residual;
}

std::string share_text(double share) {
  return readable(share, Dimension::share);
}

void add_flops(std::vector<QuantityDefinition>& table) {
  table.push_back(entry("flops_per_gpu", "flops", Dimension::flops,
                        "prefill of the workload, by the ops' own formulas; experts at the workload's routing",
                        [](const QuantityContext& context) {
                          return over_ranks(
                              context, [](const RankFigures& r) { return r.prefill.flops(); },
                              [](const RankFigures& r) {
                                double experts = 0;
                                double attention = 0;
                                for (const OpTotal& total : r.prefill.ops) {
                                  if (total.op == Op::moe_expert) experts += total.flops;
                                  if (is_attention(total.op)) attention += total.flops;
                                }
                                const double all = r.prefill.flops();
                                return fmt::format("{} tokens of the replica: attention {} + experts {} + rest {} = {}",
                                                   r.tokens, readable(attention, Dimension::flops),
                                                   readable(experts, Dimension::flops),
                                                   readable(all - attention - experts, Dimension::flops),
                                                   readable(all, Dimension::flops));
                              });
                        }));
  table.push_back(
      entry("decode_flops_per_gpu", "flops", Dimension::flops,
            "one more token of every sequence, latent attention in the form that the plan decodes in; experts at "
            "the workload's routing",
            [](const QuantityContext& context) {
              return over_ranks(context, [](const RankFigures& r) { return r.decode.flops(); });
            }));
  table.push_back(entry("flops_per_token", "flops", Dimension::flops, "flops of a prefill over all GPUs / tokens",
                        [](const QuantityContext& context) {
                          double sum = 0;
                          for (const RankFigures& rank : context.ranks) sum += rank.prefill.flops();
                          const auto tokens = static_cast<double>(context.plan.workload.tokens());
                          return number(sum / tokens,
                                        fmt::format("{} / {:.6g} tokens", readable(sum, Dimension::flops), tokens));
                        }));
  table.push_back(
      entry("flops_imbalance", "share", Dimension::share, "max / mean - 1 of flops_per_gpu",
            [](const QuantityContext& context) {
              const QuantityValue flops = over_ranks(context, [](const RankFigures& r) { return r.prefill.flops(); });
              return number(flops.mean > 0 ? flops.max / flops.mean - 1 : 0,
                            fmt::format("max {} / mean {} - 1, experts at the workload's routing",
                                        readable(flops.max, Dimension::flops), readable(flops.mean, Dimension::flops)));
            }));
}

void add_active(std::vector<QuantityDefinition>& table) {
  QuantityDefinition active;
  active.name = "active_expert_share";
  active.unit = "share";
  active.dimension = Dimension::share;
  active.formula = "of T tokens: 1 - (1 - top_k / experts)^T, routing being even";
  active.arguments = 1;
  active.compute = [](const QuantityContext& context, std::span<const double> arguments) {
    const ModelConfig& m = context.plan.model;
    const FeedForwardSpec& experts = m.experts();
    const double tokens = std::max(0.0, arguments[0]);
    return number(active_share(m, tokens),
                  fmt::format("1 - (1 - {}/{})^{:.6g} = {}", experts.top_k, experts.num_experts, tokens,
                              share_text(active_share(m, tokens))));
  };
  table.push_back(active);
  table.push_back(entry("idle_expert_share", "share", Dimension::share,
                        "(1 - top_k / experts)^T, T the mean tokens of a replica's microbatch, routing being even",
                        [](const QuantityContext& context) {
                          const ModelConfig& m = context.plan.model;
                          const FeedForwardSpec& experts = m.experts();
                          const double tokens = tokens_of_microbatch(context.plan);
                          return number(
                              1 - active_share(m, tokens),
                              fmt::format("active 1-(1-{}/{})^T: {} at T=1, {} at T=2, {} at T=64; T is {:.6g} here",
                                          experts.top_k, experts.num_experts, share_text(active_share(m, 1)),
                                          share_text(active_share(m, 2)), share_text(active_share(m, 64)), tokens));
                        }));
}

void add_pipeline(std::vector<QuantityDefinition>& table) {
  const auto fields = [](const QuantityContext& context) {
    struct Fields {
      double m, pp;
    };
    return Fields{static_cast<double>(context.plan.workload.microbatches),
                  static_cast<double>(context.plan.parallel.pp)};
  };
  table.push_back(entry("pipeline_bubble", "share", Dimension::share, "(pp - 1) / (microbatches + pp - 1)",
                        [fields](const QuantityContext& context) {
                          const auto [m, pp] = fields(context);
                          return number(
                              (pp - 1) / (m + pp - 1),
                              fmt::format("(pp {0} - 1) / (m {1} + pp {0} - 1) = {2}/{3}", pp, m, pp - 1, m + pp - 1));
                        }));
  table.push_back(entry("pipeline_utilization_limit", "share", Dimension::share,
                        "microbatches / (microbatches + pp - 1)", [fields](const QuantityContext& context) {
                          const auto [m, pp] = fields(context);
                          QuantityValue value = number(
                              m / (m + pp - 1), fmt::format("bubble {}/{}, at most {} busy with m = {} microbatches",
                                                            pp - 1, m + pp - 1, share_text(m / (m + pp - 1)), m));
                          value.remedy = [pp = pp](double stated) {
                            if (!(stated < 1) || !(stated > 0))
                              return std::string("no number of microbatches reaches that");
                            return fmt::format("needs m / (m + {}) above {}: more than {:.6g} microbatches", pp - 1,
                                               share_text(stated),
                                               std::round(1e6 * stated * (pp - 1) / (1 - stated)) / 1e6);
                          };
                          return value;
                        }));
  table.push_back(entry("pipeline_speedup", "", Dimension::count,
                        "microbatches * pp / (microbatches + pp - 1): throughput against one stage's GPUs",
                        [fields](const QuantityContext& context) {
                          const auto [m, pp] = fields(context);
                          return number(m * pp / (m + pp - 1), fmt::format("m {} * pp {} / ({} + {} - 1) = {:.4g}", m,
                                                                           pp, m, pp, m * pp / (m + pp - 1)));
                        }));
  table.push_back(entry(
      "pipeline_latency_reduction", "share", Dimension::share, "0: a request passes every stage, one after another",
      [fields](const QuantityContext& context) {
        const auto [m, pp] = fields(context);
        return number(0, fmt::format("a stage split shortens no single request; throughput at m = {} microbatches is "
                                     "m*pp/(m+pp-1) = {:.4g} of one stage's",
                                     m, m * pp / (m + pp - 1)));
      }));
}

void add_traffic(std::vector<QuantityDefinition>& table) {
  struct Flow {
    Axis axis;
    Operation operation;
  };
  static constexpr Flow kFlows[] = {
      {Axis::tp, Operation::all_reduce},  {Axis::tp, Operation::all_gather},     {Axis::tp, Operation::reduce_scatter},
      {Axis::cp, Operation::all_gather},  {Axis::cp, Operation::send},           {Axis::cp, Operation::all_to_all},
      {Axis::ep, Operation::all_to_all},  {Axis::ep, Operation::all_gather},     {Axis::ep, Operation::reduce_scatter},
      {Axis::ep, Operation::all_reduce},  {Axis::etp, Operation::all_gather},    {Axis::etp, Operation::reduce_scatter},
      {Axis::etp, Operation::all_reduce}, {Axis::pp, Operation::send},           {Axis::dcp, Operation::all_gather},
      {Axis::dcp, Operation::all_to_all}, {Axis::cp_a2a, Operation::all_to_all}, {Axis::cp_p2p, Operation::send}};
  for (const bool prefill : {true, false}) {
    const std::string pass = prefill ? "prefill" : "decode";
    const auto figures = [prefill](const RankFigures& r) -> const PassFigures& {
      return prefill ? r.prefill : r.decode;
    };
    table.push_back(entry(pass + "_sent_bytes_per_gpu", "bytes", Dimension::bytes,
                          "sum over groups and operations of what the GPU sends in a " + pass,
                          [figures](const QuantityContext& context) {
                            return over_ranks(context, [&](const RankFigures& r) { return figures(r).sent_bytes(); });
                          }));
    for (const Flow& flow : kFlows) {
      const std::string name =
          fmt::format("{}_{}_{}_bytes_per_gpu", pass, to_string(flow.axis), to_string(flow.operation));
      const std::string_view operation = to_string(flow.operation);
      const char* factor = operation == "all_reduce"       ? "2 (n-1)/n of its input"
                           : operation == "all_gather"     ? "its input n-1 times"
                           : operation == "reduce_scatter" ? "its input but its own part"
                           : operation == "all_to_all"     ? "(n-1)/n of its input"
                                                           : "its input";
      table.push_back(entry(name, "bytes", Dimension::bytes,
                            fmt::format("sent by {} over {}: {} a call", operation, to_string(flow.axis), factor),
                            [figures, flow](const QuantityContext& context) {
                              return over_ranks(context, [&](const RankFigures& r) {
                                double sum = 0;
                                for (const TrafficTotal& total : figures(r).traffic) {
                                  if (total.axis == flow.axis && total.operation == flow.operation)
                                    sum += total.sent_bytes;
                                }
                                return sum;
                              });
                            }));
    }
  }
}

}  // namespace

void add_work_quantities(std::vector<QuantityDefinition>& table) {
  add_flops(table);
  add_active(table);
  add_pipeline(table);
  add_traffic(table);
}

}  // namespace shardproof::quantity_table
