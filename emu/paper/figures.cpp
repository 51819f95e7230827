#include "emu/paper/figures.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "collectives/traffic.h"
#include "emu/plan/layout.h"
#include "emu/plan/token_map.h"
#include "ops/attention.h"
#include "ops/elementwise.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/permute.h"
#include "ops/rope.h"
#include "ops/router.h"

namespace shardproof {
namespace {

/// One microbatch of a rank's replica, as the rank sees it.
struct Step {
  double rows = 0;      ///< tokens that attention works on (after context parallelism)
  double own_rows = 0;  ///< of these, the ones this rank routes
  double pairs = 0;     ///< query-key pairs of causal attention
  double received = 0;  ///< rows that arrive over ep, routing being even
  double expert_rows = 0;
};

enum class PassKind { prefill, decode };

/// Everything that ranks share: the sequences, and how they fall to replicas and microbatches.
class Workshop {
 public:
  explicit Workshop(const Plan& plan)
      : plan_(plan),
        mesh_(plan.parallel),
        prefill_(plan.parallel, plan.workload),
        decode_(plan.parallel, one_each(plan)) {
    tokens_.push_back(0);
    pairs_.push_back(0);
    for (const std::int64_t length : plan.workload.lengths) {
      tokens_.push_back(tokens_.back() + length);
      pairs_.push_back(pairs_.back() + static_cast<double>(length) * static_cast<double>(length + 1) / 2);
    }
  }

  const Plan& plan() const { return plan_; }
  const Mesh& mesh() const { return mesh_; }
  Range sequences(int dp) const { return prefill_.sequences(dp); }
  std::int64_t tokens(Range of) const { return tokens_[index(of.end())] - tokens_[index(of.begin)]; }

  /// Each rank's steps, one for each microbatch. Memory is world * microbatches, which validation bounds by the batch.
  std::vector<std::vector<Step>> steps(PassKind kind) const {
    const Parallel& p = plan_.parallel;
    const TokenMap& map = kind == PassKind::prefill ? prefill_ : decode_;
    std::vector<std::vector<Step>> all(static_cast<std::size_t>(mesh_.world()));
    for (int rank = 0; rank < mesh_.world(); ++rank) {
      const Coordinates at = mesh_.coordinates(rank);
      for (std::int64_t m = 0; m < map.microbatches(); ++m) {
        const Range part = map.sequences(at.dp, m);
        const double pairs = kind == PassKind::prefill ? pairs_[index(part.end())] - pairs_[index(part.begin)]
                                                       : static_cast<double>(tokens(part) + part.count);
        all[index(rank)].push_back({.rows = static_cast<double>(map.rows(at, m).count()),
                                    .own_rows = static_cast<double>(map.own(at, m).count()),
                                    .pairs = pairs / p.cp});
      }
    }
    route(all);
    return all;
  }

 private:
  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  /// A step of decoding has one token of each sequence.
  static Workload one_each(const Plan& plan) {
    Workload workload = plan.workload;
    std::ranges::fill(workload.lengths, 1);
    return workload;
  }

  void route(std::vector<std::vector<Step>>& all) const {
    const Parallel& p = plan_.parallel;
    const double share = static_cast<double>(plan_.model.layers[0].feed_forward.top_k) / p.ep;
    const auto sum_over = [&](Axis axis, double Step::*from, double Step::*to, double factor) {
      for (const std::vector<int>& group : mesh_.groups(axis)) {
        for (std::size_t m = 0; m < all[index(group[0])].size(); ++m) {
          double sum = 0;
          for (const int rank : group) sum += all[index(rank)][m].*from;
          for (const int rank : group) all[index(rank)][m].*to = factor * sum;
        }
      }
    };
    sum_over(Axis::ep, &Step::own_rows, &Step::received, share);
    sum_over(Axis::etp, &Step::received, &Step::expert_rows, 1.0);
  }

  const Plan& plan_;
  Mesh mesh_;
  TokenMap prefill_;
  TokenMap decode_;
  std::vector<std::int64_t> tokens_;  // prefix sums over the sequences
  std::vector<double> pairs_;
};

/// One pass of one rank: adds up what its program would do.
class Walk {
 public:
  Walk(const Plan& plan, const RankFigures& rank, PassFigures& pass)
      : model_(plan.model),
        layer_(plan.model.layers[0]),
        p_(plan.parallel),
        rank_(rank),
        pass_(pass),
        bytes_(dtype_bytes(plan.model)) {}

