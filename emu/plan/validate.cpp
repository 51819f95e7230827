#include "emu/plan/validate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "emu/plan/internal/validate_context_parallel.h"
#include "emu/plan/internal/validate_workload.h"
#include "emu/plan/neighbours.h"

namespace shardproof {
namespace {

/// Collects problems; every method words one kind of rule.
class Checker {
 public:
  explicit Checker(const Plan& plan) : plan_(plan), model_(plan.model), p_(plan.parallel) {}

  std::vector<Problem> run() {
    const bool model_counts = check_model();
    const bool degrees = check_degrees();
    if (degrees) check_world();
    if (degrees && model_counts) check_divisions();
    validate_workload(plan_, degrees, problems_);
    if (model_counts) validate_routing(plan_, problems_);
    if (degrees && model_counts && !problems_.empty()) suggest();
    return std::move(problems_);
  }

 private:
  /// Kinds of layers may break the same rule in the same way: that is said once.
  void problem(std::string field, std::string message) {
    const bool said = std::ranges::any_of(
        problems_, [&](const Problem& other) { return other.field == field && other.message == message; });
    if (!said) problems_.push_back({std::move(field), std::move(message)});
  }

  bool at_least_one(const char* field, std::int64_t value) {
    if (value >= 1) return true;
    problem(field, fmt::format("{} is needed to be at least 1", value));
    return false;
  }

  bool check_model() {
    bool good = true;
    good &= at_least_one("model.hidden_size", model_.hidden_size);
    good &= at_least_one("model.num_hidden_layers", model_.layers.size());
    for (const LayerSpec& layer : model_.layers.kinds()) {
      good &= at_least_one("model.num_attention_heads", layer.attention.heads);
      good &= at_least_one("model.num_key_value_heads", layer.attention.kv_heads);
      good &= at_least_one("model.head_dim", layer.attention.head_dim);
      good &= at_least_one("model.intermediate_size", layer.feed_forward.intermediate_size);
      if (layer.feed_forward.dense()) continue;
      good &= at_least_one("model.num_local_experts", layer.feed_forward.num_experts);
      good &= at_least_one("model.num_experts_per_tok", layer.feed_forward.top_k);
    }
    good &= at_least_one("model.vocab_size", model_.vocab_size);
    if (!good) return false;
    for (const LayerSpec& layer : model_.layers.kinds()) check_layer(layer);
    if (!std::isfinite(model_.rms_norm_eps) || model_.rms_norm_eps < 0) {
      problem("model.rms_norm_eps", fmt::format("{}; a finite number, 0 or above, is needed", model_.rms_norm_eps));
    }
    for (const LayerSpec& layer : model_.layers.kinds()) {
      const double theta = layer.attention.rope.theta;
      if (std::isfinite(theta) && theta > 0) continue;
      problem("model.rope_theta", fmt::format("{}; a finite number above 0 is needed", theta));
    }
    return true;
  }

  void check_layer(const LayerSpec& layer) {
    const std::int64_t heads = layer.attention.heads, kv = layer.attention.kv_heads, dim = layer.attention.head_dim;
    const std::int64_t experts = layer.feed_forward.num_experts, top_k = layer.feed_forward.top_k;
    if (dim % 2 != 0) {
      problem("model.head_dim",
              fmt::format("{} is odd; rotary embeddings turn pairs, so {} or {} is needed", dim, dim - 1, dim + 1));
    }
    if (heads % kv != 0) {
      problem("model.num_key_value_heads", fmt::format("{} query heads / {} key-value heads = {} remainder {}; {}",
                                                       heads, kv, heads / kv, heads % kv, divisors_near(heads, kv)));
    }
    check_rope(layer.attention);
    check_groups(layer.feed_forward);
    if (top_k > experts) {
      problem("model.num_experts_per_tok",
              fmt::format("{} experts for a token, but a layer has {}; 1 to {} is needed", top_k, experts, experts));
    }
  }

