// Kinds in the absorbed form of latent attention: what each head absorbs, what it makes of the latents, and the scale.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <utility>

#include "emu/mutate/internal/script.h"
#include "emu/mutate/internal/sites.h"
#include "emu/plan/latent_form.h"

namespace shardproof::mutations {
namespace {

using Instances = std::vector<Mutation>;
using EditForm = std::function<void(AbsorbedForm&)>;

/// A microbatch of the replica has a token in the absorbed form.
bool decodes(const Sites& sites, int dp) {
  for (std::int64_t m = 0; m < sites.tokens.microbatches(); ++m) {
    const auto absorbed = [&](const Chunk& chunk) { return sites.tokens.plain_of(chunk) < chunk.count; };
    if (std::ranges::any_of(sites.tokens.chunks(dp, m), absorbed)) return true;
  }
  return false;
}

/// On one rank, in one layer. A rank with one head has no other that it could take for it.
Instances wrong_form(const MutablePlan& plan, std::size_t limit, const std::string& cause, bool of_heads,
                     const std::function<EditForm(const AttentionSpec&)>& edit_of) {
  if (!has_absorbed(plan)) return {};
  const Sites sites(plan);
  Instances result;
  // Of a replica that decodes nothing there is nothing to see.
  for (const Place& place : sites.places(limit + static_cast<std::size_t>(plan.world()))) {
    if (result.size() == limit) break;
    const AttentionSpec& spec = plan.model.layers[place.layer].attention;
    const Layout layout = make_layout(plan.model, sites.mesh, place.rank);
    if (!spec.latent() || !decodes(sites, layout.at.dp)) continue;
    if (of_heads && layout.layer(plan.model, place.layer).heads.count < 2) continue;
    const EditForm edit = edit_of(spec);
    if (!edit) continue;
    result.push_back({.layer = place.layer,
                      .ranks = {place.rank},
                      .tap = tap_name(place.layer, TapKind::attention_context),
                      .causes = {cause},
                      .make = script([=](Script& made) {
                        made.absorbed = [=](const Rank& rank, const FaultSite& site, AbsorbedForm& form) {
                          if (to_int(rank.id()) == place.rank && site.layer == place.layer) edit(form);
                        };
                      })});
  }
  return result;
}

Instances keys_of_another_head(const MutablePlan& plan, std::size_t limit) {
  return wrong_form(plan, limit, "absorbed_keys", true,
                    [](const AttentionSpec&) { return [](AbsorbedForm& form) { form.keys_of = 1; }; });
}

Instances values_of_another_head(const MutablePlan& plan, std::size_t limit) {
  return wrong_form(plan, limit, "absorbed_values", true,
                    [](const AttentionSpec&) { return [](AbsorbedForm& form) { form.values_of = 1; }; });
}

Instances scale_of_latents(const MutablePlan& plan, std::size_t limit) {
  return wrong_form(plan, limit, "absorbed_scale", false, [](const AttentionSpec& spec) {
    const auto plain = static_cast<double>(spec.head_dim);
    const double factor = std::sqrt(plain / static_cast<double>(spec.kv_lora_rank + spec.rope.dim));
    // A latent may be as wide as the key that it stands for.
    if (factor == 1) return EditForm();
    return EditForm([=](AbsorbedForm& form) { form.scale *= factor; });
  });
}

/// Scores that are off weigh as before where they round to the same, or what they weigh is the same throughout: of a
/// few tokens that may be all there are.
bool sees_few_tokens(const Plan& plan) {
  return std::ranges::max(plan.workload.lengths) <= 8;
}

constexpr MutationKind kKinds[] = {
    {.name = "absorbed_keys_of_another_head",
     .description = "in the absorbed form of latent attention each head absorbs the keys of the rank's next",
     .instances = keys_of_another_head,
     .may_be_equivalent = sees_few_tokens},
    {.name = "absorbed_values_of_another_head",
     .description = "in the absorbed form of latent attention each head makes the values of the rank's next",
     .instances = values_of_another_head},
    {.name = "absorbed_scale_of_latents",
     .description =
         "in the absorbed form of latent attention scores are scaled by the width of the latents, not of the keys",
     .instances = scale_of_latents,
     .may_be_equivalent = sees_few_tokens},
};

}  // namespace

std::span<const MutationKind> latent_kinds() {
  return kKinds;
}

}  // namespace shardproof::mutations
