#include "tools/op_shape.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "ops/attention.h"
#include "ops/attention_parts.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/permute.h"
#include "ops/rope.h"
#include "ops/router.h"

namespace shardproof::tools {
namespace {

/// Pairs of a query and a key that it sees.
double pairs_of(const OpShape& shape) {
  double pairs = 0;
  for (const KeySpan& span : shape.spans) {
    pairs += span.pairs();
    if (shape.window == 0) continue;
    // The i-th query sees keys + i, of which those beyond the window are hidden.
    const std::int64_t first = std::max<std::int64_t>(0, shape.window - span.keys + 1);
    for (std::int64_t i = first; i < span.queries; ++i) pairs -= static_cast<double>(span.keys + i - shape.window);
  }
  return pairs;
}

ops::Cost attention_cost(const OpShape& shape, int bytes) {
  return ops::attention_cost(pairs_of(shape), shape.rows, shape.heads(), 0, shape.head_dim, shape.value_dim, bytes) +
         ops::attention_cost(0, shape.keys, 0, shape.kv_heads, shape.head_dim, shape.value_dim, bytes);
}

/// Of the spans: how many, and the least and most of something.
std::string range_of(const std::vector<KeySpan>& spans, std::int64_t (*of)(const KeySpan&), std::string_view dash) {
  std::int64_t least = spans.empty() ? 0 : of(spans.front()), most = least;
  for (const KeySpan& span : spans) {
    least = std::min(least, of(span));
    most = std::max(most, of(span));
  }
  return least == most ? fmt::format("{}", most) : fmt::format("{}{}{}", least, dash, most);
}

std::int64_t queries_of(const KeySpan& span) {
  return span.queries;
}
std::int64_t last_sees(const KeySpan& span) {
  return span.keys + (span.causal ? span.queries - 1 : 0);
}

std::string describe_attention(const OpShape& shape) {
  std::string text = fmt::format("{} x {}", shape.spans.size(), range_of(shape.spans, queries_of, "-"));
  const bool alone =
      std::ranges::all_of(shape.spans, [](const KeySpan& span) { return span.causal && span.keys == 1; });
  text += alone ? " tokens" : fmt::format(" tokens to {} keys", range_of(shape.spans, last_sees, "-"));
  text += fmt::format(", heads {}/{} x {}", shape.heads(), shape.kv_heads, shape.head_dim);
  if (shape.value_dim != shape.head_dim) text += fmt::format("+{}", shape.value_dim);
  if (shape.window > 0) text += fmt::format(", window {}", shape.window);
  return text + (shape.sinks ? ", sinks" : "");
}

std::string attention_name(const OpShape& shape) {
  std::string name = fmt::format("{}/heads:{}/kv_heads:{}/head_dim:{}", to_string(shape.kernel), shape.heads(),
                                 shape.kv_heads, shape.head_dim);
  if (shape.value_dim != shape.head_dim) name += fmt::format("/value_dim:{}", shape.value_dim);
  if (shape.window > 0) name += fmt::format("/window:{}", shape.window);
  if (shape.sinks) name += "/sinks:1";
  // Spans that are alike once, with how many they are.
  std::string spans;
  for (std::size_t i = 0, alike = 0; i < shape.spans.size(); i += alike) {
    const KeySpan& span = shape.spans[i];
    for (alike = 1; i + alike < shape.spans.size(); ++alike) {
      const KeySpan& next = shape.spans[i + alike];
      if (next.queries != span.queries || next.keys != span.keys || next.causal != span.causal) break;
    }
    spans += fmt::format("{}{}x{}", spans.empty() ? "" : "+", alike, span.queries);
    if (!span.causal || span.keys != 1) spans += fmt::format("to{}{}", span.keys, span.causal ? "" : "all");
  }
  return name + fmt::format("/sequences:{}/keys:{}", spans, shape.keys);
}

std::string route_name(const OpShape& s) {
  std::string name = fmt::format("route/tokens:{}/experts:{}/top_k:{}", s.rows, s.inner, s.cols);
  if (s.groups > 1) name += fmt::format("/groups:{}/top_groups:{}", s.groups, s.top_groups);
  if (s.sigmoid) name += "/sigmoid:1";
  if (s.sparsemixer) name += "/sparsemixer:1";
  return name + (s.bias ? "/bias:1" : "") + (s.normalise ? "" : "/normalise:0");
}

}  // namespace

ops::LatentHead latent_head_of(const OpShape& shape) {
  return {.still = shape.head_dim - shape.rope_dim, .turned = shape.rope_dim, .value_dim = shape.value_dim};
}

const char* to_string(Kernel kernel) {
  constexpr const char* kNames[] = {
      "embed",          "rms_norm",  "rms_norm_part",  "sum_squares",    "layer_norm",
      "linear",         "rope",      "split_heads",    "absorb_queries", "latent_attention",
      "expand_context", "attention", "attention_part", "merge_parts",    "add",
      "add_scaled",     "scale",     "gate_rows",      "route",          "gather_rows",
      "expert",         "combine"};
  return kNames[static_cast<std::size_t>(kernel)];
}

std::vector<KeySpan> whole_sequences(const std::vector<std::int64_t>& lengths) {
  std::vector<KeySpan> spans;
  std::int64_t first = 0;
  for (const std::int64_t length : lengths) {
    spans.push_back({.queries = length, .first_key = first, .keys = 1, .causal = true});
    first += length;
  }
  return spans;
}

std::string describe(const OpShape& s) {
  switch (s.kernel) {
    case Kernel::linear:
      return fmt::format("m {}, n {}, k {}{}", s.rows, s.cols, s.inner, s.bias ? ", bias" : "");
    case Kernel::expert:
      return fmt::format("tokens {}, hidden {}, width {}{}{}", s.rows, s.cols, s.inner, s.bias ? ", bias" : "",
                         s.limit > 0 ? ", clamped" : "");
    case Kernel::absorb_queries:
      return fmt::format("tokens {}, heads {} x {}+{}, latent {}", s.rows, s.kv_heads, s.head_dim - s.rope_dim,
                         s.rope_dim, s.inner);
    case Kernel::expand_context:
      return fmt::format("tokens {}, heads {} x {}, latent {}", s.rows, s.kv_heads, s.value_dim, s.inner);
    case Kernel::attention:
    case Kernel::attention_part:
    case Kernel::latent_attention:
      return describe_attention(s);
    case Kernel::merge_parts:
      return fmt::format("{} x {}, parts {}", s.rows, s.cols, s.inner);
    case Kernel::route:
      return fmt::format("tokens {}, experts {}, top {}{}", s.rows, s.inner, s.cols,
                         s.groups > 1 ? fmt::format(", groups {}/{}", s.top_groups, s.groups) : "");
    case Kernel::combine:
      return fmt::format("{} x {}, slots {}{}", s.rows, s.cols, s.inner,
                         s.present < s.rows * s.inner ? fmt::format(", rows {}", s.present) : "");
    default:
      return fmt::format("{} x {}", s.rows, s.cols);
  }
}

std::string benchmark_name(const OpShape& s) {
  switch (s.kernel) {
    case Kernel::linear:
      return fmt::format("linear/m:{}/n:{}/k:{}{}", s.rows, s.cols, s.inner, s.bias ? "/bias:1" : "");
    case Kernel::expert:
      return fmt::format("expert/tokens:{}/hidden:{}/width:{}{}{}", s.rows, s.cols, s.inner, s.bias ? "/bias:1" : "",
                         s.limit > 0 ? "/clamped:1" : "");
    case Kernel::absorb_queries:
    case Kernel::expand_context:
      return fmt::format("{}/tokens:{}/heads:{}/head_dim:{}/value_dim:{}/rank:{}", to_string(s.kernel), s.rows,
                         s.kv_heads, s.head_dim, s.value_dim, s.inner);
    case Kernel::attention:
    case Kernel::attention_part:
    case Kernel::latent_attention:
      return attention_name(s);
    case Kernel::merge_parts:
      return fmt::format("merge_parts/rows:{}/cols:{}/head_dim:{}/parts:{}", s.rows, s.cols, s.value_dim, s.inner);
    case Kernel::route:
      return route_name(s);
    case Kernel::combine:
      return fmt::format("combine/tokens:{}/hidden:{}/slots:{}{}", s.rows, s.cols, s.inner,
                         s.present < s.rows * s.inner ? fmt::format("/rows:{}", s.present) : "");
    case Kernel::rope:
      return fmt::format("rope/rows:{}/cols:{}/head_dim:{}{}{}", s.rows, s.cols, s.head_dim,
                         s.rope_dim < s.head_dim ? fmt::format("/turned:{}", s.rope_dim) : "",
                         s.interleaved ? "/interleaved:1" : "");
    default:
      return fmt::format("{}/rows:{}/cols:{}", to_string(s.kernel), s.rows, s.cols);
  }
}

ops::Cost cost_of(const OpShape& shape, int bytes) {
  const std::int64_t rows = shape.rows, cols = shape.cols;
  switch (shape.kernel) {
    case Kernel::embed:
      return ops::embed_cost(rows, cols, bytes);
    case Kernel::rms_norm:
    case Kernel::rms_norm_part:
      return ops::rms_norm_cost(rows, cols, bytes);
    case Kernel::sum_squares:
      return ops::sum_squares_cost(rows, cols, bytes);
    case Kernel::layer_norm:
      return ops::layer_norm_cost(rows, cols, bytes);
    case Kernel::linear:
      return ops::linear_cost(rows, cols, shape.inner, bytes);
    case Kernel::rope:
      return ops::rope_cost(rows, cols, bytes);
    case Kernel::split_heads: {
      // The shared key is there once, and in every head's.
      const std::int64_t product = cols - shape.kv_heads * shape.inner;
      return ops::split_latent_heads_cost(rows, product, shape.inner, cols, 0, bytes);
    }
    case Kernel::absorb_queries:
      return ops::absorb_queries_cost(rows, shape.kv_heads, shape.inner, latent_head_of(shape), bytes);
    case Kernel::expand_context:
      return ops::expand_context_cost(rows, shape.kv_heads, shape.inner, latent_head_of(shape), bytes);
    case Kernel::latent_attention:
      return ops::attend_to_latents_cost(pairs_of(shape), rows, shape.keys, shape.heads(), shape.value_dim,
                                         shape.head_dim - shape.value_dim, bytes);
    case Kernel::attention:
    case Kernel::attention_part:
      return attention_cost(shape, bytes);
    case Kernel::merge_parts:
      return ops::merge_parts_cost(shape.inner, rows, shape.heads(), shape.value_dim, bytes);
    case Kernel::add:
    case Kernel::gate_rows:
      return ops::add_cost(rows, cols, bytes);
    case Kernel::add_scaled:
      return ops::add_cost(rows, cols, bytes) + ops::Cost{ops::add_cost(rows, cols, bytes).flops, 0};
    case Kernel::scale:
      return ops::scale_cost(rows, cols, bytes);
    case Kernel::route:
      return ops::route_cost(rows, shape.inner, cols, bytes);
    case Kernel::gather_rows:
      return ops::gather_rows_cost(rows, cols, bytes);
    case Kernel::expert:
      return ops::expert_cost(rows, cols, shape.inner, bytes);
    case Kernel::combine:
      return ops::combine_rows_cost(rows, shape.present, cols, bytes);
  }
  return {};
}

}  // namespace shardproof::tools