  void run(const std::vector<Step>& steps) {
    for (const Step& step : steps) microbatch(step);
  }
  double largest_collective() const { return largest_; }

 private:
  /// Costs are linear in rows: the formula for one row, scaled. Rows may be fractions where routing is even.
  void op(std::string_view name, double rows, double flops_of_row, bool routed = false) {
    const double flops = factor_ * rows * flops_of_row;
    for (OpTotal& total : pass_.ops) {
      if (total.op == name) {
        total.flops += flops;
        return;
      }
    }
    pass_.ops.push_back({name, flops, routed});
  }

  void traffic(Axis axis, std::string_view operation, double in, double out, double own_part, int element_bytes,
               bool routed = false) {
    const int n = Mesh(p_).degree(axis);
    if (n == 1) return;
    const double others = n - 1;
    double sent = in;
    if (operation == "all_reduce") sent = in * bus_bandwidth_factor(Operation::all_reduce, n);
    if (operation == "all_gather") sent = in * others;
    if (operation == "reduce_scatter") sent = in - own_part;
    if (operation == "all_to_all") sent = in * bus_bandwidth_factor(Operation::all_to_all, n);
    largest_ = std::max(largest_, (in + out) * element_bytes);
    for (TrafficTotal& total : pass_.traffic) {
      if (total.axis == axis && total.operation == operation && total.element_bytes == element_bytes &&
          total.routed == routed) {
        total.calls += factor_;
        total.elements += factor_ * in;
        total.sent_bytes += factor_ * sent * element_bytes;
        return;
      }
    }
    pass_.traffic.push_back(
        {axis, operation, n, factor_, factor_ * in, element_bytes, factor_ * sent * element_bytes, routed});
  }

  void gather_over_tp(double own, double rows, double width) {
    traffic(Axis::tp, "all_gather", own * width, rows * width, 0, bytes_);
  }
  void reduce_over_tp(const Step& step, double width) {
    if (p_.sp) {
      traffic(Axis::tp, "reduce_scatter", step.rows * width, step.own_rows * width, step.own_rows * width, bytes_);
    } else {
      traffic(Axis::tp, "all_reduce", step.rows * width, step.rows * width, 0, bytes_);
    }
  }

  void microbatch(const Step& step) {
    const auto hidden = static_cast<double>(model_.hidden_size);
    const double stream = p_.sp ? step.own_rows : step.rows;
    const bool first = rank_.at.pp == 0;
    const bool last = rank_.at.pp == p_.pp - 1;
    factor_ = 1;
    if (first) {
      op("embedding", step.rows, 0);
      reduce_over_tp(step, hidden);
    }
    factor_ = static_cast<double>(rank_.layers.count);
    attention(step, stream);
    experts(step, stream);
    factor_ = 1;
    if (last) {
      op("final_norm", stream, ops::rms_norm_cost(1, model_.hidden_size, bytes_).flops);
      if (p_.sp) gather_over_tp(step.own_rows, step.rows, hidden);
      op("logits", step.rows, ops::linear_cost(1, rank_.vocabulary.count, model_.hidden_size, bytes_).flops);
    } else {
      traffic(Axis::pp, "send", stream * hidden, stream * hidden, 0, bytes_);
    }
  }

  void attention(const Step& step, double stream) {
    const std::int64_t hidden = model_.hidden_size;
    const std::int64_t q = rank_.heads.count * layer_.attention.head_dim;
    const std::int64_t kv = rank_.kv_heads.count * layer_.attention.head_dim;
    op("attention.norm", stream, ops::rms_norm_cost(1, hidden, bytes_).flops);
    if (p_.sp) gather_over_tp(step.own_rows, step.rows, static_cast<double>(hidden));
    op("attention.q", step.rows, ops::linear_cost(1, q, hidden, bytes_).flops);
    op("attention.k", step.rows, ops::linear_cost(1, kv, hidden, bytes_).flops);
    op("attention.v", step.rows, ops::linear_cost(1, kv, hidden, bytes_).flops);
    op("attention.rope", step.rows, ops::rope_cost(1, q + kv, bytes_).flops);
    if (p_.cp > 1) {
      for (int i = 0; i < 2; ++i) {  // keys, values
        const double own = step.rows * static_cast<double>(kv);
        traffic(Axis::cp, "all_gather", own, own * p_.cp, 0, bytes_);
      }
    }
    // One pair costs what one sequence of one token does.
    constexpr std::array<std::int64_t, 2> kOnePair = {0, 1};
    op("attention.context", step.pairs,
       ops::attention_cost(kOnePair, rank_.heads.count, rank_.kv_heads.count, layer_.attention.head_dim, bytes_).flops);
    op("attention.output", step.rows, ops::linear_cost(1, hidden, q, bytes_).flops);
    reduce_over_tp(step, static_cast<double>(hidden));
    op("attention.residual", stream, ops::add_cost(1, hidden, bytes_).flops);
  }

