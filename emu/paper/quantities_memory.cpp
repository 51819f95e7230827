// Quantities of memory: parameters, weights, caches, activations, and what training adds.
#include <fmt/format.h>

#include <cmath>

#include "emu/paper/internal/quantity_tables.h"

namespace shardproof::quantity_table {
namespace {

/// What the cache has room for.
std::string reserved(const Plan& plan, const RankFigures& r) {
  if (!plan.workload.serving) return fmt::format("{} sequences of the longest", r.sequences);
  const std::int64_t size = plan.workload.serving->tokens_of_block(plan.parallel.dcp);
  return fmt::format("{} blocks * {} tokens", r.kv_cache_reserved_tokens / size, size);
}

double weights(const Plan&, const RankFigures& r) {
  return r.weights.total();
}

/// Of weights that are trained: none is quantised.
double trained_weights(const Plan& plan, const RankFigures& r) {
  return static_cast<double>(r.parameters.total()) * dtype_bytes(plan.model);
}

std::string weights_text(const Plan& plan, const RankFigures& r) {
  const WeightBytes& w = r.weights;
  const auto text = [](double value) { return readable(value, Dimension::bytes); };
  const std::string parts = fmt::format("attention {}, experts {}, embedding and head {}, rest {}", text(w.attention),
                                        text(w.experts), text(w.ends), text(w.rest));
  if (plan.model.quantisation.format == QuantisedFormat::none) {
    return fmt::format("{} parameters * {} bytes = {}: {}", r.parameters.total(), dtype_bytes(plan.model),
                       text(w.total()), parts);
  }
  return fmt::format("{} parameters as {} stores them {} + their scales {} = {}: {}", r.parameters.total(),
                     plan.model.quantisation.method, text(w.total() - w.scales), text(w.scales), text(w.total()),
                     parts);
}

std::string bytes(double value) {
  return readable(value, Dimension::bytes);
}

/// Parameters whose optimizer state a rank keeps under ZeRO-1: experts are shared out over their replicas (edp), the
/// rest over the data-parallel ones (cp * dp).
double zero1_parameters(const Plan& plan, const RankFigures& r) {
  const Parallel& p = plan.parallel;
  const auto experts = static_cast<double>(r.parameters.experts);
  const double rest = static_cast<double>(r.parameters.total()) - experts;
  return std::ceil(rest / (p.cp * p.dp)) + std::ceil(experts / p.edp);
}

double training_bytes(const Plan& plan, const RankFigures& r) {
  return 2 * trained_weights(plan, r) + 12.0 * static_cast<double>(r.parameters.total()) + r.training_activation_bytes +
         r.communication_buffer_bytes;
}

void per_rank(std::vector<QuantityDefinition>& table, const char* name, const char* unit, Dimension dimension,
              const char* formula, double (*value)(const Plan&, const RankFigures&),
              std::string (*text)(const Plan&, const RankFigures&) = nullptr) {
  table.push_back(entry(name, unit, dimension, formula, [value, text](const QuantityContext& context) {
    const Plan& plan = context.plan;
    const RankText wording = text == nullptr ? RankText() : [&](const RankFigures& r) { return text(plan, r); };
    return over_ranks(
        context, [&](const RankFigures& r) { return value(plan, r); }, wording);
  }));
}

/// " + MLPs 17.2 B"; nothing where there are none.
std::string mlp_text(std::int64_t parameters) {
  if (parameters == 0) return "";
  return fmt::format(" + MLPs {}", readable(static_cast<double>(parameters), Dimension::parameters));
}

void add_parameters(std::vector<QuantityDefinition>& table) {
  table.push_back(entry(
      "parameters", "parameters", Dimension::parameters,
      "layers * (2 * (heads + kv_heads) * head_dim * hidden + 2 * hidden + experts * hidden + 3 * experts "
      "* intermediate_size * hidden) + hidden + 2 * vocabulary * hidden (once when tied); what other families have "
      "beside "
      "that, by the table of tensors",
      [](const QuantityContext& context) {
        const ParameterCount count = model_parameters(context.plan.model);
        const auto text = [](std::int64_t n) { return readable(static_cast<double>(n), Dimension::parameters); };
        return number(static_cast<double>(count.total()),
                      fmt::format("attention {} + experts {}{} + router {} + norms {} + embedding {} + head {} = {}",
                                  text(count.attention), text(count.experts), mlp_text(count.mlp), text(count.router),
                                  text(count.norms), text(count.embedding), text(count.head), text(count.total())));
      }));
  const auto part = [&](const char* name, std::int64_t ParameterCount::*member, const char* formula) {
    table.push_back(entry(name, "parameters", Dimension::parameters, formula, [member](const QuantityContext& context) {
      return number(static_cast<double>(model_parameters(context.plan.model).*member), "");
    }));
  };
  part("parameters_attention", &ParameterCount::attention, "layers * 2 * (heads + kv_heads) * head_dim * hidden");
  part("parameters_experts", &ParameterCount::experts, "layers * experts * 3 * intermediate_size * hidden");
  part("parameters_mlp", &ParameterCount::mlp, "3 * width * hidden of each dense layer and of shared experts");
  part("parameters_router", &ParameterCount::router, "layers * experts * hidden");
  part("parameters_norms", &ParameterCount::norms, "(2 * layers + 1) * hidden");
  part("parameters_embedding", &ParameterCount::embedding, "vocabulary * hidden");
  part("parameters_head", &ParameterCount::head, "vocabulary * hidden; 0 when tied");
  table.push_back(entry(
      "parameters_active", "parameters", Dimension::parameters,
      "parameters - layers * (experts - top_k) * 3 * intermediate_size * hidden: those that serve one token",
      [](const QuantityContext& context) {
        const ModelConfig& m = context.plan.model;
        double idle = 0;
        for (std::int64_t i = 0; i < m.layers.size(); ++i) {
          const FeedForwardSpec& experts = m.layers[i].feed_forward;
          const double biases =
              experts.expert_bias ? static_cast<double>(2 * experts.intermediate_size + m.hidden_size) : 0;
          idle += static_cast<double>(experts.num_experts - experts.top_k) *
                  (3.0 * static_cast<double>(experts.intermediate_size) * static_cast<double>(m.hidden_size) + biases);
        }
        return number(static_cast<double>(model_parameters(m).total()) - idle, "");
      }));
  per_rank(
      table, "parameters_per_gpu", "parameters", Dimension::parameters,
      "what the GPU holds of embedding / tp, attention / tp, norms, router, experts / (ep * etp), head / tp",
      [](const Plan&, const RankFigures& r) { return static_cast<double>(r.parameters.total()); },
      [](const Plan&, const RankFigures& r) {
        const auto text = [](std::int64_t n) { return readable(static_cast<double>(n), Dimension::parameters); };
        const ParameterCount& n = r.parameters;
        return fmt::format("attention {} + experts {}{} + embedding and head {} + norms and router {} = {}",
                           text(n.attention), text(n.experts), mlp_text(n.mlp), text(n.embedding + n.head),
                           text(n.norms + n.router), text(n.total()));
      });
}

void add_weights(std::vector<QuantityDefinition>& table) {
  per_rank(table, "weight_bytes_per_gpu", "bytes", Dimension::bytes,
           "parameters_per_gpu * bytes of dtype; of quantised weights, those of their format and of their scales",
           weights, weights_text);
  per_rank(table, "weight_scale_bytes_per_gpu", "bytes", Dimension::bytes,
           "of weight_bytes_per_gpu, those of the scales (and zero points) of quantised weights",
           [](const Plan&, const RankFigures& r) { return r.weights.scales; });
  per_rank(table, "attention_weight_bytes_per_gpu", "bytes", Dimension::bytes,
           "attention parameters * bytes of dtype, or as quantised weights are stored",
           [](const Plan&, const RankFigures& r) { return r.weights.attention; });
  per_rank(table, "expert_weight_bytes_per_gpu", "bytes", Dimension::bytes,
           "expert parameters * bytes of dtype, or as quantised weights are stored",
           [](const Plan&, const RankFigures& r) { return r.weights.experts; });
  per_rank(table, "embedding_weight_bytes_per_gpu", "bytes", Dimension::bytes,
           "(embedding + head) parameters * bytes of dtype",
           [](const Plan&, const RankFigures& r) { return r.weights.ends; });
  QuantityDefinition spread;
  spread.name = "weight_spread_with_embedding_on";
  spread.unit = "bytes";
  spread.dimension = Dimension::bytes;
  spread.formula = "of n: vocabulary * hidden * bytes of dtype / n, more on n GPUs than on the others";
  spread.arguments = 1;
  spread.compute = [](const QuantityContext& context, std::span<const double> arguments) {
    const ModelConfig& m = context.plan.model;
    const double n = arguments[0];
    if (!(n >= 1) || n >= context.plan.world()) return number(0, "the embedding is on every GPU");
    const double size = static_cast<double>(m.vocab_size * m.hidden_size) * dtype_bytes(m);
    return number(size / n,
                  fmt::format("an embedding of {} x {} x {} bytes = {} on {:.6g} GPUs is {} more on each of them "
                              "than on the other {:.6g}",
                              m.vocab_size, m.hidden_size, dtype_bytes(m), bytes(size), n, bytes(size / n),
                              context.plan.world() - n));
  };
  table.push_back(spread);
}

void add_serving(std::vector<QuantityDefinition>& table) {
  table.push_back(entry(
      "kv_cache_bytes", "bytes", Dimension::bytes,
      "2 * layers * kv_heads * head_dim * bytes of kv_cache_dtype (or dtype) * batch * longest sequence, of the whole "
      "model; with latent "
      "attention layers * (kv_lora_rank + qk_rope_head_dim) in place of the first four",
      [](const QuantityContext& context) {
        const ModelConfig& m = context.plan.model;
        const AttentionSpec& attention = m.layers[0].attention;
        const Workload& w = context.plan.workload;
        const std::int64_t longest = *std::max_element(w.lengths.begin(), w.lengths.end());
        const std::int64_t of_layer = cached_elements(attention, attention.kv_heads);
        const double value = static_cast<double>(m.layers.size() * of_layer * cache_bytes(context.plan)) *
                             static_cast<double>(w.batch() * longest);
        if (attention.latent()) {
          return number(value, fmt::format("{} layers * ({} + {}) * {} bytes * {} sequences * {} tokens = {}",
                                           m.layers.size(), attention.kv_lora_rank, attention.rope.dim,
                                           cache_bytes(context.plan), w.batch(), longest, bytes(value)));
        }
        return number(value, fmt::format("2 * {} layers * {} heads * {} * {} bytes * {} sequences * {} tokens = {}",
                                         m.layers.size(), attention.kv_heads, attention.head_dim,
                                         cache_bytes(context.plan), w.batch(), longest, bytes(value)));
      }));
  per_rank(table, "kv_cache_bytes_per_gpu", "bytes", Dimension::bytes,
           "2 * layers of the stage * kv_heads_per_rank * head_dim * bytes of kv_cache_dtype (or dtype) * tokens of "
           "the replica / (cp * dcp)",
           [](const Plan&, const RankFigures& r) { return r.kv_cache_bytes; });
  per_rank(
      table, "kv_cache_reserved_bytes_per_gpu", "bytes", Dimension::bytes,
      "the same with every sequence of the replica as long as the longest of the batch, or of its cache's blocks",
      [](const Plan&, const RankFigures& r) { return r.kv_cache_reserved_bytes; },
      [](const Plan& plan, const RankFigures& r) {
        const AttentionSpec& attention = plan.model.layers[0].attention;
        if (attention.latent()) {
          return fmt::format("{} layers * ({} + {}) * {} bytes * {} = {}", r.layers.count, attention.kv_lora_rank,
                             attention.rope.dim, cache_bytes(plan), reserved(plan, r),
                             bytes(r.kv_cache_reserved_bytes));
        }
        return fmt::format("2 * {} layers * {} heads * {} * {} bytes * {} = {}", r.layers.count, r.kv_heads.count,
                           plan.model.layers[0].attention.head_dim, cache_bytes(plan), reserved(plan, r),
                           bytes(r.kv_cache_reserved_bytes));
      });
  per_rank(table, "activation_bytes_per_gpu", "bytes", Dimension::bytes,
           "bytes of dtype * the largest set alive at once in a prefill of one microbatch: stream + max(attention: 2 "
           "hidden + "
           "2 q + 2 kv a row; experts: rows sent, arrived and returned; head: hidden + vocabulary / tp a row)",
           [](const Plan&, const RankFigures& r) { return r.activation_bytes; });
  per_rank(table, "communication_buffer_bytes_per_gpu", "bytes", Dimension::bytes,
           "input + output of the largest collective of a prefill, at the workload's routing",
           [](const Plan&, const RankFigures& r) { return r.communication_buffer_bytes; });
  per_rank(table, "inference_bytes_per_gpu", "bytes", Dimension::bytes,
           "weights + reserved key-value cache + activations + communication buffers", inference_bytes, inference_text);
}

void add_training(std::vector<QuantityDefinition>& table) {
  per_rank(table, "gradient_bytes_per_gpu", "bytes", Dimension::bytes, "parameters_per_gpu * bytes of dtype",
           trained_weights);
  per_rank(table, "master_weight_bytes_per_gpu", "bytes", Dimension::bytes, "parameters_per_gpu * 4 (fp32)",
           [](const Plan&, const RankFigures& r) { return 4.0 * static_cast<double>(r.parameters.total()); });
  per_rank(
      table, "adam_bytes_per_gpu", "bytes", Dimension::bytes, "parameters_per_gpu * 8 (two fp32 moments)",
      [](const Plan&, const RankFigures& r) { return 8.0 * static_cast<double>(r.parameters.total()); },
      [](const Plan&, const RankFigures& r) {
        return fmt::format("{} parameters * 8 bytes = {}", r.parameters.total(),
                           bytes(8.0 * static_cast<double>(r.parameters.total())));
      });
  per_rank(table, "adam_and_master_bytes_per_gpu", "bytes", Dimension::bytes, "parameters_per_gpu * 12",
           [](const Plan&, const RankFigures& r) { return 12.0 * static_cast<double>(r.parameters.total()); });
  per_rank(table, "adam_zero1_bytes_per_gpu", "bytes", Dimension::bytes,
           "8 * (expert parameters / edp + other parameters / (cp * dp))",
           [](const Plan& plan, const RankFigures& r) { return 8.0 * zero1_parameters(plan, r); });
  per_rank(table, "adam_and_master_zero1_bytes_per_gpu", "bytes", Dimension::bytes,
           "12 * (expert parameters / edp + other parameters / (cp * dp))",
           [](const Plan& plan, const RankFigures& r) { return 12.0 * zero1_parameters(plan, r); });
  per_rank(table, "training_activation_bytes_per_gpu", "bytes", Dimension::bytes,
           "what the backward pass reads of one layer * layers of the stage * min(microbatches, pp - stage) in flight "
           "(1F1B); "
           "attention scores recomputed",
           [](const Plan&, const RankFigures& r) { return r.training_activation_bytes; });
  per_rank(table, "training_bytes_per_gpu", "bytes", Dimension::bytes,
           "weights + gradients + master weights + Adam moments + training activations + communication buffers",
           training_bytes, [](const Plan& plan, const RankFigures& r) {
             const auto n = static_cast<double>(r.parameters.total());
             return fmt::format(
                 "weights {} + gradients {} + master weights {} + Adam {} + activations {} + buffers {} = {}",
                 bytes(trained_weights(plan, r)), bytes(trained_weights(plan, r)), bytes(4 * n), bytes(8 * n),
                 bytes(r.training_activation_bytes), bytes(r.communication_buffer_bytes),
                 bytes(training_bytes(plan, r)));
           });
}

void add_shares(std::vector<QuantityDefinition>& table) {
  const auto share = [&](const char* name, const char* formula, double (*value)(const Plan&, const RankFigures&)) {
    table.push_back(entry(name, "share", Dimension::share, formula, [value](const QuantityContext& context) {
      if (!context.plan.hardware || context.plan.hardware->memory_gb == 0) {
        return unknown("the plan states no hardware.memory_gb");
      }
      const double memory = context.plan.hardware->memory_gb * 1e9;
      return over_ranks(
          context, [&](const RankFigures& r) { return value(context.plan, r) / memory; },
          [&](const RankFigures& r) {
            const double used = value(context.plan, r);
            return fmt::format("{} / {} = {}", bytes(used), bytes(memory), readable(used / memory, Dimension::share));
          });
    }));
  };
  share("memory_share", "inference_bytes_per_gpu / memory", inference_bytes);
  share("training_memory_share", "training_bytes_per_gpu / memory", training_bytes);
  table.push_back(entry("memory_imbalance", "share", Dimension::share, "max / mean - 1 of inference_bytes_per_gpu",
                        [](const QuantityContext& context) {
                          const QuantityValue used = over_ranks(
                              context, [&](const RankFigures& r) { return inference_bytes(context.plan, r); });
                          return number(used.mean > 0 ? used.max / used.mean - 1 : 0,
                                        fmt::format("max {} / mean {} - 1", bytes(used.max), bytes(used.mean)));
                        }));
}

}  // namespace

void add_memory_quantities(std::vector<QuantityDefinition>& table) {
  add_parameters(table);
  add_weights(table);
  add_serving(table);
  add_training(table);
  add_shares(table);
}

}  // namespace shardproof::quantity_table

namespace shardproof {

double inference_bytes(const Plan& plan, const RankFigures& r) {
  return quantity_table::weights(plan, r) + r.kv_cache_reserved_bytes + r.activation_bytes +
         r.communication_buffer_bytes;
}

std::string inference_text(const Plan& plan, const RankFigures& r) {
  using quantity_table::bytes;
  return fmt::format("weights {} + reserved key-value cache {} + activations {} + buffers {} = {}",
                     bytes(quantity_table::weights(plan, r)), bytes(r.kv_cache_reserved_bytes),
                     bytes(r.activation_bytes), bytes(r.communication_buffer_bytes), bytes(inference_bytes(plan, r)));
}

}  // namespace shardproof
