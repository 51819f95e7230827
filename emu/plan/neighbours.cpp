#include "emu/plan/neighbours.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <numeric>
#include <vector>

#include "emu/plan/validate.h"

namespace shardproof {

std::int64_t safe_product(std::initializer_list<std::int64_t> factors) {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  std::int64_t product = 1;
  for (const std::int64_t factor : factors) {
    if (factor < 0 || product < 0) return -1;
    if (factor != 0 && product > kMost / factor) return -1;
    product *= factor;
  }
  return product;
}

bool slices_whole_blocks(const ModelConfig& model, std::int64_t width, std::int64_t degree) {
  if (width % degree != 0) return false;
  return model.weight_block == 0 || degree == 1 || width / degree % model.weight_block == 0;
}

std::vector<BlockedWidth> blocked_over_tp(const ModelConfig& model, const LayerSpec& layer) {
  std::vector<BlockedWidth> result;
  if (model.weight_block == 0) return result;
  const Quantisation& quantisation = model.quantisation;
  if (quantisation.mlp && layer.feed_forward.mlp_size() > 0) {
    result.push_back({layer.feed_forward.mlp_size(),
                      layer.feed_forward.dense() ? "columns of a dense layer" : "columns of the shared experts"});
  }
  const AttentionSpec& attention = layer.attention;
  if (quantisation.format == QuantisedFormat::none || !quantisation.attention) return result;
  result.push_back({attention.heads * attention.value_dim(), "columns of the attention's output"});
  // Blocks of fp8 lie along a matrix's rows too; the groups of other formats along its columns alone.
  if (quantisation.format != QuantisedFormat::fp8) return result;
  result.push_back({attention.heads * attention.head_dim, "rows of the queries"});
  if (attention.latent()) {
    const std::int64_t of_head = attention.head_dim - attention.rope.dim + attention.value_dim();
    result.push_back({attention.heads * of_head, "rows of keys and values of a latent"});
    return result;
  }
  result.push_back({attention.kv_heads * attention.head_dim, "rows of the keys", attention.kv_heads});
  result.push_back({attention.kv_heads * attention.value_dim(), "rows of the values", attention.kv_heads});
  return result;
}

std::vector<BlockedWidth> blocked_over_etp(const ModelConfig& model, const LayerSpec& layer) {
  if (model.weight_block == 0 || !model.quantisation.experts || layer.feed_forward.dense()) return {};
  return {{layer.feed_forward.intermediate_size, "columns of an expert"}};
}

namespace {

/// Every one of the widths falls to the degree in whole blocks.
bool in_whole_blocks(const ModelConfig& model, const std::vector<BlockedWidth>& widths, std::int64_t degree) {
  return std::ranges::all_of(widths, [&](const BlockedWidth& split) {
    return slices_whole_blocks(model, split.width, split.parts_of(degree));
  });
}

bool tp_fits(std::int64_t tp, const ModelConfig& model) {
  if (tp < 1 || tp > model.vocab_size) return false;
  return std::ranges::all_of(model.layers.kinds(), [&](const LayerSpec& layer) {
    const AttentionSpec& attention = layer.attention;
    if (attention.heads < 1 || attention.kv_heads < 1) return false;
    return attention.heads % tp == 0 && (attention.kv_heads % tp == 0 || tp % attention.kv_heads == 0) &&
           layer.feed_forward.mlp_size() % tp == 0 && in_whole_blocks(model, blocked_over_tp(model, layer), tp);
  });
}

bool ep_fits(std::int64_t ep, const ModelConfig& model) {
  if (model.dense()) return ep == 1;
  return std::ranges::all_of(model.layers.kinds(),
                             [&](const LayerSpec& layer) { return layer.feed_forward.num_experts % ep == 0; });
}

bool etp_fits(std::int64_t etp, const ModelConfig& model) {
  return std::ranges::all_of(model.layers.kinds(), [&](const LayerSpec& layer) {
    return layer.feed_forward.dense() || (layer.feed_forward.intermediate_size % etp == 0 &&
                                          in_whole_blocks(model, blocked_over_etp(model, layer), etp));
  });
}

/// The least of a size over all layers: no degree beyond it can divide.
template <class Size>
std::int64_t least_of(const ModelConfig& model, const Size& size) {
  std::int64_t least = std::numeric_limits<std::int64_t>::max();
  for (const LayerSpec& layer : model.layers.kinds()) least = std::min(least, size(layer));
  return model.layers.kinds().empty() ? 0 : least;
}
std::int64_t least_heads(const ModelConfig& model) {
  return least_of(model, [](const LayerSpec& layer) { return layer.attention.heads; });
}
std::int64_t least_experts(const ModelConfig& model) {
  return std::max<std::int64_t>(model.experts().num_experts, 1);
}
std::int64_t least_intermediate(const ModelConfig& model) {
  return model.experts().intermediate_size;
}

std::vector<int> divisors(std::int64_t n) {
  std::vector<int> all;
  for (std::int64_t d = 1; d <= n && d <= kMaxWorld; ++d) {
    if (n % d == 0) all.push_back(static_cast<int>(d));
  }
  return all;
}

double distance(const Parallel& a, const Parallel& b) {
  const auto apart = [](int x, int y) { return std::fabs(std::log2(static_cast<double>(x) / static_cast<double>(y))); };
  // A different dp changes least of what the plan means, so it breaks ties.
  return apart(a.tp, b.tp) + apart(a.cp, b.cp) + 0.99 * apart(a.dp, b.dp) + apart(a.pp, b.pp) + apart(a.ep, b.ep) +
         apart(a.etp, b.etp);
}

/// The number from 1 to `most` nearest to `wanted` (by ratio) for which `fits` holds; 0 when there is none.
template <class Fits>
int nearest_number(int wanted, std::int64_t most, Fits fits) {
  int best = 0;
  double least = std::numeric_limits<double>::infinity();
  for (int candidate = 1; candidate <= most && candidate <= kMaxWorld; ++candidate) {
    if (!fits(candidate)) continue;
    const double apart = std::fabs(std::log2(static_cast<double>(candidate) / static_cast<double>(wanted)));
    if (apart < least) {
      least = apart;
      best = candidate;
    }
  }
  return best;
}

std::optional<Parallel> search_same_gpus(const Parallel& wanted, const ModelConfig& model, std::int64_t gpus) {
  if (gpus < 1 || gpus > kMaxWorld) return std::nullopt;
  std::optional<Parallel> best;
  double least = std::numeric_limits<double>::infinity();
  for (const int pp : divisors(gpus)) {
    if (pp > model.layers.size()) continue;
    const std::int64_t stage = gpus / pp;
    for (const int ep : divisors(stage)) {
      if (!ep_fits(ep, model)) continue;
      for (const int etp : divisors(stage / ep)) {
        if (!etp_fits(etp, model)) continue;
        Parallel candidate = {.tp = 1, .cp = 1, .dp = 1, .pp = pp, .ep = ep, .etp = etp};
        candidate.edp = static_cast<int>(stage / ep / etp);
        // The expert mesh alone may be too far already.
        Parallel bound = wanted;
        bound.pp = pp;
        bound.ep = ep;
        bound.etp = etp;
        if (distance(bound, wanted) >= least) continue;
        for (const int tp : divisors(stage)) {
          if (!tp_fits(tp, model)) continue;
          // Context parallelism is kept as it is asked for, or given up.
          for (const int cp : {wanted.cp, 1}) {
            if (stage / tp % cp != 0) continue;
            candidate.tp = tp;
            candidate.cp = cp;
            candidate.dp = static_cast<int>(stage / tp / cp);
            candidate.sp = wanted.sp && tp > 1;
            const double apart = distance(candidate, wanted);
            if (apart < least) {
              least = apart;
              best = candidate;
            }
          }
        }
      }
    }
  }
  return best;
}

std::optional<Parallel> search_same_degrees(const Parallel& wanted, const ModelConfig& model) {
  Parallel found = wanted;
  found.tp = nearest_number(wanted.tp, least_heads(model), [&](int tp) { return tp_fits(tp, model); });
  found.pp = static_cast<int>(std::min<std::int64_t>(wanted.pp, model.layers.size()));
  found.ep = nearest_number(wanted.ep, least_experts(model), [&](int ep) { return ep_fits(ep, model); });
  found.etp = nearest_number(wanted.etp, least_intermediate(model), [&](int etp) { return etp_fits(etp, model); });
  if (found.tp < 1 || found.pp < 1 || found.ep < 1 || found.etp < 1) return std::nullopt;
  const std::int64_t experts = std::int64_t{found.ep} * found.etp;
  const std::int64_t attention = std::int64_t{found.tp} * found.cp;
  // Experts span tp * cp * dp ranks of a stage, so dp must make up what tp * cp lacks of ep * etp.
  const std::int64_t step = experts / std::gcd(experts, attention);
  const std::int64_t below = std::max<std::int64_t>(1, wanted.dp / step) * step;
  const std::int64_t above = below + step;
  const auto apart = [&](std::int64_t dp) {
    return std::fabs(std::log2(static_cast<double>(dp) / static_cast<double>(wanted.dp)));
  };
  const std::int64_t dp = apart(below) <= apart(above) ? below : above;
  const std::int64_t world = safe_product({attention, dp, found.pp});
  if (world < 0 || world > kMaxWorld) return std::nullopt;
  found.dp = static_cast<int>(dp);
  found.edp = static_cast<int>(attention * dp / experts);
  found.sp = wanted.sp && found.tp > 1;
  return found;
}

}  // namespace

bool fits_model(const Parallel& p, const ModelConfig& model) {
  if (p.tp < 1 || p.cp < 1 || p.dp < 1 || p.pp < 1 || p.ep < 1 || p.etp < 1 || p.edp < 1) return false;
  return tp_fits(p.tp, model) && p.pp <= model.layers.size() && ep_fits(p.ep, model) && etp_fits(p.etp, model) &&
         (!p.sp || p.tp > 1) && safe_product({p.tp, p.cp, p.dp}) == safe_product({p.etp, p.ep, p.edp});
}

Neighbours nearest_valid(const Plan& plan) {
  const ModelConfig& model = plan.model;
  const Parallel& wanted = plan.parallel;
  for (const std::int64_t count : {model.layers.size(), least_heads(model),
                                   least_of(model, [](const LayerSpec& layer) { return layer.attention.kv_heads; }),
                                   least_experts(model), least_intermediate(model), model.vocab_size}) {
    if (count < 1) return {};
  }
  for (const int degree : {wanted.tp, wanted.cp, wanted.dp, wanted.pp, wanted.ep, wanted.etp}) {
    if (degree < 1 || degree > kMaxWorld) return {};
  }
  Neighbours neighbours;
  const std::int64_t world = safe_product({wanted.tp, wanted.cp, wanted.dp, wanted.pp});
  neighbours.same_gpus = search_same_gpus(wanted, model, plan.hardware ? plan.hardware->gpus : world);
  neighbours.same_degrees = search_same_degrees(wanted, model);
  return neighbours;
}

std::string describe(const Parallel& p) {
  std::string text;
  const auto add = [&](std::string_view name, int degree) {
    if (degree != 1) text += fmt::format("{}{}{}", text.empty() || text.ends_with(", ") ? "" : " ", name, degree);
  };
  add("tp", p.tp);
  add("cp", p.cp);
  add("dp", p.dp);
  add("pp", p.pp);
  if (text.empty()) text = "tp1";
  if (p.sp) text += " sp";
  std::string experts;
  text += ", ";
  const std::size_t before = text.size();
  add("ep", p.ep);
  add("etp", p.etp);
  if (text.size() == before) text += "ep1";
  add("edp", p.edp);
  const std::int64_t world = safe_product({p.tp, p.cp, p.dp, p.pp});
  return text + fmt::format(": {} GPU{}", world, world == 1 ? "" : "s");
}

}  // namespace shardproof