  void check_rope(const AttentionSpec& attention) {
    const std::int64_t turned = attention.rope_dim();
    if (turned % 2 != 0 || turned < 2 || turned > attention.head_dim) {
      problem(attention.latent() ? "model.qk_rope_head_dim" : "model.partial_rotary_factor",
              fmt::format("{} of {} elements of a head turn; an even number of them is needed", turned,
                          attention.head_dim));
    } else if (attention.latent() && turned == attention.head_dim) {
      problem("model.qk_nope_head_dim", "0; at least 1 is needed");
    }
    if (attention.latent() && attention.kv_heads != attention.heads) {
      problem("model.num_key_value_heads",
              fmt::format("{}; latent attention has as many as query heads, {}", attention.kv_heads, attention.heads));
    }
  }

  void check_groups(const FeedForwardSpec& spec) {
    if (spec.groups <= 1 && spec.top_groups <= 1) return;
    if (spec.num_experts % spec.groups != 0) {
      problem("model.n_group", fmt::format("{} experts / {} groups = {} remainder {}; {}", spec.num_experts,
                                           spec.groups, spec.num_experts / spec.groups, spec.num_experts % spec.groups,
                                           divisors_near(spec.num_experts, spec.groups)));
      return;
    }
    const std::int64_t size = spec.num_experts / spec.groups;
    if (spec.top_groups < 1 || spec.top_groups > spec.groups) {
      problem("model.topk_group",
              fmt::format("{} of {} groups; 1 to {} is needed", spec.top_groups, spec.groups, spec.groups));
    } else if (spec.top_groups * size < spec.top_k) {
      problem("model.topk_group", fmt::format("{} groups of {} experts have fewer than the {} that serve a token",
                                              spec.top_groups, size, spec.top_k));
    } else if (spec.scoring == Scoring::sigmoid && size < 2) {
      problem("model.n_group", fmt::format("{} groups of one expert; a group is as good as its two best", spec.groups));
    }
  }

  bool check_degrees() {
    bool good = true;
    const auto degree = [&](const char* field, int value) {
      if (value >= 1 && value <= kMaxWorld) return;
      problem(field, fmt::format("{} is out of range; 1 to {} is needed", value, kMaxWorld));
      good = false;
    };
    degree("parallel.tp", p_.tp);
    degree("parallel.cp", p_.cp);
    degree("parallel.dp", p_.dp);
    degree("parallel.pp", p_.pp);
    degree("parallel.ep", p_.ep);
    degree("parallel.etp", p_.etp);
    degree("parallel.dcp", p_.dcp);
    return good;
  }

  std::string product() const {
    return fmt::format("tp {} * cp {} * dp {} * pp {} = {}", p_.tp, p_.cp, p_.dp, p_.pp, world_text());
  }

  std::int64_t world() const { return safe_product({p_.tp, p_.cp, p_.dp, p_.pp}); }
  std::string world_text() const { return world() < 0 ? "more than 2^62" : fmt::format("{}", world()); }

  void check_world() {
    if (world() < 0 || world() > kMaxWorld) {
      problem("parallel", fmt::format("{}, more than {} ranks", product(), kMaxWorld));
    } else if (plan_.hardware && world() > plan_.hardware->gpus) {
      const std::int64_t rest = std::int64_t{p_.tp} * p_.cp * p_.pp;
      const std::int64_t fitting = plan_.hardware->gpus / rest;
      problem("parallel", fmt::format("{} GPUs needed, but hardware.gpus is {}{}", product(), plan_.hardware->gpus,
                                      fitting >= 1 ? fmt::format("; with the other degrees kept, dp {} fits", fitting)
                                                   : fmt::format("; tp * cp * pp alone is {}", rest)));
    }
    const std::int64_t attention = safe_product({p_.tp, p_.cp, p_.dp});
    const std::int64_t experts = std::int64_t{p_.ep} * p_.etp;
    if (attention < 0) return;
    if (attention % experts != 0) {
      problem(
          "parallel.ep",
          fmt::format("a stage has tp {} * cp {} * dp {} = {} ranks, which ep {} * etp {} = {} {}; edp = {}/{} must be "
                      "a whole number",
                      p_.tp, p_.cp, p_.dp, attention, p_.ep, p_.etp, experts,
                      experts > attention ? "exceeds" : "does not divide", attention, experts));
    } else if (attention / experts != p_.edp) {
      problem("parallel.edp", fmt::format("{}, but tp {} * cp {} * dp {} / (ep {} * etp {}) = {}", p_.edp, p_.tp, p_.cp,
                                          p_.dp, p_.ep, p_.etp, attention / experts));
    }
  }

