#include "emu/reference/reference.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "emu/reference/math.h"

namespace shardproof::reference {
namespace {

void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("reference: " + message);
}

/// Everything a layer needs besides its input.
struct Model {
  const ModelConfig& config;
  std::span<const std::int64_t> lengths;
  std::span<const std::int64_t> positions;
  const ReadWeight& source;
  const KeepTap& sink;
  const SumRecorder sums;
  Arithmetic arithmetic;
  std::vector<double>& values;  // of the weight that is in use
  int layer = -1;               // of the tensors that are made

  TapName at(std::string_view name) const { return {layer, name}; }

  /// Until the next is asked for.
  std::span<const double> weight(const std::string& name, std::int64_t rows, std::int64_t cols) const {
    source(name, values);
    const std::int64_t size = rows * cols;
    require(static_cast<std::int64_t>(values.size()) == size,
            name + " has " + std::to_string(values.size()) + " elements, the model needs " + std::to_string(rows) +
                " x " + std::to_string(cols) + " = " + std::to_string(size));
    return values;
  }

  /// stored(x W^T) for the weight of that name, [outputs, x.cols]. `into` is the tap that it goes into.
  Tensor project(const Tensor& x, const std::string& name, std::int64_t outputs, std::string_view into,
                 std::string_view sum = "x W^T") const {
    const std::span<const double> w = weight(name, outputs, x.cols);
    sums.linear(at(into), sum, x, w);
    return stored(linear(x, w, outputs), arithmetic);
  }

  Tensor norm(const Tensor& x, const std::string& name, std::string_view into) const {
    sums.squares(at(into), x);
    return rms_norm(x, weight(name, 1, x.cols), config.rms_norm_eps, arithmetic);
  }

  Tensor rotated(const Tensor& x, const AttentionSpec& spec, std::string_view into) const {
    sums.rotation(at(into), x);
    return rope(x, positions, spec.head_dim, spec.rope_theta, arithmetic);
  }

  /// stored(x + y)
  Tensor sum(Tensor x, const Tensor& y, std::string_view into) const {
    sums.addition(at(into), x, y);
    for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] += y.values[i];
    return stored(std::move(x), arithmetic);
  }

  void tap(std::string_view name, Tensor x) const {
    if (sink) sink(at(name), x.rows, x.cols, std::move(x.values));
  }
};

void check(const ModelConfig& model, std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths) {
  require(model.hidden_size > 0 && model.vocab_size > 0, "hidden size and vocabulary must be positive");
  for (const LayerSpec& layer : model.layers.kinds()) {
    const AttentionSpec& attention = layer.attention;
    const FeedForwardSpec& experts = layer.feed_forward;
    require(attention.head_dim > 0 && attention.head_dim % 2 == 0, "head_dim must be positive and even");
    require(attention.kv_heads > 0 && attention.heads > 0 && attention.heads % attention.kv_heads == 0,
            "kv_heads must divide heads");
    require(!attention.query_key_norm, "norms of queries and keys are not computed");
    require(experts.intermediate_size > 0, "intermediate_size must be positive");
    require(experts.top_k >= 1 && experts.top_k <= experts.num_experts, "top_k must be in 1..num_experts");
  }
  std::int64_t total = 0;
  for (const std::int64_t length : lengths) {
    require(length >= 0, "a sequence has the length " + std::to_string(length));
    total += length;
  }
  require(
      total == static_cast<std::int64_t>(tokens.size()),
      "the lengths add up to " + std::to_string(total) + ", there are " + std::to_string(tokens.size()) + " tokens");
  for (const std::int32_t token : tokens) {
    require(token >= 0 && token < model.vocab_size,
            "token " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(model.vocab_size));
  }
}

/// Each token's index in its sequence.
std::vector<std::int64_t> positions_of(std::span<const std::int64_t> lengths) {
  std::vector<std::int64_t> positions;
  for (const std::int64_t length : lengths) {
    for (std::int64_t i = 0; i < length; ++i) positions.push_back(i);
  }
  return positions;
}

Tensor embed(const Model& model, std::span<const std::int32_t> tokens) {
  const ModelConfig& config = model.config;
  const std::span<const double> table =
      model.weight("model.embed_tokens.weight", config.vocab_size, config.hidden_size);
  Tensor x(static_cast<std::int64_t>(tokens.size()), config.hidden_size);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const std::int64_t token = tokens[static_cast<std::size_t>(t)];
    for (std::int64_t i = 0; i < x.cols; ++i) {
      x.row(t)[i] = table[static_cast<std::size_t>(token * x.cols + i)];
    }
  }
  return stored(std::move(x), model.arithmetic);
}

/// x + Wo attention(...)
Tensor attention_block(const Model& model, const AttentionSpec& spec, const Tensor& x, const std::string& weights) {
  const std::string projections = weights + "self_attn.";
  const std::int64_t query_width = spec.heads * spec.head_dim;
  const std::int64_t kv_width = spec.kv_heads * spec.head_dim;

  const Tensor n = model.norm(x, weights + "input_layernorm.weight", "attention.norm");
  model.tap("attention.norm", n);
  const Tensor q =
      model.rotated(model.project(n, projections + "q_proj.weight", query_width, "attention.q"), spec, "attention.q");
  model.tap("attention.q", q);
  const Tensor k =
      model.rotated(model.project(n, projections + "k_proj.weight", kv_width, "attention.k"), spec, "attention.k");
  model.tap("attention.k", k);
  const Tensor v = model.project(n, projections + "v_proj.weight", kv_width, "attention.v");
  model.tap("attention.v", v);
  model.sums.attention(model.at("attention.context"), q, k, v, spec.head_dim, model.lengths);
  const Tensor context = attention(q, k, v, model.lengths, spec.head_dim, model.arithmetic);
  model.tap("attention.context", context);
  const Tensor output = model.project(context, projections + "o_proj.weight", x.cols, "attention.output");
  model.tap("attention.output", output);
  Tensor residual = model.sum(x, output, "attention.residual");
  model.tap("attention.residual", residual);
  return residual;
}

