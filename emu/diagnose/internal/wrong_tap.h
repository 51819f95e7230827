// What the files of the diagnosis share.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/diagnose/diagnose.h"
#include "emu/diagnose/recompute.h"
#include "emu/diagnose/signatures.h"
#include "ops/router.h"

namespace shardproof::diagnosis {

/// The wrong rows of a tap, and what they may be held to.
struct WrongTap {
  Recompute& model;
  const ExpectedTap& expected;
  int layer = -1;
  TapKind kind{};
  const std::vector<WrongRow>& rows;
  /// The wrong rows, and after them what the same ranks hold rightly in the same microbatches: what befell a whole
  /// reduction, or all weights of a rank, has to explain these too.
  const std::vector<WrongRow>& witnesses;
  const std::vector<TapPart>& norm_parts;
  double tolerance = 0;
  double step = 0;  ///< what a stored value rounds by

  Coordinates at(const WrongRow& row) const { return model.mesh().coordinates(row.rank); }
};

/// The chunk that the row was run in.
Chunk chunk_of(const TokenMap& tokens, std::int64_t row);
/// Another layer of the same kind has the same weights to take for one's own.
bool is_like(const WrongTap& wrong, int layer);
/// "rank 3", "ranks 0, 1, 4".
std::string ranks_of(const std::vector<WrongRow>& wrong);
/// Every degree of the plan above 1, by name.
std::vector<std::pair<std::string, int>> degrees(const Parallel& parallel);
Cause cause_of(const PartialSumFault& fault, std::string_view axis, int members);
/// The three weights of a SwiGLU MLP, and the biases that some have.
struct MlpWeights {
  Weight gate{};
  Weight up{};
  Weight down{};
  std::vector<Weight> biases = {};  ///< of gate, up and down
};
/// A rank of such an MLP's group, or every one (-1), is supposed to load other weights than its own.
struct SupposedLoads {
  int member = -1;
  SliceEdit edit;
  SliceEdit on(int rank) const { return member < 0 || member == rank ? edit : SliceEdit(); }
};
/// An MLP's weights are another layer's, stand for each other, or are slices of another rank or cut across a block.
/// `fits`: whether the wrong rows hold what comes of it.
std::optional<Cause> loaded_mlp_cause(const WrongTap& wrong, const MlpWeights& weights, Axis axis,
                                      const std::function<bool(const SupposedLoads&)>& fits);

/// The heads of the row's columns, over its sequence up to its token; windows are so much wider.
std::vector<double> attended(const WrongTap& wrong, const WrongRow& row, std::int64_t wider = 0);
/// What the router makes of the row's logits, with other options: scores, ids, or the weights of the ids.
std::vector<double> routed(const WrongTap& wrong, const WrongRow& row,
                           const std::function<void(ops::RouteOptions<double>&)>& edit = {});

/// What the op makes of the reference's inputs.
std::vector<double> predicted(const WrongTap& wrong, const WrongRow& row);
/// The op itself, on right inputs, gives the wrong values.
std::optional<Cause> null_cause(const WrongTap& wrong);
std::optional<Cause> embedding_cause(const WrongTap& wrong);
std::optional<Cause> norm_cause(const WrongTap& wrong);
std::optional<Cause> projection_cause(const WrongTap& wrong);
/// Of what every rank makes whole: latent queries, keys and values, their norms, the shared expert's gate.
std::optional<Cause> replicated_weight_cause(const WrongTap& wrong);
/// Queries and keys whose elements turn in other pairs.
std::optional<Cause> pairing_cause(const WrongTap& wrong);
std::optional<Cause> context_cause(const WrongTap& wrong);
std::optional<Cause> window_cause(const WrongTap& wrong);
/// Of a plan that serves requests: the context was made of other keys than its sequence's.
std::optional<Cause> cache_cause(const WrongTap& wrong);
/// Of a context whose keys are spread over cp.
std::optional<Cause> cp_cause(const WrongTap& wrong);
/// Of a context whose keys ranks of dcp share out: merged wrongly, by one of them; or kept wrongly, for all of them.
std::optional<Cause> dcp_merge_cause(const WrongTap& wrong);
std::optional<Cause> dcp_owner_cause(const WrongTap& wrong);
/// The same where what the keys of each rank give went over another group than dcp's.
std::optional<Cause> dcp_group_cause(const WrongTap& wrong);
std::optional<Cause> attention_output_cause(const WrongTap& wrong);
std::optional<Cause> mlp_output_cause(const WrongTap& wrong);
std::optional<Cause> router_cause(const WrongTap& wrong);
std::optional<Cause> moe_output_cause(const WrongTap& wrong);
std::optional<Cause> residual_cause(const WrongTap& wrong);
/// What needs no knowledge of the tap.
std::optional<Cause> general_cause(const WrongTap& wrong);
/// Rows that hold other rows' values.
std::optional<Cause> row_order_cause(const WrongTap& wrong, const std::vector<std::int64_t>& sources);
/// A partial sum of each row, by the rank of tp that makes it; not rounded.
using PartialSumOf = std::function<std::vector<double>(std::int64_t row, int tp)>;
/// Of a sum over tp: one rank has the rows of a microbatch in another order than the others.
std::optional<Cause> rows_of_member_cause(const WrongTap& wrong, const PartialSumOf& partial);
/// A gather over tp that did not happen: a rank holds its own rows, and zeros where the others' belong.
std::optional<Cause> gather_cause(const WrongTap& wrong);

}  // namespace shardproof::diagnosis
