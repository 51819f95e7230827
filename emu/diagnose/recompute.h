// Parts of the model computed anew from the reference's taps, right or under a supposed fault: what a rank would have
// got. Everything is rounded as the program stores it.
#pragma once

#include <functional>
#include <map>
#include <span>
#include <string>
#include <tuple>
#include <vector>

#include "emu/judge/prepared.h"
#include "emu/plan/layout.h"
#include "emu/plan/mesh.h"
#include "emu/plan/stages.h"
#include "emu/plan/token_map.h"

namespace shardproof {

/// Whose slice of a weight is used: that of a layer, or of a layer and a rank of tp; and the layer of the bias.
struct WeightsFrom {
  int layer = 0;
  int tp = 0;
  int bias = -1;  ///< -1: that which computes
};

/// What a rank is supposed to load where it should load rows and columns of a weight.
using SliceEdit = std::function<void(WeightSpec& spec, Range& rows, Range& cols)>;

/// A routed expert with the weights that it has in a layer.
struct ExpertFrom {
  int layer = 0;
  std::int64_t expert = 0;
};

/// Whose slices of an expert are used, ranks of etp: the same of all three weights, unless a rank holds them wrongly.
struct EtpSlices {
  int gate_up = 0;
  int down = 0;
  int on = -1;  ///< the rank that computes: the first adds the down projection's bias; -1: that whose slice `down` is
};

/// A query head and the key/value head that it attends with.
struct HeadPair {
  std::int64_t query = 0;
  std::int64_t key_value = 0;
  std::int64_t sink = -1;  ///< the query head whose sink takes part; -1: its own
  std::int64_t wider = 0;  ///< keys that the layer's window has beside its own
  int sinks_of = -1;       ///< the layer whose sinks take part; -1: its own
};

/// What a rank takes for its own in the absorbed form of latent attention.
struct AbsorbedWith {
  std::int64_t keys_of = 0;    ///< the head whose keys it absorbs
  std::int64_t values_of = 0;  ///< whose values it makes
  double scale = 0;            ///< of the scores
};

class Recompute {
 public:
  using Row = std::vector<double>;

  Recompute(const Plan& plan, const PreparedReference& reference);

  const Plan& plan() const { return plan_; }
  /// Of the first stage's rank at that place along tp, which every stage has alike.
  const Layout& layout(int tp) const { return layouts_by_tp_[static_cast<std::size_t>(tp)]; }
  const Mesh& mesh() const { return mesh_; }
  const Batch& batch() const { return reference_.batch; }
  ops::Format format() const { return reference_.format; }
  const TokenMap& tokens() const { return tokens_; }
  /// The rows that a row's microbatch has beside it, itself too.
  TokenRows rows_beside(std::int64_t row) const;
  /// The rank that routes the row in the layer.
  int routing_rank(int layer, std::int64_t row) const;

  /// The layer's tap of that name; without a layer (-1) the name alone. It must exist.
  const ExpectedTap& tap(int layer, TapKind kind) const;
  /// -1: a row of zeros.
  std::span<const double> row(const ExpectedTap& tap, std::int64_t row) const;
  /// The stream that the norm of a block reads: "attention.norm", "moe.norm" or "final_norm".
  const ExpectedTap& norm_input(int layer, TapKind norm) const;

  /// The slice of a weight as a rank would hold it.
  LoadedWeight<double> slice(const WeightSpec& spec, Range rows, Range cols);
  LoadedWeight<double> whole(const WeightSpec& spec) { return slice(spec, {0, spec.rows}, {0, spec.cols}); }

  /// What a block's output adds to the stream: times the model's multiplier, where it has one.
  Row branch(const ExpectedTap& tap, std::int64_t index) const;