  void divides(const char* field, std::int64_t count, const char* what, const char* degree, int value) {
    if (count % value == 0) return;
    problem(field, fmt::format("{} {} / {} {} = {} remainder {}; {}", count, what, degree, value, count / value,
                               count % value, divisors_near(count, value)));
  }

  /// Quantised weights: a block has one scale, which two ranks cannot share.
  void whole_blocks(const char* field, const BlockedWidth& split, const char* degree, int degree_value) {
    const std::int64_t block = model_.weight_block, width = split.width;
    const std::int64_t value = split.parts_of(degree_value);
    if (width % value != 0 || slices_whole_blocks(model_, width, value)) return;
    std::int64_t below = 1, above = 0;
    for (std::int64_t d = 1; d <= width; ++d) {
      if (!slices_whole_blocks(model_, width, d)) continue;
      if (d < value) below = d;
      if (d > value && above == 0) above = d;
    }
    problem(field,
            fmt::format("{} {} / {} {} = {}, which cuts the blocks of {} that weights are quantised in ({} = {} * {} "
                        "+ {}); {} would do",
                        width, split.what, degree, value, width / value, block, width / value, block,
                        width / value / block, width / value % block,
                        above > 0 ? fmt::format("{} or {}", below, above) : fmt::format("{}", below)));
  }

  void check_divisions() {
    for (const LayerSpec& layer : model_.layers.kinds()) {
      const std::int64_t kv = layer.attention.kv_heads;
      divides("parallel.tp", layer.attention.heads, "query heads", "tp", p_.tp);
      divides("parallel.tp", layer.feed_forward.mlp_size(),
              layer.feed_forward.dense() ? "columns of a dense layer" : "columns of the shared experts", "tp", p_.tp);
      for (const BlockedWidth& split : blocked_over_tp(model_, layer)) {
        whole_blocks("parallel.tp", split, "tp", p_.tp);
      }
      if (kv % p_.tp == 0 || p_.tp % kv == 0) continue;
      const std::int64_t more = std::max<std::int64_t>(kv, p_.tp), less = std::min<std::int64_t>(kv, p_.tp);
      problem("parallel.tp",
              fmt::format("{} key-value heads and tp {}: neither divides the other ({} / {} remainder {}), so "
                          "heads can be neither split nor replicated evenly",
                          kv, p_.tp, more, less, more % less));
    }
    if (model_.vocab_size < p_.tp) {
      problem("parallel.tp", fmt::format("a vocabulary of {} cannot be split over tp {}", model_.vocab_size, p_.tp));
    }
    for (const LayerSpec& layer : model_.layers.kinds()) {
      if (layer.feed_forward.dense()) continue;
      const std::int64_t physical = layer.feed_forward.num_experts + p_.experts.redundant;
      if (p_.ep > physical) {
        problem("parallel.ep", fmt::format("{} experts cannot be spread over ep {}; at most ep {} is needed", physical,
                                           p_.ep, physical));
      }
      check_expert_map(layer.feed_forward.num_experts);
      divides("parallel.etp", layer.feed_forward.intermediate_size, "columns of an expert", "etp", p_.etp);
      for (const BlockedWidth& split : blocked_over_etp(model_, layer)) {
        whole_blocks("parallel.etp", split, "etp", p_.etp);
      }
    }
    if (model_.dense() && p_.experts.redundant > 0) {
      problem("parallel.experts.redundant", fmt::format("{}, but no layer of \"{}\" has experts; 0 is needed",
                                                        p_.experts.redundant, model_.model_type));
    }
    if (model_.dense() && p_.ep > 1) {
      problem("parallel.ep",
              fmt::format("{}, but no layer of \"{}\" has experts; 1 is needed", p_.ep, model_.model_type));
    }
    if (p_.pp > model_.layers.size()) {
      problem("parallel.pp", fmt::format("{} stages for {} layers leaves {} stages empty; at most {} is needed", p_.pp,
                                         model_.layers.size(), p_.pp - model_.layers.size(), model_.layers.size()));
    }
    check_stages();
    validate_context_parallel(
        plan_, [this](std::string field, std::string message) { problem(std::move(field), std::move(message)); });
    if (p_.routes_alike()) check_replicated_dispatch();
    if (p_.overlap != Overlap::none) check_overlap();
    if (p_.sp && p_.tp == 1) {
      problem("parallel.sp",
              "sequence parallelism shards activations over the tensor-parallel group, and tp is 1; "
              "false, or tp > 1, is needed");
    }
  }

