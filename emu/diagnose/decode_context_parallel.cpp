// The cause at attention over dcp whose parts went to other ranks than those of the dcp group.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include "emu/diagnose/internal/one_row.h"
#include "emu/diagnose/internal/wrong_tap.h"
#include "emu/plan/cache_share.h"
#include "ops/attention_parts.h"

namespace shardproof::diagnosis {
namespace {

/// Which calls went over all of tp.
struct OverTp {
  bool context = false;
  bool sums = false;
};

/// What the ranks of a tp group send each other in a pass: each [dcp, rows of the pass, columns], the rows of the
/// queries of each rank of its dcp group, with the keys that it keeps.
class Exchange {
 public:
  explicit Exchange(const WrongTap& wrong) : wrong_(wrong), parallel_(wrong.model.plan().parallel) {}

  /// The wrong row, had those calls gone over tp; empty where what is sent cannot be dealt out over it.
  std::vector<double> predicted(const WrongRow& row, const OverTp& over) {
    const TokenMap& tokens = wrong_.model.tokens();
    const RowHome home = tokens.home(row.row);
    const Pass pass{.rows = tokens.rows({.dp = home.at.dp}, home.microbatch),
                    .heads = heads_of(wrong_.at(row).tp).count};
    const std::int64_t place = *pass.rows.place_of(tokens.run_as(row.row)), dim = spec().value_dim();
    const int tp = wrong_.at(row).tp;
    ops::Matrix<double> context(parallel_.dcp, pass.heads * dim), sums(parallel_.dcp, pass.heads);
    for (int from = 0; from < parallel_.dcp; ++from) {
      for (std::int64_t col = 0; col < context.cols(); ++col) {
        const Place at{from, place, col};
        const Sent sent = over.context ? sent_over_tp(tp, {pass, dim}, at) : sent_over_dcp(tp, at);
        if (sent.member < 0) return {};
        context(from, col) = context_of(pass, sent);
      }
      for (std::int64_t head = 0; head < pass.heads; ++head) {
        const Place at{from, place, head};
        const Sent sent = over.sums ? sent_over_tp(tp, {pass, 1}, at) : sent_over_dcp(tp, at);
        if (sent.member < 0) return {};
        sums(from, head) = sum_of(pass, sent);
      }
    }
    return merged(context, sums);
  }

 private:
  struct Pass {
    TokenRows rows;
    std::int64_t heads = 0;  ///< of a rank
  };
  struct Shape {
    const Pass& pass;
    std::int64_t of_head = 0;  ///< columns
  };
  /// An element of what a rank sends or receives.
  struct Place {
    std::int64_t of_dcp = 0;
    std::int64_t row = 0;
    std::int64_t col = 0;
  };
  struct Sent {
    int member = -1;  ///< of tp, who sends it
    Place at;
  };

  const AttentionSpec& spec() const { return wrong_.model.plan().model.layers[wrong_.layer].attention; }
  Range heads_of(int tp) const { return wrong_.model.layout(tp).layer(wrong_.model.plan().model, wrong_.layer).heads; }
  /// The first rank of tp of the dcp group.
  int group_of(int tp) const { return tp / parallel_.dcp * parallel_.dcp; }

  /// What stands at that place of what the rank receives, from each rank of its group as much.
  Sent sent_over_dcp(int tp, const Place& received) const {
    const int first = group_of(tp);
    return {.member = first + static_cast<int>(received.of_dcp), .at = {tp - first, received.row, received.col}};
  }
  /// The same had it come over tp; from nobody (-1) where that cannot be.
  Sent sent_over_tp(int tp, const Shape& shape, const Place& received) const {
    const std::int64_t width = shape.pass.heads * shape.of_head, rows = shape.pass.rows.count();
    const std::int64_t all = parallel_.dcp * rows * width, each = all / parallel_.tp;
    if (all % parallel_.tp != 0) return {};
    const std::int64_t element = (received.of_dcp * rows + received.row) * width + received.col;
    const std::int64_t sent = tp * each + element % each;
    return {.member = static_cast<int>(element / each),
            .at = {sent / (rows * width), sent / width % rows, sent % width}};
  }

