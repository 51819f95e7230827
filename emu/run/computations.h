// The named computations of a rank's program: half of what it is written in (context.h has the calls).
//
//   Tensor q = ctx.linear(Op::attention_q, layer, x, Weight::attention_q);
//
// One statement computes, rounds as a kernel stores, and records. The same program runs on numbers (T float or double)
// and dry (T ShapeOnly): then tensors are shapes, and what depends on data follows from a stated routing. Row ranges
// are places among the rows that the rank's attention works on (RankTokens).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>
#include <utility>
#include <vector>

#include "emu/model/taps.h"
#include "emu/plan/cache_share.h"
#include "emu/plan/layout.h"
#include "emu/plan/token_map.h"
#include "emu/run/dispatch.h"
#include "emu/run/ground.h"
#include "emu/run/op.h"
#include "emu/run/tensor.h"
#include "emu/run/trace.h"
#include "ops/attention.h"
#include "ops/cost.h"
#include "ops/format.h"
#include "ops/router.h"

namespace shardproof {

struct AbsorbedForm;

/// The rows of one dispatch, by place: rows[i] is where row i comes from. Dry, only the count is known.
struct RowOrder {
  std::int64_t count = 0;
  std::vector<std::int64_t> rows;
};

template <class T>
class Computations {
 public:
  static constexpr bool kDry = kIsDry<T>;
  using Tensor = TensorOf<T>;
  using Scalar = std::conditional_t<kDry, float, T>;
  using View = std::conditional_t<kDry, ShapeMatrix, ops::MatrixView<const Scalar>>;
  using Ids = std::conditional_t<kDry, ShapeMatrix, ops::Matrix<std::int32_t>>;
  using Counts = std::vector<std::int64_t>;
  /// The chosen experts of the rank's own rows and their weights, [own rows, top_k].
  struct Routing {
    Ids ids;
    Tensor weights;
  };

  Computations(const ModelConfig& model, ops::Format format, const Layout& layout, const RankTokens& tokens,
               std::int64_t microbatch, RankTrace* trace, Ground<T> ground)
      : model_(model),
        format_(format),
        layout_(layout),
        tokens_(tokens),
        microbatch_(static_cast<std::int32_t>(microbatch)),
        trace_(trace),
        ground_(ground) {}

  const ModelConfig& model() const { return model_; }
  const Layout& layout() const { return layout_; }
  const LayerLayout& held(int layer) const { return layout_.layer(model_, layer); }
  const Parallel& parallel() const { return layout_.parallel; }
  bool is_exact() const { return format_ == ops::Format::exact; }
  bool sp() const { return layout_.parallel.sp && layout_.parallel.tp > 1; }
  std::int64_t rows() const { return tokens_.rows.count(); }
  Range own_rows() const { return tokens_.own; }
  Range stream_rows() const { return tokens_.stream; }
  /// The rank's own rows among the global ones.
  TokenRows own_tokens() const { return tokens_.rows.part(tokens_.own); }

  // Computations. Each result is stored: rounded to the run's format, unless it is said to be a partial sum.

