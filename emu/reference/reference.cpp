#include "emu/reference/reference.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "emu/reference/math.h"

namespace shardproof::reference {
namespace {

// So many weights of a product are in memory at a time.
constexpr std::int64_t kWeightsAtOnce = std::int64_t{1} << 22;

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
  const std::vector<bool>& absorbed;  // tokens; or none
  std::vector<double>& values;        // of the weight that is in use
  int layer = -1;                     // of the tensors that are made

  TapName at(std::string_view name) const { return {layer, name}; }

  /// Rows begin..begin+rows of a weight, until the next is asked for.
  std::span<const double> weight_rows(const std::string& name, std::int64_t begin, std::int64_t rows,
                                      std::int64_t cols) const {
    source(name, begin, rows, values);
    const std::int64_t size = rows * cols;
    require(static_cast<std::int64_t>(values.size()) == size,
            name + " has " + std::to_string(values.size()) + " elements, the model needs " + std::to_string(rows) +
                " x " + std::to_string(cols) + " = " + std::to_string(size));
    return values;
  }

  std::span<const double> vector(const std::string& name, std::int64_t size) const {
    return weight_rows(name, 0, 1, size);
  }

  /// stored(x W^T + b) for the weight of that name, [outputs, x.cols], and the bias, if it has one. `into` is the tap
  /// that it goes into.
  Tensor project(const Tensor& x, const std::string& name, std::int64_t outputs, std::string_view into,
                 std::string_view sum = "x W^T", const std::string& bias_name = "") const {
    const std::int64_t at_once = std::max<std::int64_t>(1, kWeightsAtOnce / std::max<std::int64_t>(1, x.cols));
    Tensor y(x.rows, outputs);
    for (std::int64_t begin = 0; begin < outputs; begin += at_once) {
      const std::int64_t count = std::min(at_once, outputs - begin);
      const std::span<const double> w = weight_rows(name, begin, count, x.cols);
      const Tensor block = linear(x, w, count);
      sums.linear(at(into), sum, x, w, bias_name.empty() ? 0 : kLargestBias);
      for (std::int64_t t = 0; t < y.rows; ++t) std::copy_n(block.row(t), count, y.row(t) + begin);
    }
    if (bias_name.empty()) return stored(std::move(y), arithmetic);
    const std::span<const double> bias = vector(bias_name, outputs);
    sums.bias(at(into), bias);
    for (std::int64_t t = 0; t < y.rows; ++t) {
      for (std::int64_t o = 0; o < outputs; ++o) y.row(t)[o] += bias[static_cast<std::size_t>(o)];
    }
    return stored(std::move(y), arithmetic);
  }

  Tensor norm(const Tensor& x, const std::string& name, std::string_view into) const {
    sums.squares(at(into), x);
    return rms_norm(x, vector(name, x.cols), config.rms_norm_eps, arithmetic);
  }

  /// Of the residual stream: the model's kind of norm. `name` has no ending.
  Tensor stream_norm(const Tensor& x, const std::string& name, std::string_view into) const {
    if (!config.layer_norm) return norm(x, name + ".weight", into);
    sums.mean(at(into), x);
    sums.squares(at(into), centred(x, arithmetic));
    const std::span<const double> read = vector(name + ".weight", x.cols);
    const std::vector<double> scale(read.begin(), read.end());
    const std::span<const double> bias = vector(name + ".bias", x.cols);
    sums.bias(at(into), bias);
    return reference::layer_norm(x, scale, bias, config.rms_norm_eps, arithmetic);
  }

  /// Of each head by itself.
  Tensor head_norm(Tensor x, std::int64_t head_dim, const std::string& name, std::string_view into) const {
    const std::int64_t rows = x.rows, cols = x.cols;
    x.rows = rows * cols / head_dim;
    x.cols = head_dim;
    Tensor y = norm(x, name, into);
    y.rows = rows;
    y.cols = cols;
    return y;
  }

  /// Heads of `dim` elements, of which those from `begin` on turn.
  Tensor rotated(const Tensor& x, const AttentionSpec& spec, std::int64_t dim, std::int64_t begin,
                 std::string_view into) const {
    sums.rotation(at(into), x, spec.rope.amplitude);
    return rope(x, positions, dim, begin, spec.rope, arithmetic);
  }

