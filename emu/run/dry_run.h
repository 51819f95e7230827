// A dry run: the program of a plan on shapes instead of numbers.
//
// Every rank's records under a stated routing, as a run with numbers would make them. Ranks whose shapes and counts are
// equal share one list: a plan of thousands of ranks has a few.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <tuple>
#include <vector>

#include "emu/plan/deployment.h"
#include "emu/plan/mesh.h"
#include "emu/plan/plan.h"
#include "emu/run/dispatch.h"
#include "emu/run/routing.h"
#include "emu/run/trace.h"
#include "ops/format.h"

namespace shardproof {

/// A plan has more records than are kept; what() says of what, and what would do.
class TooManyRecords : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// One engine iteration over the workload.
enum class DryPass {
  prefill,  ///< every token of every sequence
  decode,   ///< one more token of each sequence, after its length tokens
};

/// By rank.
struct DryTraces {
  std::vector<std::shared_ptr<const RankTrace>> ranks;
  /// How many lists there are.
  std::size_t distinct = 0;

  const RankTrace& of(int rank) const { return *ranks[static_cast<std::size_t>(rank)]; }
};

/// What the contexts of a dry run share.
class DryRun {
 public:
  /// The plan must be valid (validate.h). `model` and `routing` outlive this.
  DryRun(const ModelConfig& model, const Mesh& mesh, const Deployment& deployment, const StatedRouting& routing);

  bool same_in_every_layer() const {
    return routing_.same_in_every_layer() && mesh_.parallel().experts.given.size() <= 1;
  }
  const Mesh& mesh() const { return mesh_; }
  const TokenMap& tokens() const { return deployment_.tokens; }
  /// What is remembered of a layer's dispatch, for all stages: empty until it is filled.
  std::vector<std::int64_t>& remembered(int layer, std::int64_t microbatch, const Coordinates& at) const;
  /// How many slots the rank sends to each expert bucket (Permutation::counts), of its own rows of a microbatch.
  const std::vector<std::int64_t>& sent(int layer, std::int64_t microbatch, const Coordinates& at) const;
  /// What arrives at the rank from every rank of its ep group: [ep * local experts]. Where these all route the same
  /// rows, what its experts serve of them: [local experts].
  std::vector<std::int64_t> arriving(int layer, std::int64_t microbatch, const Coordinates& at) const;
  /// The same of every rank of its etp group, one after another.
  std::vector<std::int64_t> arriving_over_etp(int layer, std::int64_t microbatch, const Coordinates& at) const;
  /// Of these, how many each of the rank's experts has: [local experts].
  std::vector<std::int64_t> rows_of_experts(int layer, std::int64_t microbatch, const Coordinates& at) const;

 private:
  /// By rank of a stage, what it sends; empty until it is asked for.
  using Sent = std::vector<std::vector<std::int64_t>>;
  /// Whose rows come to the rank.
  std::vector<int> senders_to(int rank) const;
  Sent& sent_by_ranks(int layer, std::int64_t microbatch) const;
  const std::vector<std::int64_t>& sent_by(Sent& known, int layer, std::int64_t microbatch, int rank) const;

  const ModelConfig& model_;
  const Mesh& mesh_;
  const Deployment& deployment_;
  const StatedRouting& routing_;
  Sent& of_stage(std::map<std::pair<int, std::int64_t>, Sent>& all, int layer, std::int64_t microbatch) const;
  /// By layer, or kind of layer, and microbatch.
  mutable std::map<std::pair<int, std::int64_t>, Sent> sent_, remembered_;
};

/// What a dry run takes at most: ops that are kept at once (2 GB), passes of ranks through their stages, and counts of
/// slots of an expert in these.
constexpr std::size_t kMostRecords = std::size_t{1} << 24;
constexpr std::int64_t kMostPasses = std::int64_t{1} << 20;
constexpr std::int64_t kMostCounts = std::int64_t{1} << 27;

/// Runs the plan dry and hands over each list that is not like another's, with the first rank that has it; no list is
/// kept. Returns by rank which list is its own, in the order in which they came. Throws TooManyRecords.
std::vector<int> fold_dry_run(const Plan& plan, ops::Format format, DryPass pass, const StatedRouting& routing,
                              const std::function<void(int rank, std::shared_ptr<const RankTrace> trace)>& use);

enum class DryLists {
  whole,   ///< every record is there
  folded,  ///< those of like layers and like microbatches once (RankTrace::runs): for who asks what they add up to
};

/// Runs the plan dry, in the format of the run that it stands for (which decides the bytes of an element). Throws
/// TooManyRecords, of which a folded list has as many as a whole one.
DryTraces dry_run(const Plan& plan, ops::Format format, DryPass pass, const StatedRouting& routing,
                  DryLists lists = DryLists::whole);

/// What a step of an engine runs of a sequence.
struct StepChunk {
  std::int64_t begin = 0;
  std::int64_t count = 0;
  std::int64_t of_prompt = 0;  ///< how many of these tokens, the first of them, are the prompt's
  auto operator<=>(const StepChunk&) const = default;
};

/// The same of one step of an engine, of a plan that serves requests: by data-parallel replica, what it runs.
DryTraces dry_run_step(const Plan& plan, ops::Format format, const std::vector<std::vector<StepChunk>>& step,
                       const StatedRouting& routing);

}  // namespace shardproof
