#include "emu/plan/internal/validate_workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <utility>

#include "emu/plan/latent_form.h"
#include "emu/plan/schedule.h"

namespace shardproof {
namespace {

/// Of requests: tokens in all, and parts that their steps are cut into.
constexpr std::int64_t kMostServedTokens = std::int64_t{1} << 24;

/// How many tokens are run of it.
std::string arithmetic(const Request& request) {
  if (request.output == 0) return fmt::format("its prompt's {}", request.prompt);
  return fmt::format("prompt {} + output {} - 1 = {}", request.prompt, request.output, request.tokens());
}

class WorkloadRules {
 public:
  WorkloadRules(const Plan& plan, std::vector<Problem>& problems)
      : plan_(plan), p_(plan.parallel), problems_(problems) {}

  void check(bool degrees) {
    const Workload& workload = plan_.workload;
    if (workload.lengths.empty()) problem("workload.batch", "0 sequences; at least 1 is needed");
    std::int64_t tokens = 0;
    for (std::size_t i = 0; i < workload.lengths.size(); ++i) {
      const std::int64_t length = workload.lengths[i];
      if (length < 1 || length > (std::int64_t{1} << 40) || tokens > (std::int64_t{1} << 50)) {
        problem(fmt::format("workload.lengths[{}]", i), fmt::format("{} tokens; at least 1 is needed", length));
        break;
      }
      tokens += length;
    }
    check_token_ids();
    check_latent_decode();
    if (workload.microbatches < 1) {
      problem("workload.microbatches", fmt::format("{}; at least 1 is needed", workload.microbatches));
    } else if (degrees && !workload.lengths.empty()) {
      const std::int64_t largest = (workload.batch() + p_.dp - 1) / p_.dp;
      if (workload.microbatches > largest) {
        problem(
            "workload.microbatches",
            fmt::format("{} microbatches, but a replica has at most ceil(batch {} / dp {}) = {} sequence{}; at most {} "
                        "is needed",
                        workload.microbatches, workload.batch(), p_.dp, largest, largest == 1 ? "" : "s", largest));
      }
    }
    if (workload.serving && problems_.empty()) check_serving(degrees);
  }

 private:
  void problem(std::string field, std::string message) { problems_.push_back({std::move(field), std::move(message)}); }

  void check_latent_decode() {
    const std::optional<LatentForm>& form = plan_.workload.latent_decode;
    if (!form) return;
    const auto latent = [](const LayerSpec& layer) { return layer.attention.latent(); };
    if (std::ranges::none_of(plan_.model.layers.kinds(), latent)) {
      problem("workload.latent_decode",
              fmt::format("\"{}\", but no layer of the model has latent attention (kv_lora_rank); leave it out",
                          to_string(*form)));
    } else if (*form == LatentForm::absorbed && p_.cp > 1) {
      problem(
          "workload.latent_decode",
          fmt::format("\"absorbed\" beside cp {}, over which attention is to whole keys; \"plain\", or cp 1, is needed",
                      p_.cp));
    } else if (*form == LatentForm::absorbed && !has_absorbed(plan_)) {
      problem("workload.latent_decode",
              "\"absorbed\", but no token comes after a prompt; leave it out, or give requests an output");
    }
  }

  void check_token_ids() {
    const auto& ids = plan_.workload.token_ids;
    const std::vector<std::int64_t>& lengths = plan_.workload.lengths;
    if (ids.empty()) return;
    if (ids.size() != lengths.size()) {
      problem("workload.tokens", fmt::format("{} sequences, \"lengths\" has {}", ids.size(), lengths.size()));
      return;
    }
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const std::string field = fmt::format("workload.tokens[{}]", i);
      if (std::ssize(ids[i]) != lengths[i]) {
        problem(field, plan_.workload.serving
                           ? fmt::format("{} tokens, of the request {} are run", ids[i].size(), lengths[i])
                           : fmt::format("{} tokens, \"lengths\" says {}", ids[i].size(), lengths[i]));
        return;
      }
      const std::int64_t vocabulary = plan_.model.vocab_size;
      const auto wrong = std::ranges::find_if(ids[i], [&](std::int32_t id) { return id < 0 || id >= vocabulary; });
      if (wrong == ids[i].end()) continue;
      problem(fmt::format("{}[{}]", field, wrong - ids[i].begin()),
              fmt::format("{}; a token of the model's vocabulary, 0 to {}, is needed", *wrong, vocabulary - 1));
      return;
    }
  }