  void experts(const Step& step, double stream) {
    const std::int64_t hidden = model_.hidden_size;
    const auto width = static_cast<double>(hidden);
    const auto counts = static_cast<double>(layer_.feed_forward.num_experts);
    const double slots = step.own_rows * static_cast<double>(layer_.feed_forward.top_k);
    constexpr int kCountBytes = 8;
    op("moe.norm", stream, ops::rms_norm_cost(1, hidden, bytes_).flops);
    op("moe.router_logits", step.own_rows, ops::linear_cost(1, layer_.feed_forward.num_experts, hidden, bytes_).flops);
    op("moe.router_choice", step.own_rows,
       ops::route_cost(1, layer_.feed_forward.num_experts, layer_.feed_forward.top_k, bytes_).flops);
    op("moe.permute", slots, ops::gather_rows_cost(1, hidden, bytes_).flops);
    traffic(Axis::ep, "all_to_all", counts, counts, 0, kCountBytes);
    traffic(Axis::ep, "all_to_all", slots * width, step.received * width, 0, bytes_, false);
    traffic(Axis::etp, "all_gather", counts, counts * p_.etp, 0, kCountBytes);
    traffic(Axis::etp, "all_gather", step.received * width, step.expert_rows * width, 0, bytes_, true);
    op("moe.sort", step.expert_rows, ops::gather_rows_cost(1, hidden, bytes_).flops, true);
    op("moe.expert", step.expert_rows, ops::expert_cost(1, hidden, rank_.intermediate_size.count, bytes_).flops, true);
    op("moe.unsort", step.expert_rows, ops::gather_rows_cost(1, hidden, bytes_).flops, true);
    traffic(Axis::etp, "reduce_scatter", step.expert_rows * width, step.received * width, step.received * width, bytes_,
            true);
    traffic(Axis::ep, "all_to_all", step.received * width, slots * width, 0, bytes_, true);
    op("moe.combine", step.own_rows, ops::combine_cost(1, layer_.feed_forward.top_k, hidden, bytes_).flops);
    if (!p_.sp) gather_over_tp(step.own_rows, step.rows, width);
    op("moe.residual", stream, ops::add_cost(1, hidden, bytes_).flops);
  }