  void check_expert_map(std::int64_t experts) {
    const ExpertPlacement& placement = p_.experts;
    if (placement.map != ExpertPlacement::Map::given) return;
    const std::int64_t layers = model_.layers.size();
    if (placement.given.size() != 1 && std::ssize(placement.given) != layers) {
      problem("parallel.experts.map",
              fmt::format("{} rows for {} layers; a row for each layer, or one for all of them, is "
                          "needed",
                          placement.given.size(), layers));
      return;
    }
    for (std::size_t row = 0; row < placement.given.size(); ++row) {
      const std::string field = fmt::format("parallel.experts.map[{}]", row);
      const std::vector<std::int64_t>& logical = placement.given[row];
      if (std::ssize(logical) != experts + placement.redundant) {
        problem(field, fmt::format("{} physical experts; {} experts + {} redundant = {} are needed", logical.size(),
                                   experts, placement.redundant, experts + placement.redundant));
        return;
      }
      std::vector<bool> held(static_cast<std::size_t>(experts), false);
      for (const std::int64_t expert : logical) {
        if (expert >= experts) {
          problem(field, fmt::format("expert {} of {}; 0 to {} is needed", expert, experts, experts - 1));
          return;
        }
        held[static_cast<std::size_t>(expert)] = true;
      }
      const auto absent = std::ranges::find(held, false);
      if (absent == held.end()) continue;
      problem(field, fmt::format("expert {} is nowhere; each is needed once at least", absent - held.begin()));
      return;
    }
  }

  /// Without a dispatch, ranks that share a layer's experts must have the same tokens, and choose alike.
  void check_replicated_dispatch() {
    const auto refuse = [&](const std::string& why) { problem("parallel.dispatch", "all_reduce: " + why); };
    if (model_.dense()) refuse(fmt::format("no layer of \"{}\" has experts; no dispatch is needed", model_.model_type));
    if (p_.tp % (std::int64_t{p_.ep} * p_.etp) != 0) {
      refuse(fmt::format(
          "the ranks of a layer's experts, ep {} * etp {} = {}, are not inside tp {}, whose ranks alone have "
          "the same tokens; ep * etp that divides tp, or \"all_gather\" or \"all_to_all\", is needed",
          p_.ep, p_.etp, std::int64_t{p_.ep} * p_.etp, p_.tp));
    }
    if (p_.sp) {
      refuse(
          "under sequence parallelism the ranks of tp have different tokens; sp false, or \"all_gather\" or "
          "\"all_to_all\", is needed");
    }
    if (p_.experts.replica == ExpertPlacement::Replica::nearest) {
      refuse(
          "replica \"nearest\" has every rank choose its own replica of an expert, so that each would add its share; "
          "\"round_robin\" is needed");
    }
  }

