// How faults are written: a script over the seams, and what may go wrong in a call of the program.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "emu/mutate/mutation.h"
#include "emu/run/fault.h"
#include "emu/run/op.h"

namespace shardproof::mutations {

/// A fault whose seams are given as functions; those not given change nothing.
class Script final : public FaultInjector {
 public:
  std::function<void(std::vector<Layout>&)> layouts;
  std::function<void(const Rank&, WeightSpec&, Range&, Range&)> slice;
  std::function<void(const Rank&, ModelConfig&)> model;
  std::function<void(Timetable&)> timetable;
  std::function<void(const Rank&, std::int64_t, RankTokens&)> microbatch;
  std::function<void(const Rank&, std::int64_t, CachedPass&)> cache;
  std::function<void(const Rank&, const FaultSite&, RouterRule&)> router;
  std::function<void(const Rank&, const FaultSite&, ops::MatrixView<const double>, ops::MatrixView<std::int32_t>,
                     ops::MatrixView<double>)>
      routing;
  std::function<void(const Rank&, const FaultSite&, ops::MatrixView<const std::int32_t>, ops::MatrixView<std::int32_t>)>
      replicas;
  std::function<void(const Rank&, Op, const FaultSite&, const Operands&, ops::MatrixView<float>)> result;
  std::function<void(const Rank&, Op, const FaultSite&, ops::MatrixView<double>)> double_result;
  std::function<void(const Rank&, const FaultSite&, AbsorbedForm&)> absorbed;
  std::function<bool(const Rank&, const FaultSite&, std::size_t)> averaged_past;
  std::function<void(const Rank&, const FaultSite&, int, ops::MatrixView<float>, ops::MatrixView<float>)> float_part;
  std::function<void(const Rank&, const FaultSite&, int, ops::MatrixView<double>, ops::MatrixView<double>)> double_part;
  std::function<bool(const Rank&, Op, const FaultSite&)> in_time;
  std::function<bool(const Rank&, internal::Call&)> before;
  std::function<void(const Rank&, internal::Call&)> after;

  void edit_layouts(std::vector<Layout>& given) override {
    if (layouts) layouts(given);
  }
  void edit_slice(const Rank& rank, WeightSpec& spec, Range& rows, Range& cols) override {
    if (slice) slice(rank, spec, rows, cols);
  }
  void edit_model(const Rank& rank, ModelConfig& given) override {
    if (model) model(rank, given);
  }
  void edit_router(const Rank& rank, const FaultSite& site, RouterRule& given) override {
    if (router) router(rank, site, given);
  }
  bool awaits_in_time(const Rank& rank, Op op, const FaultSite& site) override {
    return !in_time || in_time(rank, op, site);
  }
  void edit_timetable(Timetable& given) override {
    if (timetable) timetable(given);
  }
  void edit_microbatch(const Rank& rank, std::int64_t index, RankTokens& given) override {
    if (microbatch) microbatch(rank, index, given);
  }
  void edit_cache(const Rank& rank, std::int64_t index, CachedPass& given) override {
    if (cache) cache(rank, index, given);
  }
  void edit_routing(const Rank& rank, const FaultSite& site, ops::MatrixView<const double> logits,
                    ops::MatrixView<std::int32_t> ids, ops::MatrixView<double> weights) override {
    if (routing) routing(rank, site, logits, ids, weights);
  }
  void edit_replicas(const Rank& rank, const FaultSite& site, ops::MatrixView<const std::int32_t> ids,
                     ops::MatrixView<std::int32_t> physical) override {
    if (replicas) replicas(rank, site, ids, physical);
  }
  void edit_result(const Rank& rank, Op op, const FaultSite& site, const Operands& operands,
                   ops::MatrixView<float> given) override {
    if (result) result(rank, op, site, operands, given);
  }
  void edit_double_result(const Rank& rank, Op op, const FaultSite& site, ops::MatrixView<double> given) override {
    if (double_result) double_result(rank, op, site, given);
  }
  void edit_absorbed(const Rank& rank, const FaultSite& site, AbsorbedForm& form) override {
    if (absorbed) absorbed(rank, site, form);
  }
  bool averages_past(const Rank& rank, const FaultSite& site, std::size_t sequence) override {
    return averaged_past && averaged_past(rank, site, sequence);
  }
  void edit_part(const Rank& rank, const FaultSite& site, int keys_of, ops::MatrixView<float> context,
                 ops::MatrixView<float> lse) override {
    if (float_part) float_part(rank, site, keys_of, context, lse);
  }
  void edit_double_part(const Rank& rank, const FaultSite& site, int keys_of, ops::MatrixView<double> context,
                        ops::MatrixView<double> lse) override {
    if (double_part) double_part(rank, site, keys_of, context, lse);
  }
  bool before_call(const Rank& rank, internal::Call& call) noexcept override { return !before || before(rank, call); }
  void after_call(const Rank& rank, internal::Call& call) noexcept override {
    if (after) after(rank, call);
  }
};

/// A call of the program.
struct Site {
  Op op{};
  int layer = -1;
  std::vector<int> ranks;  ///< empty: all
  int microbatch = -1;     ///< -1: all