  const ModelConfig& model_;
  const LayerSpec& layer_;
  const Parallel& p_;
  const RankFigures& rank_;
  PassFigures& pass_;
  int bytes_;
  double factor_ = 1;
  double largest_ = 0;
};

/// Tensors alive at once, at the worst point of a forward of one microbatch, in elements.
double alive_elements(const Plan& plan, const RankFigures& rank, const Step& step) {
  const auto hidden = static_cast<double>(plan.model.hidden_size);
  const double stream = (plan.parallel.sp ? step.own_rows : step.rows) * hidden;
  const auto q = static_cast<double>(rank.heads.count * plan.model.layers[0].attention.head_dim);
  const auto kv = static_cast<double>(rank.kv_heads.count * plan.model.layers[0].attention.head_dim);
  const auto width = static_cast<double>(rank.intermediate_size.count);
  const double slots = step.own_rows * static_cast<double>(plan.model.layers[0].feed_forward.top_k);
  const double attention = step.rows * (2 * hidden + 2 * q + 2 * kv);
  // One expert works at a time; the rows of the others wait.
  const double busiest = rank.experts.count > 0 ? step.expert_rows / static_cast<double>(rank.experts.count) : 0;
  const double experts = stream + slots * hidden + step.expert_rows * 2 * hidden + busiest * 2 * width;
  const double head =
      rank.at.pp == plan.parallel.pp - 1 ? step.rows * (hidden + static_cast<double>(rank.vocabulary.count)) : 0;
  return stream + std::max({attention, experts, head});
}

/// Tensors of one layer that the backward pass reads: inputs of both norms and of both regions, q, k, v, context,
/// router logits, permuted rows, gate, up and activation, expert outputs. Attention scores are recomputed.
double kept_elements(const Plan& plan, const RankFigures& rank, const Step& step) {
  const auto hidden = static_cast<double>(plan.model.hidden_size);
  const double stream = plan.parallel.sp ? step.own_rows : step.rows;
  const auto q = static_cast<double>(rank.heads.count * plan.model.layers[0].attention.head_dim);
  const auto kv = static_cast<double>(rank.kv_heads.count * plan.model.layers[0].attention.head_dim);
  return 4 * stream * hidden + step.rows * (2 * q + 2 * kv) +
         step.own_rows * static_cast<double>(plan.model.layers[0].feed_forward.num_experts) +
         step.expert_rows * (2 * hidden + 3 * static_cast<double>(rank.intermediate_size.count));
}

void fill_layout(const Plan& plan, const Layout& layout, RankFigures& figures) {
  figures.at = layout.at;
  figures.layers = layout.layers;
  const LayerLayout& layer = layout.layer(plan.model, layout.layers.begin);
  figures.heads = layer.heads;
  figures.kv_heads = layer.kv_heads;
  figures.experts = layer.experts;
  figures.intermediate_size = layer.intermediate_size;
  figures.vocabulary = layout.vocabulary;
}

}  // namespace

double PassFigures::flops() const {
  double sum = 0;
  for (const OpTotal& total : ops) sum += total.flops;
  return sum;
}

double PassFigures::sent_bytes() const {
  double sum = 0;
  for (const TrafficTotal& total : traffic) sum += total.sent_bytes;
  return sum;
}

int dtype_bytes(const ModelConfig& model) {
  if (model.dtype == "float64") return 8;
  if (model.dtype == "float32") return 4;
  return 2;
}

std::vector<RankFigures> rank_figures(const Plan& plan) {
  const Workshop workshop(plan);
  const Mesh& mesh = workshop.mesh();
  const std::vector<std::vector<Step>> prefill = workshop.steps(PassKind::prefill);
  const std::vector<std::vector<Step>> decode = workshop.steps(PassKind::decode);
  const int bytes = dtype_bytes(plan.model);
  const std::int64_t longest = *std::max_element(plan.workload.lengths.begin(), plan.workload.lengths.end());
  std::vector<RankFigures> all(static_cast<std::size_t>(mesh.world()));
  for (int rank = 0; rank < mesh.world(); ++rank) {
    RankFigures& figures = all[static_cast<std::size_t>(rank)];
    figures.rank = rank;
    const Layout layout = make_layout(plan.model, mesh, rank);
    fill_layout(plan, layout, figures);
    figures.parameters = held_parameters(layout, plan.model);
    const Range sequences = workshop.sequences(figures.at.dp);
    figures.sequences = sequences.count;
    figures.tokens = workshop.tokens(sequences);
    const double kv_bytes_of_token =
        2.0 * static_cast<double>(figures.kv_heads.count * plan.model.layers[0].attention.head_dim) *
        static_cast<double>(figures.layers.count) * bytes / plan.parallel.cp;
    figures.kv_cache_bytes = kv_bytes_of_token * static_cast<double>(figures.tokens);
    figures.kv_cache_reserved_bytes = kv_bytes_of_token * static_cast<double>(sequences.count * longest);

    const std::vector<Step>& steps = prefill[static_cast<std::size_t>(rank)];
    double kept = 0;
    for (const Step& step : steps) {
      figures.activation_bytes = std::max(figures.activation_bytes, alive_elements(plan, figures, step) * bytes);
      kept = std::max(kept, kept_elements(plan, figures, step) * bytes);
    }
    const auto in_flight = std::min<double>(static_cast<double>(steps.size()), plan.parallel.pp - figures.at.pp);
    figures.training_activation_bytes = kept * static_cast<double>(figures.layers.count) * in_flight;

    Walk walk(plan, figures, figures.prefill);
    walk.run(steps);
    figures.communication_buffer_bytes = walk.largest_collective();
    Walk(plan, figures, figures.decode).run(decode[static_cast<std::size_t>(rank)]);
  }
  return all;
}

}  // namespace shardproof