  /// stored(x + y), of what a block makes stored(x + stored(multiplier y))
  Tensor add_to_stream(const Tensor& x, Tensor y, std::string_view into) const {
    if (config.residual_multiplier != 1) {
      for (double& value : y.values) value *= config.residual_multiplier;
      y = stored(std::move(y), arithmetic);
    }
    return sum(x, y, into);
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

void check(const ModelConfig& model, std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths,
           const Options& options) {
  require(model.hidden_size > 0 && model.vocab_size > 0, "hidden size and vocabulary must be positive");
  for (const LayerSpec& layer : model.layers.kinds()) {
    const AttentionSpec& attention = layer.attention;
    const FeedForwardSpec& experts = layer.feed_forward;
    require(attention.head_dim > 0 && attention.head_dim % 2 == 0, "head_dim must be positive and even");
    require(attention.kv_heads > 0 && attention.heads > 0 && attention.heads % attention.kv_heads == 0,
            "kv_heads must divide heads");
    require(attention.rope.type != RopeType::longrope ||
                static_cast<std::int64_t>(attention.rope.pair_factors.size()) == attention.rope_dim() / 2,
            "longrope needs a factor for each pair");
    require(!attention.latent() || attention.kv_heads == attention.heads, "latent attention has keys for every head");
    require(experts.intermediate_size > 0, "intermediate_size must be positive");
    require(experts.dense() || experts.num_experts % experts.groups == 0, "groups must divide the experts");
    if (experts.dense()) continue;
    require(experts.scoring != Scoring::sparsemixer || experts.groups == 1, "sparsemixer has no groups");
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
  require(options.absorbed.empty() || options.absorbed.size() == tokens.size(),
          "a form is given of " + std::to_string(options.absorbed.size()) + " tokens, there are " +
              std::to_string(tokens.size()));
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
  Tensor x(static_cast<std::int64_t>(tokens.size()), config.hidden_size);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    const std::int64_t token = tokens[static_cast<std::size_t>(t)];
    std::ranges::copy(model.weight_rows("model.embed_tokens.weight", token, 1, x.cols), x.row(t));
  }
  return stored(std::move(x), model.arithmetic);
}

/// Columns begin..begin+count of each block of `block` columns, one block after another.
Tensor columns_of_blocks(const Tensor& x, std::int64_t block, std::int64_t begin, std::int64_t count) {
  Tensor y(x.rows, x.cols / block * count);
  for (std::int64_t t = 0; t < x.rows; ++t) {
    for (std::int64_t i = 0; i * block < x.cols; ++i) {
      std::copy_n(x.row(t) + i * block + begin, count, y.row(t) + i * count);
    }
  }
  return y;
}

struct Heads {
  Tensor q, k, v;
  Tensor latents = {};  // of latent attention, [c, r] as below
};

/// Queries, keys and values of grouped-query attention.
Heads project_heads(const Model& model, const AttentionSpec& spec, const Tensor& n, const std::string& weights) {
  const std::int64_t dim = spec.head_dim;
  const auto project = [&](const char* name, std::int64_t width, std::string_view into) {
    const std::string bias = spec.qkv_bias ? weights + name + ".bias" : "";
    return model.project(n, weights + name + ".weight", width, into, "x W^T", bias);
  };
  const auto normed = [&](Tensor x, const char* name, std::string_view into) {
    if (spec.query_key_norm == QueryKeyNorm::none) return x;
    if (spec.query_key_norm == QueryKeyNorm::full) return model.norm(x, weights + name, into);
    return model.head_norm(std::move(x), dim, weights + name, into);
  };
  const auto held = [&](Tensor x) { return clipped(std::move(x), spec.clip_qkv, model.arithmetic); };
  const Tensor q = held(normed(project("q_proj", spec.heads * dim, "attention.q"), "q_norm.weight", "attention.q"));
  const Tensor k = held(normed(project("k_proj", spec.kv_heads * dim, "attention.k"), "k_norm.weight", "attention.k"));
  return {model.rotated(q, spec, dim, 0, "attention.q"), model.rotated(k, spec, dim, 0, "attention.k"),
          held(project("v_proj", spec.kv_heads * spec.value_dim(), "attention.v"))};
}

/// Of latent attention (DeepSeek-AI 2024, "DeepSeek-V2", section 2.1): q = Wqb rms(Wqa n), or Wq n; [c, r] = Wkva n; of
/// each head [k, v] = Wkvb rms(c); the last elements of q turn, and so does r, which every head's key ends with.
Heads project_latent(const Model& model, const AttentionSpec& spec, const Tensor& n, const std::string& weights) {
  const std::int64_t dim = spec.head_dim, turned = spec.rope.dim, still = dim - turned, value_dim = spec.value_dim();
  Tensor source = n;
  if (spec.q_lora_rank > 0) {
    const Tensor latent = model.project(n, weights + "q_a_proj.weight", spec.q_lora_rank, "attention.q_latent", "x W^T",
                                        spec.qkv_bias ? weights + "q_a_proj.bias" : "");
    model.tap("attention.q_latent", latent);
    source = model.norm(latent, weights + "q_a_layernorm.weight", "attention.q_latent_norm");
    model.tap("attention.q_latent_norm", source);
  }
  const Tensor q = model.project(source, weights + "q_proj.weight", spec.heads * dim, "attention.q");
  const Tensor latent =
      model.project(n, weights + "kv_a_proj_with_mqa.weight", spec.kv_lora_rank + turned, "attention.kv_latent",
                    "x W^T", spec.qkv_bias ? weights + "kv_a_proj_with_mqa.bias" : "");
  model.tap("attention.kv_latent", latent);
  const Tensor c = model.norm(columns_of_blocks(latent, latent.cols, 0, spec.kv_lora_rank),
                              weights + "kv_a_layernorm.weight", "attention.kv_latent_norm");
  model.tap("attention.kv_latent_norm", c);
  const Tensor r =
      model.rotated(columns_of_blocks(latent, latent.cols, spec.kv_lora_rank, turned), spec, turned, 0, "attention.k");
  const Tensor both =
      model.project(c, weights + "kv_b_proj.weight", spec.heads * (still + value_dim), "attention.k", "c W^T");
  Heads heads{model.rotated(q, spec, dim, still, "attention.q"), Tensor(n.rows, spec.heads * dim),
              columns_of_blocks(both, still + value_dim, still, value_dim)};
  for (std::int64_t t = 0; t < n.rows; ++t) {
    for (std::int64_t head = 0; head < spec.heads; ++head) {
      std::copy_n(both.row(t) + head * (still + value_dim), still, heads.k.row(t) + head * dim);
      std::copy_n(r.row(t), turned, heads.k.row(t) + head * dim + still);
    }
  }
  heads.latents = Tensor(n.rows, c.cols + turned);
  for (std::int64_t t = 0; t < n.rows; ++t) {
    std::copy_n(r.row(t), turned, std::copy_n(c.row(t), c.cols, heads.latents.row(t)));
  }
  return heads;
}

/// Rows of x that are wanted, one after another.
Tensor rows_of(const Tensor& x, const std::vector<bool>& wanted) {
  Tensor y(std::ranges::count(wanted, true), x.cols);
  for (std::int64_t t = 0, to = 0; t < x.rows; ++t) {
    if (wanted[static_cast<std::size_t>(t)]) std::copy_n(x.row(t), x.cols, y.row(to++));
  }
  return y;
}

/// These rows to columns begin.. of their places in y.
void put_rows(const Tensor& rows, const std::vector<bool>& wanted, std::int64_t begin, Tensor& y) {
  for (std::int64_t t = 0, from = 0; t < y.rows; ++t) {
    if (wanted[static_cast<std::size_t>(t)]) std::copy_n(rows.row(from++), rows.cols, y.row(t) + begin);
  }
}

/// The absorbed form, of the tokens that are in it (DeepSeek-V2, appendix C): with Wkvb of a head in the rows K and V,
/// q' = stored(K^T q), s_j = stored(scale (q' . c_j + q_turned . r_j)), l = stored(sum_j p_j c_j / sum_j p_j), out =
/// stored(V l), in place of what the plain form gives. The scale is that of the plain form.
void absorb(const Model& model, const AttentionSpec& spec, const Heads& heads, const std::string& weights,
            Tensor& context) {
  const std::int64_t dim = spec.head_dim, turned = spec.rope.dim, still = dim - turned, value_dim = spec.value_dim();
  const std::int64_t rank = spec.kv_lora_rank, width = rank + turned, both = still + value_dim;
  const std::vector<bool>& absorbed = model.absorbed;
  const TapName into = model.at("attention.context");
  // Rows begin..begin+count of what a head has of the weight.
  const auto rows_of_head = [&](std::int64_t head, std::int64_t begin, std::int64_t count) {
    return model.weight_rows(weights + "kv_b_proj.weight", head * both + begin, count, rank);
  };
  const Tensor queries = rows_of(heads.q, absorbed);
  Tensor q(heads.q.rows, spec.heads * width);
  for (std::int64_t head = 0; head < spec.heads; ++head) {
    const std::span<const double> keys = rows_of_head(head, 0, still);
    std::vector<double> transposed(keys.size());
    for (std::int64_t i = 0; i < still; ++i) {
      for (std::int64_t j = 0; j < rank; ++j) {
        transposed[static_cast<std::size_t>(j * still + i)] = keys[static_cast<std::size_t>(i * rank + j)];
      }
    }
    const Tensor query = columns_of_blocks(queries, queries.cols, head * dim, still);
    model.sums.linear(into, "q K of the absorbed form", query, transposed);
    put_rows(stored(linear(query, transposed, rank), model.arithmetic), absorbed, head * width, q);
    put_rows(columns_of_blocks(queries, queries.cols, head * dim + still, turned), absorbed, head * width + rank, q);
  }
  AttentionSpec of_latents;
  of_latents.heads = spec.heads;
  of_latents.kv_heads = 1;
  of_latents.head_dim = width;
  of_latents.v_head_dim = rank;
  of_latents.attention_multiplier = spec.score_scale();
  const Tensor c = columns_of_blocks(heads.latents, width, 0, rank);
  model.sums.attention(into, q, heads.latents, c, width, model.lengths, false);
  const Tensor latents =
      rows_of(attention(q, heads.latents, c, model.lengths, of_latents, {}, model.arithmetic, absorbed), absorbed);
  for (std::int64_t head = 0; head < spec.heads; ++head) {
    const std::span<const double> values = rows_of_head(head, still, value_dim);
    const Tensor weighed = columns_of_blocks(latents, latents.cols, head * rank, rank);
    model.sums.linear(into, "V l of the absorbed form", weighed, values);
    put_rows(stored(linear(weighed, values, value_dim), model.arithmetic), absorbed, head * value_dim, context);
  }
}

/// x + Wo attention(...)
Tensor attention_block(const Model& model, const AttentionSpec& spec, const Tensor& x, const std::string& weights) {
  const std::string projections = weights + "self_attn.";
  const Tensor n = model.stream_norm(x, weights + "input_layernorm", "attention.norm");
  model.tap("attention.norm", n);
  const Heads heads =
      spec.latent() ? project_latent(model, spec, n, projections) : project_heads(model, spec, n, projections);
  model.tap("attention.q", heads.q);
  model.tap("attention.k", heads.k);
  model.tap("attention.v", heads.v);
  model.sums.attention(model.at("attention.context"), heads.q, heads.k, heads.v, spec.head_dim, model.lengths,
                       spec.sinks);
  std::vector<double> sinks;
  if (spec.sinks) {
    const std::span<const double> read = model.vector(projections + "sinks", spec.heads);
    sinks.assign(read.begin(), read.end());
  }
  Tensor context = attention(heads.q, heads.k, heads.v, model.lengths, spec, sinks, model.arithmetic);
  if (spec.latent() && !model.absorbed.empty()) absorb(model, spec, heads, projections, context);
  model.tap("attention.context", context);
  const Tensor output = model.project(context, projections + "o_proj.weight", x.cols, "attention.output", "x W^T",
                                      spec.output_bias ? projections + "o_proj.bias" : "");
  model.tap("attention.output", output);
  Tensor residual = model.add_to_stream(x, output, "attention.residual");
  model.tap("attention.residual", residual);
  return residual;
}

/// What a gated MLP's weights are called.
struct MlpNames {
  std::string gate, up, down;
};

/// stored(h W2^T), h = stored(silu(g) * u), g = stored(x W1^T), u = stored(x W3^T), for the rows of x; with biases, and
/// clamped, where the spec says so.
Tensor gated_mlp(const Model& model, const FeedForwardSpec& spec, std::int64_t width, bool biased, const Tensor& x,
                 const MlpNames& names, std::string_view into) {
  const auto bias = [&](const std::string& name) { return biased ? name + ".bias" : std::string(); };
  const Tensor gate = model.project(x, names.gate + ".weight", width, into, "x W^T of an MLP's gate", bias(names.gate));
  const Tensor up = model.project(x, names.up + ".weight", width, into, "x W^T of an MLP's up", bias(names.up));
  model.sums.silu(model.at(into), gate, spec.swiglu_limit > 0 ? 1.702 : 1.0);
  Tensor h(x.rows, width);
  for (std::size_t i = 0; i < h.values.size(); ++i) {
    h.values[i] = spec.swiglu_limit > 0
                      ? clamped_swiglu(gate.values[i], up.values[i], spec.swiglu_limit, model.arithmetic)
                      : silu(gate.values[i], model.arithmetic) * up.values[i];
  }
  return model.project(stored(std::move(h), model.arithmetic), names.down + ".weight", x.cols, into,
                       "h W^T of an MLP's down", bias(names.down));
}

/// The MLP that serves every token.
Tensor mlp_for_all(const Model& model, const FeedForwardSpec& spec, const Tensor& n, const std::string& weights) {
  const std::string mlp = weights + "mlp.";
  Tensor output = gated_mlp(model, spec, spec.mlp_size(), false, n,
                            {mlp + "gate_proj", mlp + "up_proj", mlp + "down_proj"}, "mlp.output");
  model.tap("mlp.output", output);
  if (!spec.shared_gate) return output;
  const Tensor gate = model.project(n, mlp + "shared_expert_gate.weight", 1, "mlp.shared_gate");
  model.tap("mlp.shared_gate", gate);
  model.sums.silu(model.at("mlp.shared_output"), gate, 1.0);
  for (std::int64_t t = 0; t < output.rows; ++t) {
    const double open = sigmoid(gate.row(t)[0], model.arithmetic);
    for (std::int64_t i = 0; i < output.cols; ++i) output.row(t)[i] *= open;
  }
  output = stored(std::move(output), model.arithmetic);
  model.tap("mlp.shared_output", output);
  return output;
}

/// The sum over the chosen experts, in the order of the choice, of weight * expert(n).
Tensor experts_of(const Model& model, const FeedForwardSpec& spec, const Tensor& n, const std::string& weights) {
  const std::string moe = weights + "block_sparse_moe.";
  const Tensor logits = model.project(n, moe + "gate.weight", spec.num_experts, "moe.router_logits", "x W^T",
                                      spec.router_bias ? moe + "gate.bias" : "");
  model.tap("moe.router_logits", logits);
  model.sums.routing(model.at("moe.router_weights"), spec.num_experts);
  if (spec.scoring == Scoring::sigmoid) model.sums.silu(model.at("moe.router_scores"), logits, 1.0);
  std::vector<double> selection_bias;
  if (spec.selection_bias) {
    const std::span<const double> read = model.vector(moe + "gate.e_score_correction_bias", spec.num_experts);
    selection_bias.assign(read.begin(), read.end());
  }
  const Routing routing = route(logits, spec, selection_bias, model.arithmetic);
  if (spec.scoring == Scoring::sigmoid) model.tap("moe.router_scores", routing.scores);
  model.tap("moe.router_choice", routing.choice);
  model.tap("moe.router_weights", routing.weights);

  // by_slot.row(t * top_k + slot) is what the expert that token t chose in that slot makes of it.
  Tensor by_slot(n.rows * spec.top_k, n.cols);
  std::vector<std::vector<std::int64_t>> slots_of(static_cast<std::size_t>(spec.num_experts));
  for (std::int64_t s = 0; s < by_slot.rows; ++s) {
    slots_of[static_cast<std::size_t>(routing.choice.values[static_cast<std::size_t>(s)])].push_back(s);
  }
  for (std::int64_t e = 0; e < spec.num_experts; ++e) {
    const std::vector<std::int64_t>& slots = slots_of[static_cast<std::size_t>(e)];
    if (slots.empty()) continue;
    Tensor inputs(static_cast<std::int64_t>(slots.size()), n.cols);
    for (std::int64_t r = 0; r < inputs.rows; ++r) {
      const double* token = n.row(slots[static_cast<std::size_t>(r)] / spec.top_k);
      std::copy_n(token, n.cols, inputs.row(r));
    }
    const std::string names = moe + "experts." + std::to_string(e) + ".";
    const Tensor outputs = gated_mlp(model, spec, spec.intermediate_size, spec.expert_bias, inputs,
                                     {names + "w1", names + "w3", names + "w2"}, "moe.output");
    for (std::int64_t r = 0; r < inputs.rows; ++r) {
      std::copy_n(outputs.row(r), outputs.cols, by_slot.row(slots[static_cast<std::size_t>(r)]));
    }
  }

  model.sums.combination(model.at("moe.output"), routing.weights, by_slot);
  Tensor output(n.rows, n.cols);
  for (std::int64_t t = 0; t < n.rows; ++t) {
    for (std::int64_t slot = 0; slot < spec.top_k; ++slot) {
      const double weight = routing.weights.row(t)[slot];
      const double* y = by_slot.row(t * spec.top_k + slot);
      for (std::int64_t i = 0; i < n.cols; ++i) output.row(t)[i] += weight * y[i];
    }
  }
  output = stored(std::move(output), model.arithmetic);
  model.tap("moe.output", output);
  return output;
}

/// x + what the experts, and an MLP for all tokens, make of norm(x).
Tensor feed_forward_block(const Model& model, const FeedForwardSpec& spec, const Tensor& x,
                          const std::string& weights) {
  const Tensor n = model.stream_norm(x, weights + "post_attention_layernorm", "moe.norm");
  model.tap("moe.norm", n);
  Tensor output = spec.dense() ? mlp_for_all(model, spec, n, weights) : experts_of(model, spec, n, weights);
  if (spec.shared_intermediate_size > 0) {
    output = model.sum(std::move(output), mlp_for_all(model, spec, n, weights), "moe.sum");
    model.tap("moe.sum", output);
  }
  Tensor residual = model.add_to_stream(x, std::move(output), "moe.residual");
  model.tap("moe.residual", residual);
  return residual;
}

}  // namespace

void forward(const ModelConfig& config, std::span<const std::int32_t> tokens, std::span<const std::int64_t> lengths,
             const ReadWeight& weights, const Options& options, const KeepTap& sink) {
  check(config, tokens, lengths, options);
  const std::vector<std::int64_t> positions = positions_of(lengths);
  std::vector<double> values;
  const SumSink on_sum = options.arithmetic == Arithmetic::exact ? options.on_sum : nullptr;
  Model model{config,           lengths, positions, weights, sink, SumRecorder(on_sum), options.arithmetic,
              options.absorbed, values};

  Tensor x = embed(model, tokens);
  model.tap("embedding", x);
  if (config.embedding_multiplier != 1) {
    for (double& value : x.values) value *= config.embedding_multiplier;
    x = stored(std::move(x), model.arithmetic);
    model.tap("embedding.scaled", x);
  }
  for (std::int64_t layer = 0; layer < config.layers.size(); ++layer) {
    const std::string prefix = "layers." + std::to_string(layer) + ".";
    model.layer = static_cast<int>(layer);
    x = attention_block(model, config.layers[layer].attention, x, "model." + prefix);
    x = feed_forward_block(model, config.layers[layer].feed_forward, x, "model." + prefix);
  }
  model.layer = -1;
  const Tensor final_norm = model.stream_norm(x, "model.norm", "final_norm");
  model.tap("final_norm", final_norm);
  const std::string head = config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
  Tensor logits =
      model.project(final_norm, head, config.vocab_size, "logits", "x W^T", config.head_bias ? "lm_head.bias" : "");
  if (config.logits_scaling != 1) {
    for (double& value : logits.values) value /= config.logits_scaling;
    logits = stored(std::move(logits), model.arithmetic);
  }
  model.tap("logits", std::move(logits));
}

}  // namespace shardproof::reference