/// stored(h W2^T), h = stored(silu(g) * u), g = stored(x W1^T), u = stored(x W3^T), for the rows of x.
Tensor expert(const Model& model, const FeedForwardSpec& spec, const Tensor& x, const std::string& weights,
              std::string_view into) {
  const Tensor gate =
      model.project(x, weights + "w1.weight", spec.intermediate_size, into, "x W^T of an expert's gate");
  const Tensor up = model.project(x, weights + "w3.weight", spec.intermediate_size, into, "x W^T of an expert's up");
  model.sums.silu(model.at(into), gate);
  Tensor h(x.rows, spec.intermediate_size);
  for (std::size_t i = 0; i < h.values.size(); ++i) {
    h.values[i] = silu(gate.values[i], model.arithmetic) * up.values[i];
  }
  return model.project(stored(std::move(h), model.arithmetic), weights + "w2.weight", x.cols, into,
                       "h W^T of an expert's down");
}

/// x + sum over the chosen experts, in the order of the choice, of weight * expert(norm(x)).
Tensor moe_block(const Model& model, const FeedForwardSpec& spec, const Tensor& x, const std::string& weights) {
  const std::string moe = weights + "block_sparse_moe.";

  const Tensor n = model.norm(x, weights + "post_attention_layernorm.weight", "moe.norm");
  model.tap("moe.norm", n);
  const Tensor logits = model.project(n, moe + "gate.weight", spec.num_experts, "moe.router_logits");
  model.tap("moe.router_logits", logits);
  model.sums.routing(model.at("moe.router_weights"), spec.num_experts);
  const Routing routing = route(logits, spec.top_k, spec.norm_topk_prob, model.arithmetic);
  model.tap("moe.router_choice", routing.choice);
  model.tap("moe.router_weights", routing.weights);

  // by_slot.row(t * top_k + slot) is what the expert that token t chose in that slot makes of it.
  Tensor by_slot(x.rows * spec.top_k, x.cols);
  for (std::int64_t e = 0; e < spec.num_experts; ++e) {
    std::vector<std::int64_t> slots;
    for (std::int64_t s = 0; s < by_slot.rows; ++s) {
      if (routing.choice.values[static_cast<std::size_t>(s)] == static_cast<double>(e)) slots.push_back(s);
    }
    if (slots.empty()) continue;
    Tensor inputs(static_cast<std::int64_t>(slots.size()), x.cols);
    for (std::int64_t r = 0; r < inputs.rows; ++r) {
      const double* token = n.row(slots[static_cast<std::size_t>(r)] / spec.top_k);
      std::copy_n(token, n.cols, inputs.row(r));
    }
    const Tensor outputs = expert(model, spec, inputs, moe + "experts." + std::to_string(e) + ".", "moe.output");
    for (std::int64_t r = 0; r < inputs.rows; ++r) {
      std::copy_n(outputs.row(r), outputs.cols, by_slot.row(slots[static_cast<std::size_t>(r)]));
    }
  }

  model.sums.combination(model.at("moe.output"), routing.weights, by_slot);
  Tensor output(x.rows, x.cols);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double weight = routing.weights.row(t)[slot];
      const double* y = by_slot.row(t * spec.top_k + slot);
      for (std::int64_t i = 0; i < x.cols; ++i) output.row(t)[i] += weight * y[i];
    }
  }
  output = stored(std::move(output), model.arithmetic);
  model.tap("moe.output", output);
  Tensor residual = model.sum(x, output, "moe.residual");
  model.tap("moe.residual", residual);
  return residual;
}

}  // namespace

void forward(const ModelConfig& config, std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths,
             const ReadWeight& weights, const Options& options, const KeepTap& sink) {
  check(config, tokens, lengths);
  const std::vector<std::int64_t> positions = positions_of(lengths);
  std::vector<double> values;
  const SumSink on_sum = options.arithmetic == Arithmetic::exact ? options.on_sum : nullptr;
  Model model{config, lengths, positions, weights, sink, SumRecorder(on_sum), options.arithmetic, values};

  Tensor x = embed(model, tokens);
  model.tap("embedding", x);
  for (std::int64_t layer = 0; layer < config.layers.size(); ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    model.layer = static_cast<int>(layer);
    x = attention_block(model, config.layers[layer].attention, x, "model." + prefix);
    x = moe_block(model, config.layers[layer].feed_forward, x, "model." + prefix);
  }
  model.layer = -1;
  const Tensor final_norm = model.norm(x, "model.norm.weight", "final_norm");
  model.tap("final_norm", final_norm);
  const std::string head = config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  model.tap("logits", model.project(final_norm, head, config.vocab_size, "logits"));
}

}  // namespace shardproof::reference