  /// The norm of a stream, with the bias that goes with the weight, or with another of them.
  Row norm(std::span<const double> x, const WeightSpec& weight, const WeightSpec* biased = nullptr);
  /// Where a row of q, k or v is supposed to be from.
  struct Origin {
    std::int64_t row = 0;       ///< of what it is projected from
    int layer = 0;              ///< of the weights
    std::int64_t position = 0;  ///< that it is rotated for
    int vectors = -1;           ///< layer of its norms and biases; -1: that of the weights
    /// A norm over all heads has the squares of these columns only, and divides them by how many they are, or by the
    /// whole width.
    enum class Squares : std::int8_t { of_all, of_slice, of_slice_over_all } squares = Squares::of_all;
    std::int64_t norm_shift = 0;  ///< the norm's weight begins so many columns further, round its end
    std::int64_t bias_shift = 0;  ///< so does the bias
    bool other_pairs = false;     ///< elements 2i and 2i + 1 turn together where i and i + d/2 should, or the reverse
    /// Keys are projected with the values' weight, perhaps with its bias too, and the reverse; or queries are normed
    /// with the keys' weight, and the reverse.
    enum class Exchanged : std::int8_t { nothing, weights, weights_and_biases, norms } exchanged = Exchanged::nothing;
    /// Queries or keys of these columns are projected with other rows of the weight, or another layer's; a norm over
    /// all heads is off everywhere.
    struct Elsewhere {
      Range cols;
      int layer = 0;
      std::int64_t begin = 0;
      std::int64_t row = -1;  ///< of what it is projected from; -1: the same
      bool in_row = true;     ///< what is asked for is of the rank that is wrong
      bool in_squares = true;
    } elsewhere = {};
  };
  /// Columns, whole heads, of attention.q, k or v of the layer.
  Row heads(TapKind kind, int layer, const Origin& from, Range cols);
  /// stored(x W^T + b), the given rows of W; b perhaps another layer's, or so many rows further on, round its end.
  Row project(std::span<const double> x, const WeightSpec& weight, Range rows, int bias_layer = -1,
              std::int64_t bias_shift = 0);
  void rotate(Row& heads, int layer, const Origin& from) const;
  /// One head of attention for the query of a row, which attends to so many keys, the last of them as its own.
  Row attend(int layer, std::int64_t query, Range keys, const HeadPair& heads);
  /// The same to the keys of these rows.
  Row attend(int layer, std::int64_t query, std::span<const std::int64_t> keys, const HeadPair& heads);
  /// The row's token attends in the absorbed form in that layer, as attend() then does.
  bool is_absorbed(int layer, std::int64_t row) const;
  /// The same of such a row, with the weights and the scale of `with`.
  Row attend_absorbed(int layer, std::int64_t query, std::span<const std::int64_t> keys, std::int64_t head,
                      const AbsorbedWith& with);
  /// The same over dcp, where each rank scales the scores of the latents that it keeps, a part.
  Row attend_absorbed_parts(int layer, std::int64_t query, std::span<const std::vector<std::int64_t>> parts,
                            std::int64_t head, std::span<const double> scales);
  /// One head of attention of the row to these rows' keys, in order of the parts that they come in, no window: weighed
  /// by what each is of the whole, or every part that has keys alike.
  /// Of the keys in `beside` only the largest score counts.
  Row attend_to_parts(int layer, std::int64_t row, std::span<const std::vector<std::int64_t>> parts,
                      const HeadPair& heads, bool weighed = true, std::span<const std::int64_t> beside = {});
  /// One head of attention of the row to some of the keys that it sees, before that is merged with what the others give
  /// (ops/attention_parts.h): in `exact` numerators and their denominator, else a context and the log of its sum.
  struct KeyPart {
    Row context;
    double sum = 0;
  };
  KeyPart attend_to_part(int layer, std::int64_t row, std::span<const std::int64_t> keys, Range seen,
                         const HeadPair& heads);
  /// The partial sum of the attention's output that the tp rank makes of a row, its weights perhaps from elsewhere; not
  /// rounded.
  Row attention_partial_sum(int layer, std::int64_t row, int tp, const WeightsFrom& from);
  Row embedding_partial_sum(std::int64_t row, int tp);
  /// Of the MLP that serves every token; not rounded.
  Row mlp_partial_sum(int layer, std::int64_t row, int tp, const SliceEdit& loads = {});
  /// What an expert makes of the layer's normed row, of one slice over etp; not rounded.
  std::span<const double> expert_partial_sum(int layer, std::int64_t row, const ExpertFrom& from,
                                             const EtpSlices& slices);
  /// The same with what that rank of etp loads; not kept for other rows.
  Row expert_partial_sum(int layer, std::int64_t row, std::int64_t expert, int etp, const SliceEdit& loads);
  /// The stored sum over the slices.
  Row expert_output(int layer, std::int64_t row, const ExpertFrom& from);
  void finish(Row& values) const;

 private:
  /// A head of a layer's queries, keys or values, of these rows.
  struct Head {
    int layer = 0;
    TapKind kind{};
    std::int64_t head = 0;
  };
  ops::Matrix<double> head_of(const Head& of, std::span<const std::int64_t> rows) const;
  /// Of the absorbed form: a head's rows of the weight, its query of latents with the keys of a head, what the cache
  /// has of these rows, and the context from what the query weighs of them, with the values of a head.
  LoadedWeight<double> weight_of_latent_head(int layer, std::int64_t head);
  Row absorbed_query(int layer, std::int64_t query, std::int64_t head, std::int64_t keys_of);
  ops::Matrix<double> latents_of(int layer, std::span<const std::int64_t> keys) const;
  Row expanded(int layer, const Row& latents, std::int64_t values_of);
  /// Held within -limit..limit, unless that is 0.
  void clip(Row& values, double limit) const;
  Row latent_heads(TapKind kind, int layer, const Origin& from, Range cols);
  /// The product with the weight of queries, keys or values, before norm and rotation.
  Row product(TapKind kind, int layer, const Origin& from, Range cols, bool elsewhere);
  /// Columns of queries or keys, normed over all heads.
  void norm_over_heads(Row& y, TapKind kind, int layer, const Origin& from, Range cols);
  Row vector(const WeightSpec& spec, Range cols);
  /// x through one slice of an expert, not rounded, into y; `spec` gives its weights.
  struct ExpertSlice {
    Range gate_up;
    Range down;
    bool adds_bias = false;  ///< of the down projection
  };
  void run_expert(int layer, ops::MatrixView<const double> x, const ExpertFrom& from, const ExpertSlice& slice,
                  const SliceEdit& loads, ops::MatrixView<double> y);

  const Plan& plan_;
  Mesh mesh_;
  Stages stages_;
  const PreparedReference& reference_;
  mutable Row zeros_;
  std::vector<Layout> layouts_by_tp_;
  TokenMap tokens_;
  std::vector<bool> absorbed_;  // rows; or none
  std::map<std::tuple<int, int, std::int64_t, int, int, int>, ops::Matrix<double>> experts_;
};

}  // namespace shardproof