  double context_of(const Pass& pass, const Sent& sent) {
    const std::int64_t dim = spec().value_dim();
    return part(pass, sent, sent.at.col / dim).context[static_cast<std::size_t>(sent.at.col % dim)];
  }
  double sum_of(const Pass& pass, const Sent& sent) { return part(pass, sent, sent.at.col).sum; }

  /// What the member's keys give of a head of the queries of a rank of its dcp group.
  const Recompute::KeyPart& part(const Pass& pass, const Sent& sent, std::int64_t head) {
    const std::int64_t row = pass.rows[sent.at.row];
    const auto [known, is_new] = parts_.try_emplace({sent.member, sent.at.of_dcp, row, head});
    if (!is_new) return known->second;
    const CacheShare share{parallel_.dcp, parallel_.dcp_interleave, sent.member % parallel_.dcp};
    const std::int64_t position = wrong_.model.tokens().position(row), begin = row - position;
    std::vector<std::int64_t> kept;
    for (std::int64_t token = 0; token <= position; ++token) {
      if (share.owns(token)) kept.push_back(begin + token);
    }
    const std::int64_t query = heads_of(group_of(sent.member) + static_cast<int>(sent.at.of_dcp)).begin + head;
    return known->second = wrong_.model.attend_to_part(wrong_.layer, row, kept, {begin, position + 1},
                                                       {query, query / (spec().heads / spec().kv_heads)});
  }

  std::vector<double> merged(const ops::Matrix<double>& context, const ops::Matrix<double>& sums) const {
    std::vector<double> row(static_cast<std::size_t>(context.cols()), 0.0);
    if (wrong_.model.format() != ops::Format::exact) {
      std::vector<ops::AttentionPart<double>> parts;
      for (std::int64_t from = 0; from < context.rows(); ++from) {
        parts.push_back({context.view().row_range(from, 1), sums.view().row_range(from, 1)});
      }
      ops::merge_parts<double>(parts, wrong_.model.format(), one_row(row));
      return row;
    }
    std::vector<double> numerators(row.size(), 0.0), denominators(static_cast<std::size_t>(sums.cols()), 0.0);
    for (std::int64_t from = 0; from < context.rows(); ++from) {
      for (std::size_t i = 0; i < numerators.size(); ++i) numerators[i] += context.row(from)[i];
      for (std::size_t i = 0; i < denominators.size(); ++i) denominators[i] += sums.row(from)[i];
    }
    ops::divide_parts(one_row(std::as_const(numerators)), one_row(std::as_const(denominators)), one_row(row));
    return row;
  }

  const WrongTap& wrong_;
  const Parallel& parallel_;
  /// By member, rank of dcp, row and head.
  std::map<std::tuple<int, std::int64_t, std::int64_t, std::int64_t>, Recompute::KeyPart> parts_;
};

}  // namespace

std::optional<Cause> dcp_group_cause(const WrongTap& wrong) {
  const Plan& plan = wrong.model.plan();
  const AttentionSpec& spec = plan.model.layers[wrong.layer].attention;
  if (plan.parallel.dcp == plan.parallel.tp || spec.latent()) return std::nullopt;
  Exchange exchange(wrong);
  for (const OverTp& over : {OverTp{.context = true}, OverTp{.sums = true}, OverTp{true, true}}) {
    const auto predicted = [&](const WrongRow& row) { return exchange.predicted(row, over); };
    if (!explains(wrong.rows, predicted, wrong.tolerance)) continue;
    const char* what = !over.sums ? "contexts" : over.context ? "contexts and sums" : "sums";
    return Cause{"wrong_group",
                 fmt::format("{} hold what comes of {} that were exchanged over their tp group, not over "
                             "dcp",
                             ranks_of(wrong.rows), what)};
  }
  return std::nullopt;
}

}  // namespace shardproof::diagnosis
