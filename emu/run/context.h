// What a rank's program is written in: named ops (computations.h) and named calls.
//
//   Tensor q = ctx.linear(Op::attention_q, layer, x, Weight::attention_q);
//   co_await ctx.all_reduce(Op::attention_reduce, layer, partial);
//
// A call carries its op, layer and microbatch (CallTag) and leaves a record of what went where. A reduction's result is
// stored. Dry, a call completes at once.
#pragma once

#include <cstdint>
#include <vector>

#include "collectives/communicator.h"
#include "collectives/task.h"
#include "emu/run/computations.h"

namespace shardproof {

template <class T>
class Context : public Computations<T> {
 public:
  using Base = Computations<T>;
  using Base::Base;
  using Base::kDry;
  using typename Base::Counts;
  using typename Base::Ids;
  using typename Base::Tensor;
  using typename Base::View;

  Task<> all_reduce(Op op, int layer, Tensor& partial, SourceLocation where = SourceLocation::current());
  /// The same in the scalar that ops compute in, on the wire and as the result.
  Task<> all_reduce_scalars(Op op, int layer, Tensor& partial, SourceLocation where = SourceLocation::current());
  /// Own rows of the sum, [own rows, width], each tp rank its own.
  Task<Tensor> scatter_rows(Op op, int layer, Tensor partial, SourceLocation where = SourceLocation::current());
  /// All rows from every tp rank's own.
  Task<Tensor> gather_rows_over_tp(Op op, int layer, Tensor own, SourceLocation where = SourceLocation::current());
  /// Under context parallelism: keys or values of every cp rank, one rank after another.
  Task<Tensor> gather_over_cp(Op op, int layer, const Tensor& own, SourceLocation where = SourceLocation::current());
  /// Of every rank of cp among which heads are dealt out: its rows of the rank's part of the columns, one rank after
  /// another, from the rank's rows of the parts one after another (split_columns()); and back.
  Task<Tensor> to_heads_over_cp(Op op, int layer, const Tensor& split,
                                SourceLocation where = SourceLocation::current());
  Task<Tensor> to_rows_over_cp(Op op, int layer, const Tensor& all, SourceLocation where = SourceLocation::current());
  /// Every dcp rank's rows, one rank after another, of which each has as many.
  Task<Tensor> gather_over_dcp(Op op, int layer, const Tensor& own, SourceLocation where = SourceLocation::current());
  /// The largest of every dcp rank's, element by element.
  Task<Tensor> largest_over_dcp(Op op, int layer, Tensor own, SourceLocation where = SourceLocation::current());
  /// Of as many rows for each dcp rank, one after another, those for this one from each; sums are not stored.
  Task<Tensor> exchange_over_dcp(Op op, int layer, const Tensor& parts,
                                 SourceLocation where = SourceLocation::current());
  Task<Tensor> exchange_sums_over_dcp(Op op, int layer, const Tensor& sums,
                                      SourceLocation where = SourceLocation::current());
  /// A step of a ring over cp, under way until it is ended: `held` to the rank behind, `next` from the one before.
  /// Both stay where they are until then.
  struct RingStep {
    CallHandle send, receive;
  };
  RingStep begin_ring_step(int layer, const Tensor& held, Tensor& next,
                           SourceLocation where = SourceLocation::current());
  Task<> end_ring_step(RingStep& step);
  /// What every ep rank sends this one, given what this one sends each: [ep * local experts] both.
  Task<Counts> exchange_counts(Op op, int layer, const Permutation& permutation,
                               SourceLocation where = SourceLocation::current());
  /// Rows to their experts, or back: sent[i] and received[i] rows are of one local expert; runs of `experts` of them go
  /// to one rank. `out` has the shape of the result.
  Task<Tensor> all_to_all(Op op, int layer, const Tensor& in, const Counts& sent, Tensor out, const Counts& received,
                          SourceLocation where = SourceLocation::current());
  /// The same, under way until it is ended; both stay where they are until then.
  CallHandle begin_all_to_all(Op op, int layer, const Tensor& in, const Counts& sent, Tensor& out,
                              const Counts& received, SourceLocation where = SourceLocation::current());
  Task<> end_all_to_all(Op op, int layer, CallHandle& under_way);
  /// False only where a fault has it so.
  bool awaits_in_time(Op op, int layer) const;
  /// Rows own to every rank of the ep group, one rank after another; `rows_of` are how many each has.
  Task<Tensor> gather_over_ep(Op op, int layer, View own, const Counts& rows_of,
                              SourceLocation where = SourceLocation::current());
  /// The same of experts chosen for them.
  Task<Ids> gather_choices(Op op, int layer, const Ids& own, const Counts& rows_of,
                           SourceLocation where = SourceLocation::current());
  /// The rank's own rows of the sum over ep; and every row of it, in place.
  Task<Tensor> scatter_over_ep(Op op, int layer, Tensor partial, const Counts& rows_of,
                               SourceLocation where = SourceLocation::current());
  Task<> sum_over(Axis axis, Op op, int layer, Tensor& partial, SourceLocation where = SourceLocation::current());
  /// The counts of every etp rank, one after another.
  Task<Counts> gather_counts(Op op, int layer, const Counts& counts, SourceLocation where = SourceLocation::current());
  /// Rows of every etp rank, of which each has as many as its counts add up to.
  Task<Tensor> gather_over_etp(Op op, int layer, const Tensor& own, const Counts& all_counts,
                               SourceLocation where = SourceLocation::current());
  /// The rank's `own` rows of the sum over etp.
  Task<Tensor> reduce_over_etp(Op op, int layer, Tensor partial, std::int64_t own, const Counts& all_counts,
                               SourceLocation where = SourceLocation::current());
  Task<> send_to_next_stage(Op op, const Tensor& stream, SourceLocation where = SourceLocation::current());
  Task<Tensor> receive_from_stage_before(Op op, SourceLocation where = SourceLocation::current());

 private:
  struct CallShape {
    Axis axis{};
    Operation operation{};
    std::int64_t elements = 0;
    std::int64_t received = 0;
    std::int64_t kept = 0;
    std::int64_t rows = 0;
    std::int64_t cols = 0;
    int width = 0;  ///< bytes of an element; 0: of the run's format
    int peer = -1;
    CallPhase phase{};
  };
  /// Of rows of local experts, or back: what begin_all_to_all() moves.
  CallShape all_to_all_shape(const Tensor& in, const Tensor& out, const std::vector<std::size_t>& sent) const;
  static CallShape moved(Axis axis, Operation operation, const Tensor& in, const Tensor& out, std::int64_t kept = 0,
                         int peer = -1);
  void record_call(Op op, int layer, const CallShape& shape) const;
  std::vector<std::size_t> own_elements(std::int64_t width) const;
  /// The rows that each rank has among which heads are dealt out, and the axis that these lie on.
  Counts rows_of_dealt() const;
  Axis dealt_axis() const { return layout_.parallel.cp_comm == CpComm::a2a ? Axis::cp : Axis::cp_a2a; }
  Axis ring_axis() const { return layout_.parallel.cp_comm == CpComm::p2p ? Axis::cp : Axis::cp_p2p; }
  Communicator communicator(Axis axis, Op op, int layer) const;

  using Base::element_bytes;
  using Base::format_;
  using Base::ground_;
  using Base::layout_;
  using Base::microbatch_;
  using Base::model_;
  using Base::tokens_;
  using Base::trace_;
};

extern template class Context<float>;
extern template class Context<double>;
extern template class Context<ShapeOnly>;

}  // namespace shardproof