  void check_serving(bool degrees) {
    const Serving& serving = *plan_.workload.serving;
    std::int64_t tokens = 0;
    for (std::size_t i = 0; i < serving.requests.size(); ++i) {
      const Request& request = serving.requests[i];
      tokens += request.tokens();
      if (request.prefix > request.prompt) {
        return problem(
            fmt::format("workload.requests[{}].prefix", i),
            fmt::format("{} tokens of a prompt of {}; at most that many are needed", request.prefix, request.prompt));
      }
      const std::int64_t most = plan_.model.max_position_embeddings, all = request.prompt + request.output;
      if (most > 0 && all > most) {
        return problem(
            fmt::format("workload.requests[{}]", i),
            fmt::format("prompt {} + output {} = {} tokens, but the model's max_position_embeddings is {}; at "
                        "most that many are needed",
                        request.prompt, request.output, all, most));
      }
      const std::int64_t blocks = serving.blocks_of(request.tokens(), p_.dcp);
      if (serving.kv_blocks > 0 && blocks > serving.kv_blocks) {
        const std::string size = p_.dcp > 1 ? fmt::format("(kv_block_size {} * dcp {})", serving.kv_block_size, p_.dcp)
                                            : fmt::format("kv_block_size {}", serving.kv_block_size);
        problem("workload.kv_blocks",
                fmt::format("{}, but request {} has {} tokens to keep, which take ceil({} / {}) "
                            "= {} blocks; at least {} is needed",
                            serving.kv_blocks, i, arithmetic(request), request.tokens(), size, blocks, blocks));
        return;
      }
    }
    if (tokens > kMostServedTokens) {
      problem("workload.requests", fmt::format("{} tokens in all; at most {} are served", tokens, kMostServedTokens));
      return;
    }
    if (!check_stated_steps(serving) || !degrees) return;
    const std::int64_t steps = count_steps(p_, plan_.workload);
    if (steps > kMostServedTokens / p_.dp / std::max<std::int64_t>(plan_.workload.microbatches, 1)) {
      return problem("workload.requests",
                     fmt::format("{} steps of {} replicas with {} microbatches each; at most {} in all are run", steps,
                                 p_.dp, plan_.workload.microbatches, kMostServedTokens));
    }
    if (!serving.steps.empty() && serving.kv_blocks > 0) check_stated_blocks(serving);
  }

  void check_stated_blocks(Serving serving) {
    const std::int64_t blocks = std::exchange(serving.kv_blocks, 0);
    for (const ReplicaSchedule& replica : make_schedule(p_, plan_.workload)) {
      const std::int64_t most = kv_blocks_of(serving, replica, p_.dcp);
      if (most <= blocks) continue;
      return problem("workload.kv_blocks",
                     fmt::format("{}, but the stated steps keep {} blocks of {} tokens at once; at "
                                 "least {} is needed",
                                 blocks, most, serving.tokens_of_block(p_.dcp), most));
    }
  }