  /// Vocabulary-parallel: each rank looks up the ids that it holds, the others' rows are zero. A partial sum over tp,
  /// [all rows, hidden].
  Tensor embed(Op op);
  Tensor rms_norm(Op op, int layer, const Tensor& x, Weight weight);
  /// Of the residual stream: the same, or the model's layer norm with a bias.
  Tensor norm(Op op, int layer, const Tensor& x, Weight weight, Weight bias);
  /// x W^T + b, [rows of x, rows of W]; b only where the layer has that bias. Of the head, then divided by the model's
  /// logits_scaling.
  Tensor linear(Op op, int layer, View x, Weight weight, std::optional<Weight> bias = std::nullopt);
  /// The same, a partial sum over tp: rounded as a kernel stores one that is to be sent, if it is. The first rank of tp
  /// adds the bias, so that the sum has it once.
  Tensor partial_linear(Op op, int layer, const Tensor& x, Weight weight, std::optional<Weight> bias = std::nullopt);
  /// Sums of squares of the rank's queries and of its keys, of which each head counts on one rank. A partial sum over
  /// tp, [all rows, 2]; not stored.
  Tensor squares(Op op, int layer, const Tensor& q, const Tensor& k);
  /// Norms the rank's columns of what is as wide as the whole weight, in place, from the squares of all columns.
  void full_norm(Op op, int layer, Tensor& heads, const Tensor& squares, Weight weight);
  /// Norms each head [all rows, heads * head_dim] in place.
  void head_norm(Op op, int layer, Tensor& heads, Weight weight);
  /// Clamps queries, keys or values in place, where the layer does: a part of the op before it.
  void clip(int layer, Tensor& heads) const;
  /// Latent attention: columns begin..begin+count of x.
  Tensor columns(const Tensor& x, std::int64_t begin, std::int64_t count) const;
  struct KeysAndValues {
    Tensor k, v;
  };
  /// Of a pass whose tokens are in both forms of latent attention, or in one (emu/plan/latent_form.h): how many rows
  /// are in one, these rows of x, and back to their places in `all`.
  std::int64_t rows_in(LatentForm form) const;
  Tensor take_rows(LatentForm form, const Tensor& x) const;
  void put_rows(LatentForm form, const Tensor& x, Tensor& all) const;
  /// Latent attention, absorbed: of local heads [rows, heads * (rank + rope dim)], from queries [rows, heads *
  /// head_dim].
  Tensor absorb_queries(Op op, int layer, const Tensor& q);
  /// What these weigh of the latents of their sequences in the cache, [rows, heads * rank].
  Tensor attend_to_latents(Op op, int layer, const Tensor& q);
  /// The context of local heads from there.
  Tensor expand_context(Op op, int layer, const Tensor& latents);
  /// Latent attention: of local heads, from their product with the latent and the key that they share.
  KeysAndValues split_heads(Op op, int layer, const Tensor& product, const Tensor& shared);
  /// Rotates heads [all rows, heads * head_dim] in place.
  void rope(Op op, int layer, Tensor& heads);
  /// Of local heads over all rows: of whole sequences, or with the past that the cache has. Keys and values are then
  /// read from there; those of latent attention are what was made of read_cache(), of tokens in the plain form, as the
  /// queries are. With context
  /// parallelism k and v are those of all tokens, in order of the sequences; so is q in an all-to-all, of `heads` of
  /// the rank's.
  Tensor attention(Op op, int layer, const Tensor& q, const Tensor& k, const Tensor& v);
  /// Of context parallelism: rows of every rank of cp, or of those among which heads are dealt out, one rank after
  /// another, to the order of the sequences.
  RowOrder order_over_cp() const { return order_over({0, parallel().cp}); }
  RowOrder order_over_dealt() const {
    const std::int64_t ranks = parallel().heads_dealt();
    return order_over({layout_.at.cp / ranks * ranks, ranks});
  }
  /// Columns cut into `parts`, those of one after those of the other: [parts * rows, columns / parts]; and back.
  Tensor split_columns(Op op, int layer, const Tensor& x, int parts);
  Tensor join_columns(Op op, int layer, const Tensor& x, int parts);
  /// What travels round a ring: [rows, columns of k and of v].
  Tensor beside(const Tensor& k, const Tensor& v) const;
  /// What the keys of the members of a ring make of the queries of the rank's own, one member after another.
  struct RingParts {
    std::vector<int> keys_of;          ///< the member that holds them, in the order in which they came
    std::vector<Tensor> held;          ///< in `exact`: keys beside values, until the largest score of all is known
    Tensor maximum;                    ///< in `exact`: of the scores
    std::vector<Tensor> context, lse;  ///< in the float formats
  };
  /// Of keys beside values that a member holds.
  void attend_to_part(Op op, int layer, const Tensor& q, const Tensor& held, int keys_of, RingParts& parts);
  /// What it was called with may be needed once more, in `exact`.
  void keep_part(Tensor held, RingParts& parts) const;
  /// Rows that a member of the ring has.
  std::int64_t rows_of_member(int member) const;
  Tensor merge_parts(Op op, int layer, const Tensor& q, const RingParts& parts);
  /// Of decode context parallelism: keys beside values that the rank keeps of the step's sequences, one after another,
  /// and what queries of all ranks of dcp, one rank after another, give with them (ops/attention_parts.h). Of latent
  /// attention latents, of sequences with tokens in the absorbed form, and these tokens' queries of latents.
  Tensor kept_keys(int layer) const;
  struct KeptPart {
    Tensor context;  ///< in `exact` the numerators
    Tensor sums;     ///< logs of the sums of exponentials; in `exact` the sums themselves
  };
  /// In `exact`, of each query and head: the maximum of their scores.
  Tensor largest_scores(int layer, const Tensor& q, const Tensor& kept) const;
  KeptPart attend_to_kept(Op op, int layer, const Tensor& q, const Tensor& kept, const Tensor& maximum);
  /// Of the rank's queries, from what the keys of every rank of dcp give, one rank after another.
  Tensor merge_kept(Op op, int layer, const KeptPart& all);
  /// What read_cache() gives on every rank of dcp, one after another, to the order of the sequences.
  RowOrder order_over_dcp() const;
  /// The plan serves requests, whose past is in a cache.
  bool cached() const;
  /// False only where a fault has it so.
  bool writes_first() const;
  /// The rows of all: keys and values, or of latent attention the normed latent and the rotated key that heads share.
  void write_cache(Op op, int layer, const Tensor& first, const Tensor& second);
  /// Of latent attention: what the cache holds of all tokens up to this pass' last in the plain form, sequence by
  /// sequence, of those that have any in it: [tokens, kv_lora_rank + rope dim]. Over dcp what the rank keeps of them,
  /// each sequence in as many rows as the rank with the most needs.
  Tensor read_cache(Op op, int layer);
  /// x = factor x.
  void scale(Op op, int layer, Tensor& x, double factor);
  /// x += factor y; the product is stored before it is added.
  void add_scaled(Op op, int layer, Tensor& x, const Tensor& y, double factor);
  /// What a block makes, to the residual stream, times the model's multiplier: x += y.
  void add_to_stream(Op op, int layer, Tensor& x, const Tensor& y) {
    if (model_.residual_multiplier != 1) return add_scaled(op, layer, x, y, model_.residual_multiplier);
    add(op, layer, x, y);
  }
  /// x += y.
  void add(Op op, int layer, Tensor& x, const Tensor& y);
  /// Chooses and weighs the experts of the rank's own rows. A replayed choice takes the place of the router's own after
  /// that has been tapped.
  Routing route(Op op, int layer, const Tensor& logits);
  Tensor gather_rows(Op op, int layer, View x, const RowOrder& order);
  /// What an expert makes on the way to its output, for the inner taps: a row for each of its input's, or none at all.
  struct ExpertSteps {
    Tensor gate;
    Tensor up;
    Tensor activation;
  };
  /// The rank's slice of its `expert`-th expert on rows begin..begin+count of x; partial sums over etp, into the same
  /// rows of y, and what led to them into those of `steps`, if it has any.
  void expert(Op op, int layer, int expert, const Tensor& x, Range rows, Tensor& y, ExpertSteps& steps);
  /// Own rows [own rows, hidden] from the experts' outputs, each at its place in the dispatch.
  Tensor combine(Op op, int layer, const Tensor& outputs, const Permutation& permutation, const Tensor& weights);
  /// The same of the outputs of the rank's own experts, of tokens that other ranks' experts serve too: a partial sum
  /// over ep, stored as partial_linear() says.
  Tensor combine_selected(Op op, int layer, const Tensor& outputs, const Selection& selection, const Tensor& weights);
  /// The rank's slice of the MLP that serves every token; a partial sum over tp, stored as partial_linear() says. What
  /// led to it into `steps`, if somebody takes the inner taps.
  Tensor mlp(Op op, int layer, const Tensor& x, ExpertSteps& steps);
  /// x times the sigmoid of its row's logit.
  Tensor gated(Op op, int layer, const Tensor& x, const Tensor& logits);
  void round(Tensor& x) const;
  /// The rows are padding. What it holds is no number, so that whoever reads it is found out.
  bool padded() const { return tokens_.padded; }
  void poison_padding(Tensor& x) const;
  /// What comes of its attention, which has no keys.
  Tensor context_of_padding(int layer) const;
  /// As a kernel stores a partial sum that is to be reduced over so many ranks; of one nothing is sent.
  void round_partial(Tensor& x, int ranks) const;