  /// Something must be under way, and something be there to compute meanwhile.
  void check_overlap() {
    const auto refuse = [&](const std::string& why) {
      problem("parallel.overlap", fmt::format("{}: {}", to_string(p_.overlap), why));
    };
    if (p_.dispatch != DispatchComm::all_to_all || p_.ep == 1) {
      refuse(
          fmt::format("nothing is under way while ranks compute with dispatch \"{}\" over ep {}; \"all_to_all\" over "
                      "ep > 1 is needed",
                      to_string(p_.dispatch), p_.ep));
    }
    const bool shared = std::ranges::any_of(model_.layers.kinds(), [](const LayerSpec& layer) {
      return !layer.feed_forward.dense() && layer.feed_forward.mlp_size() > 0;
    });
    if (p_.overlap == Overlap::shared_expert && !shared) {
      refuse(fmt::format("no layer of \"{}\" has a shared expert; \"none\" or \"two_batch\" is needed",
                         model_.model_type));
    }
    const std::int64_t microbatches = plan_.workload.microbatches;
    if (p_.overlap == Overlap::two_batch && microbatches % 2 != 0) {
      refuse(
          fmt::format("its half batches are two microbatches, and workload.microbatches is {}; an even number of them "
                      "is needed",
                      microbatches));
    }
  }

  void check_stages() {
    const std::vector<std::int64_t>& stages = p_.layers_per_stage;
    if (stages.empty()) return;
    if (std::ssize(stages) != p_.pp) {
      problem("parallel.layers_per_stage",
              fmt::format("{} stages, but pp is {}; a number of layers for each is needed", stages.size(), p_.pp));
      return;
    }
    std::int64_t sum = 0;
    for (std::size_t i = 0; i < stages.size(); ++i) {
      if (stages[i] < 1 || stages[i] > model_.layers.size()) {
        problem(fmt::format("parallel.layers_per_stage[{}]", i),
                fmt::format("{} layers; 1 to {} is needed", stages[i], model_.layers.size()));
        return;
      }
      sum += stages[i];
    }
    if (sum != model_.layers.size()) {
      problem("parallel.layers_per_stage",
              fmt::format("{} layers in all, the model has {}", sum, model_.layers.size()));
    }
  }

  /// The nearest valid plans, and what else the degrees leave over, on one last line.
  void suggest() {
    const bool about_degrees = std::any_of(problems_.begin(), problems_.end(), [](const Problem& problem) {
      return problem.field.starts_with("parallel") && problem.field != "parallel.cp_comm" &&
             problem.field != "parallel.dispatch" && problem.field != "parallel.overlap" &&
             !problem.field.starts_with("parallel.dcp");
    });
    if (!about_degrees) return;
    const Neighbours near = nearest_valid(plan_);
    std::string text;
    const auto add = [&](const std::string& more) { text += (text.empty() ? "" : "; ") + more; };
    if (plan_.hardware && world() > 0 && world() < plan_.hardware->gpus) {
      add(fmt::format("{} uses {} of {} GPUs", product(), world(), plan_.hardware->gpus));
    }
    const std::int64_t layers = model_.layers.size();
    const LayerSpec& first = model_.layers[0];
    const std::int64_t experts = model_.experts().num_experts;
    if (p_.tp > 1 && experts > 0 && first.attention.heads % p_.tp != 0 && layers % p_.tp != 0 && experts % p_.tp != 0) {
      add(fmt::format("{} layers and {} experts do not divide by {} either ({} remainder {}, {} remainder {})", layers,
                      experts, p_.tp, layers / p_.tp, layers % p_.tp, experts / p_.tp, experts % p_.tp));
    }
    if (near.same_degrees) {
      add(fmt::format("{} {}", fits_model(p_, model_) ? "the same degrees need" : "nearest degrees that fit the model:",
                      describe(*near.same_degrees)));
    }
    if (near.same_gpus && (!near.same_degrees || *near.same_gpus != *near.same_degrees)) {
      add(fmt::format("nearest on {} GPUs: {}", near.same_gpus->world(), describe(*near.same_gpus)));
    }
    if (!text.empty()) problem("parallel", text);
  }

  const Plan& plan_;
  const ModelConfig& model_;
  const Parallel& p_;
  std::vector<Problem> problems_;
};

}  // namespace

std::vector<Problem> validate(const Plan& plan) {
  return Checker(plan).run();
}

}  // namespace shardproof
