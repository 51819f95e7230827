#include "emu/model/families/internal/rope.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "emu/model/families/internal/keys.h"
#include "emu/model/fields.h"

namespace shardproof::family_config {
namespace {

using Kind = JsonValue::Kind;

constexpr double kMostFactor = 1e6;
constexpr std::int64_t kMostContext = std::int64_t{1} << 40;

constexpr RopeType kTypes[] = {RopeType::plain, RopeType::linear, RopeType::llama3, RopeType::yarn, RopeType::longrope};

/// 0.1 m ln(s) + 1 of a context stretched s-fold.
double yarn_scale(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

RopeType read_type(ObjectReader& rope) {
  const auto found = rope.find({"rope_type", "type"});
  if (!found) return RopeType::plain;
  for (const RopeType type : kTypes) {
    if (found->value->is(Kind::string) && found->value->text == to_string(type)) return type;
  }
  // Sections of it turn text as the plain embedding does: its three positions are one.
  if (found->value->is(Kind::string) && found->value->text == "mrope") return RopeType::plain;
  rope.problem(found->field, fmt::format("{}: scaled rotary embeddings of this kind are not computed; \"default\", "
                                         "\"linear\", \"llama3\" or \"yarn\" is needed",
                                         describe(*found->value)));
  return RopeType::plain;
}

double needed_factor(ObjectReader& rope, std::string_view type, std::size_t problems_before,
                     const std::vector<Problem>& problems) {
  const auto factor = rope.number({"factor"}, 1, kMostFactor);
  if (!factor && problems.size() == problems_before) rope.missing("factor", fmt::format("\"{}\" needs one", type));
  return factor.value_or(1);
}

void read_context(ObjectReader& rope, ObjectReader& config, RopeSpec& spec, const std::vector<Problem>& problems) {
  const std::size_t before = problems.size();
  const auto own = rope.integer({"original_max_position_embeddings"}, 1, kMostContext);
  const auto above = config.integer({"original_max_position_embeddings"}, 1, kMostContext);
  if (!own && !above && problems.size() == before) {
    rope.missing("original_max_position_embeddings", "the context before it was stretched is needed");
  }
  spec.original_context = own.value_or(above.value_or(0));
}

void read_yarn(ObjectReader& rope, ObjectReader& config, AttentionSpec& attention,
               const std::vector<Problem>& problems) {
  RopeSpec& spec = attention.rope;
  spec.factor = needed_factor(rope, "yarn", problems.size(), problems);
  read_context(rope, config, spec, problems);
  spec.beta_fast = rope.number({"beta_fast"}, 1e-6, kMostFactor).value_or(spec.beta_fast);
  spec.beta_slow = rope.number({"beta_slow"}, 1e-6, kMostFactor).value_or(spec.beta_slow);
  spec.truncate = rope.boolean({"truncate"}).value_or(true);
  const double mscale = rope.number({"mscale"}, 0, kMostFactor).value_or(0);
  const double all = rope.number({"mscale_all_dim"}, 0, kMostFactor).value_or(0);
  const double derived = mscale > 0 && all > 0 ? yarn_scale(spec.factor, mscale) / yarn_scale(spec.factor, all)
                                               : yarn_scale(spec.factor, 1);
  spec.amplitude = rope.number({"attention_factor"}, 1e-6, kMostFactor).value_or(derived);
  if (attention.latent()) spec.mscale_all_dim = all;
}

/// "short_factor", a number for each pair of a head. Those for longer sequences are read by nobody here.
void read_pair_factors(ObjectReader& rope, AttentionSpec& attention) {
  const auto pairs = static_cast<std::size_t>(attention.rope_dim() / 2);
  const auto found = rope.find({"short_factor"});
  if (!found) return rope.missing("short_factor", fmt::format("\"longrope\" needs {} of them", pairs));
  if (!found->value->is(Kind::array) || found->value->items.size() != pairs) {
    rope.problem(found->field,
                 fmt::format("{}; an array of {} numbers is needed, one for each pair of elements that turns",
                             describe(*found->value), pairs));
    return;
  }
  for (std::size_t i = 0; i < pairs; ++i) {
    const JsonValue& item = found->value->items[i];
    const bool number = item.is(Kind::integer) || item.is(Kind::number);
    if (!number || item.number < 1e-6 || item.number > kMostFactor) {
      rope.problem(fmt::format("{}[{}]", found->field, i),
                   fmt::format("{}; a positive number is needed", describe(item)));
      return;
    }
    attention.rope.pair_factors.push_back(item.number);
  }
}

/// Of sequences within the original context. Phi-3.5-MoE states what its cosines are multiplied by; others' follows
/// from how far the context was stretched.
void read_longrope(ObjectReader& rope, ObjectReader& config, AttentionSpec& attention,
                   const std::vector<Problem>& problems) {
  RopeSpec& spec = attention.rope;
  read_context(rope, config, spec, problems);
  read_pair_factors(rope, attention);
  const auto factor = rope.number({"factor"}, 1e-6, kMostFactor);
  const auto most = config.integer({"max_position_embeddings"}, 1, kMostContext);
  const auto context = static_cast<double>(spec.original_context);
  const double stretch = factor.value_or(most && context > 0 ? static_cast<double>(*most) / context : 1);
  const double derived = stretch <= 1 || context <= 1 ? 1 : std::sqrt(1 + std::log(stretch) / std::log(context));
  const auto given = rope.number({"attention_factor"}, 1e-6, kMostFactor);
  const auto mscale = rope.number({"short_mscale"}, 1e-6, kMostFactor);
  spec.amplitude = mscale.value_or(given.value_or(derived));
  rope.ignore({"long_factor"});
  rope.ignore({"long_mscale"});
}

void read_scaling(ObjectReader& rope, ObjectReader& config, AttentionSpec& attention,
                  const std::vector<Problem>& problems) {
  RopeSpec& spec = attention.rope;
  spec.type = read_type(rope);
  switch (spec.type) {
    case RopeType::plain:
      rope.ignore({"mrope_section"});
      rope.ignore({"mrope_interleaved"});
      keys::refuse_unless_one(rope, {"factor"}, "\"default\" has none: say \"linear\" or another type");
      break;
    case RopeType::linear:
      spec.factor = needed_factor(rope, "linear", problems.size(), problems);
      // Positions over a factor of one are the positions.
      if (spec.factor == 1) spec.type = RopeType::plain;
      break;
    case RopeType::llama3:
      spec.factor = needed_factor(rope, "llama3", problems.size(), problems);
      spec.low_freq_factor = rope.number({"low_freq_factor"}, 1e-6, kMostFactor).value_or(spec.low_freq_factor);
      spec.high_freq_factor = rope.number({"high_freq_factor"}, 1e-6, kMostFactor).value_or(spec.high_freq_factor);
      if (spec.high_freq_factor <= spec.low_freq_factor) {
        rope.problem(rope.field("high_freq_factor"),
                     fmt::format("{} is not above low_freq_factor {}", spec.high_freq_factor, spec.low_freq_factor));
      }
      read_context(rope, config, spec, problems);
      break;
    case RopeType::yarn:
      read_yarn(rope, config, attention, problems);
      break;
    case RopeType::longrope:
      read_longrope(rope, config, attention, problems);
      break;
  }
}

/// How many elements of a head turn.
void set_share(ObjectReader& reader, const Family& family, std::optional<double> share, AttentionSpec& attention) {
  if (attention.latent() || attention.head_dim == 0) return;
  const double part = share.value_or(family.partial_rotary_factor);
  if (part == 1) return;
  const auto dim = static_cast<std::int64_t>(static_cast<double>(attention.head_dim) * part);
  if (dim < 2 || dim % 2 != 0) {
    reader.problem(reader.field("partial_rotary_factor"),
                   fmt::format("{} of head_dim {} makes {} elements turn; an even number, at least 2, is needed", part,
                               attention.head_dim, dim));
    return;
  }
  attention.rope.dim = dim;
}

}  // namespace

void read_rope(ObjectReader& reader, const Family& family, AttentionSpec& attention, std::vector<Problem>& problems) {
  const FieldInfo& field = fields::kRopeTheta;
  std::optional<double> theta = reader.number({field.key, field.aliases[0]}, field.least_number, field.most_number);
  std::optional<double> share = reader.number({"partial_rotary_factor"}, 1e-6, 1);
  if (const auto nested = reader.find({"rope_parameters", "rope_scaling"})) {
    ObjectReader rope(*nested->value, nested->field, problems, ObjectReader::Null::absent);
    // What the config says takes the place of all that the family stretches by otherwise.
    attention.rope = {
        .theta = attention.rope.theta, .dim = attention.rope.dim, .interleaved = attention.rope.interleaved};
    read_scaling(rope, reader, attention, problems);
    const std::optional<double> inner = rope.number({field.key}, field.least_number, field.most_number);
    if (const auto inner_share = rope.number({"partial_rotary_factor"}, 1e-6, 1)) share = inner_share;
    rope.finish();
    if (theta && inner && *theta != *inner) {
      reader.problem(rope.field(field.key),
                     fmt::format("{} contradicts {} = {}", *inner, reader.field(field.key), *theta));
    }
    if (inner) theta = inner;
  }
  if (theta) attention.rope.theta = *theta;
  set_share(reader, family, share, attention);
}

}  // namespace shardproof::family_config