  /// Bookkeeping of the dispatch. The experts that serve the rank's own rows: of its choices, physical ones.
  Ids physical_experts(int layer, const Routing& routing) const;
  /// Where the slots of these go.
  Permutation permute(int layer, const Ids& experts) const;
  /// What this rank's experts serve of the tokens of several, which it has all of; `rows_of` are those of each.
  Selection select(int layer, const Ids& experts, const Counts& rows_of) const;
  /// The rows own to each rank of the ep group.
  std::vector<TokenRows> own_over_ep() const;
  /// Places in order of the local expert, of chunks that hold counts[c * experts + e] rows of each.
  RowOrder order_by_expert(const Counts& counts, std::int64_t experts) const;
  RowOrder inverse_of(const RowOrder& order) const;
  /// The rank's own rows of a part of the residual stream.
  View own_of(const Tensor& stream) const;

  /// Hands a tensor to whoever holds the run to the reference, as the table of taps places it.
  template <class M>
  void tap(TapKind kind, int layer, const M& tensor) const;
  /// The same of a part that is not the rank's own (TapParts::over_keys).
  template <class M>
  void tap_part(TapKind kind, int layer, int part, const M& tensor) const;
  /// The same of the rows in the absorbed form.
  void tap_absorbed(TapKind kind, int layer, const Tensor& tensor, int part = -1) const;
  /// The same where the layer has such a tap.
  void tap_if(TapKind kind, int layer, const Tensor& tensor) const;
  /// Somebody takes the inner taps.
  bool tapped_inside() const;
  /// The same for an inner tap whose rows are slots: `slots` has each row's. One that does not fit is not handed out.
  void tap_slots(TapKind kind, int layer, const Tensor& tensor, const std::vector<std::int64_t>& slots) const;
  /// The same of a partial sum over ep of all of these rows.
  void tap_over_ep(TapKind kind, int layer, const Tensor& tensor, const std::vector<TokenRows>& rows_of) const;
  /// Those slots of the selected rows.
  std::vector<std::int64_t> selected_slots(const Selection& selection, const std::vector<TokenRows>& rows_of) const;
  /// The slots of the rank's own rows in the order of their dispatch, and of those that its experts work on in the
  /// order of their arrival; none where no inner taps are taken.
  std::vector<std::int64_t> sent_slots(int layer, const Permutation& permutation) const;
  std::vector<std::int64_t> slots_of_experts(int layer) const;