  bool matches(const Rank& rank, const internal::Call& call) const;
};

/// "layer.3.attention.q".
inline std::string tap_name(int layer, TapKind kind) {
  return to_string(TapId{.layer = layer, .kind = kind});
}

bool among(const std::vector<int>& ranks, const Rank& rank);
/// Where what is wrong within an MoE block shows first.
std::string moe_output_tap(int layer);

/// Two buffers for each rank, which uses its own only: calls of two microbatches may be under way at once.
using Buffers = std::shared_ptr<std::vector<std::vector<double>>>;
Buffers make_buffers(int world);

/// What a call of floats or doubles reads and writes; nothing of any other.
std::vector<double> input(const internal::Call& call);
std::vector<double> output(const internal::Call& call);
/// Makes the call read these from the rank's buffer.
void set_input(const Rank& rank, internal::Call& call, const Buffers& buffers, std::span<const double> values);
void set_output(internal::Call& call, std::span<const double> values);
/// Changes, as doubles, what the call reads, in a copy of its own, or what it wrote.
template <class Edit>
void edit_input(const Rank& rank, internal::Call& call, const Buffers& buffers, const Edit& edit) {
  std::vector<double> values = input(call);
  edit(std::span(values));
  set_input(rank, call, buffers, values);
}
template <class Edit>
void edit_output(internal::Call& call, const Edit& edit) {
  std::vector<double> values = output(call);
  edit(std::span(values));
  set_output(call, values);
}
/// The output of a call that did not take place: its own part where it has one (the partial sum, the gathered chunk),
/// else zeros.
void keep_own(internal::Call& call);
void zero_output(internal::Call& call);
/// Row order over `counts` elements a chunk: the chunks in reverse.
void reverse_chunks(std::span<double> values, std::span<const std::size_t> counts);

/// What goes wrong in a sum over a group.
enum class SumFault { dropped, repeated, halves, missing, doubled, averaged, maximum };
/// The causes that name it.
std::vector<std::string> causes_of(SumFault fault);
/// At the site, whose ranks are one group; `member` is the group index whose partial sum is missing or doubled.
std::function<std::unique_ptr<FaultInjector>()> faulty_reduction(const Plan& plan, const Site& site, SumFault fault,
                                                                 int member);

/// What goes wrong in a gather, on the site's ranks: it does not take place, or its chunks lie in reverse.
enum class GatherFault { dropped, reversed };
std::vector<std::string> causes_of(GatherFault fault);
std::function<std::unique_ptr<FaultInjector>()> faulty_gather(const Site& site, GatherFault fault);

/// Some rank of a replica has at most `rows` rows in each of its microbatches.
bool has_few_rows(const Plan& plan, std::int64_t rows);
/// With all experts chosen, another expert's output is another slot's: one error, two names.
std::vector<std::string> or_weights(const Plan& plan, std::string cause);
/// Router weights are one, whatever the logits: in the layer, or in some layer.
bool weighs_by_one(const FeedForwardSpec& spec);
bool weighs_by_one(const Plan& plan);
/// No order of the rows but one.
bool may_have_one_row(const Plan& plan);
/// A rank of a tp group may hold no row of the stream, or route none.
bool may_have_no_row(const Plan& plan);

template <class Fill>
std::function<std::unique_ptr<FaultInjector>()> script(Fill fill) {
  return [fill] {
    auto made = std::make_unique<Script>();
    fill(*made);
    return std::unique_ptr<FaultInjector>(std::move(made));
  };
}

std::span<const MutationKind> attention_kinds();
std::span<const MutationKind> cache_kinds();
std::span<const MutationKind> cp_kinds();
std::span<const MutationKind> dcp_kinds();
std::span<const MutationKind> latent_kinds();
std::span<const MutationKind> weight_kinds();
std::span<const MutationKind> moe_kinds();
std::span<const MutationKind> expert_map_kinds();
std::span<const MutationKind> dispatch_kinds();
std::span<const MutationKind> expert_kinds();
std::span<const MutationKind> feature_kinds();
std::span<const MutationKind> schedule_kinds();
std::span<const MutationKind> rounding_kinds();

}  // namespace shardproof::mutations