  bool check_stated_steps(const Serving& serving) {
    if (serving.steps.empty()) return true;
    if (serving.max_tokens_per_step > 0 || serving.max_sequences > 0) {
      problem("workload.steps",
              "given together with the scheduler's limits max_tokens_per_step or max_sequences; "
              "keep one");
      return false;
    }
    if (serving.prefix_sharing) {
      problem("workload.steps", "given together with prefix_sharing, which has requests run fewer tokens; keep one");
      return false;
    }
    std::vector<std::int64_t> run(serving.requests.size(), 0);
    std::vector<std::size_t> seen(run.size(), serving.steps.size());  // the last step that has the request
    for (std::size_t s = 0; s < serving.steps.size(); ++s) {
      for (const StatedChunk& chunk : serving.steps[s]) {
        const std::string field = fmt::format("workload.steps[{}]", s);
        if (chunk.request < 0 || chunk.request >= std::ssize(run)) {
          problem(field, fmt::format("request {} of {}; 0 to {} is needed", chunk.request, run.size(), run.size() - 1));
          return false;
        }
        const auto request = static_cast<std::size_t>(chunk.request);
        if (std::exchange(seen[request], s) == s) {
          problem(field, fmt::format("request {} twice in a step; once is needed", chunk.request));
          return false;
        }
        run[request] += chunk.tokens;
      }
    }
    for (std::size_t i = 0; i < run.size(); ++i) {
      if (run[i] == serving.requests[i].tokens()) continue;
      problem("workload.steps", fmt::format("request {} is given {} tokens in all; {} are needed", i, run[i],
                                            arithmetic(serving.requests[i])));
      return false;
    }
    return true;
  }

  const Plan& plan_;
  const Parallel& p_;
  std::vector<Problem>& problems_;
};

class RoutingRules {
 public:
  RoutingRules(const Plan& plan, std::vector<Problem>& problems)
      : plan_(plan), model_(plan.model), problems_(problems) {}

  void check() {
    const std::vector<std::vector<std::int64_t>>& counts = plan_.workload.routing.counts;
    if (counts.empty()) return;
    const std::int64_t layers = model_.layers.size();
    if (counts.size() != 1 && std::ssize(counts) != layers) {
      problem("workload.routing.counts", fmt::format("{} rows for {} layers; a row for each layer, or one for all of "
                                                     "them, is needed",
                                                     counts.size(), layers));
      return;
    }
    const std::size_t before = problems_.size();
    for (std::int64_t layer = 0; layer < layers; ++layer) {
      const std::size_t row = counts.size() == 1 ? 0 : static_cast<std::size_t>(layer);
      check_routed(fmt::format("workload.routing.counts[{}]", row), counts[row], model_.layers[layer].feed_forward);
      if (counts.size() == 1 && problems_.size() > before) return;  // it is every layer's
    }
  }

 private:
  void problem(std::string field, std::string message) { problems_.push_back({std::move(field), std::move(message)}); }

  void check_routed(const std::string& field, const std::vector<std::int64_t>& row, const FeedForwardSpec& spec) {
    if (spec.dense()) return;
    if (std::ssize(row) != spec.num_experts) {
      problem(field, fmt::format("{} counts for {} experts", row.size(), spec.num_experts));
      return;
    }
    std::int64_t slots = 0;
    for (const std::int64_t count : row) {
      if (count < 0 || count > kMaxRoutedTokens) {
        problem(field, fmt::format("{} slots of an expert; 0 to {} is needed", count, kMaxRoutedTokens));
        return;
      }
      slots += count;
    }
    const std::int64_t tokens = slots / spec.top_k, most = *std::ranges::max_element(row);
    if (tokens < 1 || slots % spec.top_k != 0 || tokens > kMaxRoutedTokens) {
      problem(field, fmt::format("adds up to {} slots; top_k {} times a number of tokens, 1 to {}, is needed", slots,
                                 spec.top_k, kMaxRoutedTokens));
    } else if (most > tokens) {
      problem(field, fmt::format("{} slots at top_k {} are {} tokens, but an expert served {} slots; it serves a token "
                                 "once",
                                 slots, spec.top_k, tokens, most));
    }
  }

  const Plan& plan_;
  const ModelConfig& model_;
  std::vector<Problem>& problems_;
};

}  // namespace

void validate_workload(const Plan& plan, bool degrees, std::vector<Problem>& problems) {
  std::vector<Problem> found;
  WorkloadRules(plan, found).check(degrees);
  std::ranges::move(found, std::back_inserter(problems));
}

void validate_routing(const Plan& plan, std::vector<Problem>& problems) {
  RoutingRules(plan, problems).check();
}

}  // namespace shardproof