 protected:
  int element_bytes() const { return ops::bytes_per_element(format_); }

  const ModelConfig& model_;
  ops::Format format_;
  const Layout& layout_;
  const RankTokens& tokens_;
  std::int32_t microbatch_;
  RankTrace* trace_;
  Ground<T> ground_;

 private:
  void record(Op op, int layer, std::int64_t rows, std::int64_t cols, ops::Cost cost, int expert = -1) const;
  /// Shape of the rank's slice of a weight.
  ShapeMatrix slice_shape(Weight weight, int layer) const;
  const WeightSlice<Scalar>& slice(Weight weight, int layer, int expert = -1) const;
  /// Adds the layer's bias, if it has one, to these outputs of an unrounded result.
  void add_bias(int layer, std::optional<Weight> bias, Range outputs, ops::MatrixView<Scalar> y) const;
  ops::RouteOptions<Scalar> route_options(int layer) const;
  void choose_and_weigh(int layer, const Tensor& logits, Routing& routing);
  void route_padding(Routing& routing) const;
  /// The rows of slots below `count`, and these slots.
  std::pair<Tensor, std::vector<std::int64_t>> without_padding(const Tensor& tensor,
                                                               const std::vector<std::int64_t>& slots,
                                                               std::int64_t count) const;
  void choose_replicas(int layer, const Ids& ids, Ids& physical) const;
  ops::AttentionOptions<Scalar> attention_options(int layer) const;
  /// The tokens that the rank keeps, and those that it is to attend to, as it believes.
  CacheShare believed_share() const;
  std::vector<Chunk> cached_chunks() const;
  /// Tokens of one of the pass' sequences that are in one form of latent attention, as the rank believes.
  struct FormPiece {
    std::size_t sequence = 0;  ///< its place in the pass
    std::int64_t row = 0;      ///< of the first among the rank's
    Chunk chunk;
  };
  std::vector<FormPiece> pieces_in(LatentForm form) const;
  /// The sequences of a pass without latent attention, as such pieces.
  std::vector<FormPiece> whole_pieces() const;
  /// What ranks of dcp attend with: whose queries, and where keys and values lie in a row of what is kept.
  struct KeptHeads {
    std::vector<FormPiece> pieces;
    std::int64_t key_cols = 0;
    Range value_cols;
    ops::AttentionOptions<Scalar> options;
    bool latent = false;
    std::vector<Chunk> chunks() const {
      std::vector<Chunk> all;
      for (const FormPiece& piece : pieces) all.push_back(piece.chunk);
      return all;
    }
  };
  KeptHeads kept_heads(int layer) const;
  /// Hands out what the keys of one rank of dcp give.
  void tap_kept(int layer, int keys_of, const KeptPart& part) const;
  /// What of the pass is in the plain form: its chunks.
  RankTokens plain_tokens() const;
  AbsorbedForm absorbed_form(int layer) const;
  /// Of the rows of these ranks of cp.
  RowOrder order_over(Range ranks) const;
  std::vector<Chunk> own_member() const {
    return tokens_.of_member(layout_.at.cp / parallel().heads_dealt(), parallel().heads_dealt());
  }
  /// Hands out what a member of the ring computed, of the rank's part of its heads.
  void tap_of_member(TapKind kind, int layer, int part, const Tensor& tensor) const;
  /// Of the queries in the microbatch's rows, and in all keys in order of the sequences.
  std::vector<ops::AttentionSpan> spans_over_cp() const;
  void inject_part_fault(int layer, int keys_of, Tensor& context, Tensor& lse) const;
  Tensor merge_exact_parts(int layer, const Tensor& q, const RingParts& parts) const;
  void attend(int layer, const Tensor& q, const Tensor& k, const Tensor& v,
              const ops::AttentionOptions<Scalar>& options, Tensor& context) const;
  /// Over a cache: what a fault has of chunks that average their past (FaultInjector::averages_past). Keys and values
  /// of the latent's tokens are k and v.
  void average_past(int layer, const Tensor& q, const Tensor& k, const Tensor& v,
                    const ops::AttentionOptions<Scalar>& options, Tensor& context) const;
  void inject_routing_fault(int layer, const Tensor& logits, Routing& routing) const;
  /// Lets a fault change a float result, if there is one.
  template <class... From>
  void inject_result_fault(Op op, int layer, const ops::MatrixView<Scalar>& result, const From&... operands) const;
};

extern template class Computations<float>;
extern template class Computations<double>;
extern template class Computations<ShapeOnly>;

}  // namespace shardproof
