#include "emu/run/activations.h"

#include <algorithm>
#include <map>

namespace shardproof {
namespace {

/// Rows and widths of one layer of a microbatch, by what they are the rows of.
struct LayerRows {
  double layers = 1;  ///< in a row, that are alike
  double stream = 0, all = 0, own = 0, slots = 0, expert_rows = 0, busiest = 0;
  double hidden = 0, q = 0, kv = 0, experts = 0;
  double intermediate_size = 0;  ///< of an expert's slice
  double mlp_rows = 0;           ///< that the MLP for all tokens works on
  double mlp_size = 0;           ///< of its slice
  double gathered = 0;           ///< of the whole ep group, beside their sums
  double absorbed = 0;           ///< elements of queries of latents, and of what they weigh
  double over_cp = 0;            ///< elements of keys and values of other ranks of cp, beside the rank's own
};

/// What memory depends on, of one microbatch.
struct MicrobatchRows {
  std::map<int, LayerRows> layers;
  double head = 0;  ///< elements of the final norm and the logits
};

void add_to_layer(const OpRecord& record, const LayerLayout& held, LayerRows& layer) {
  const auto rows = static_cast<double>(record.rows), cols = static_cast<double>(record.cols);
  layer.intermediate_size = static_cast<double>(held.intermediate_size.count);
  if (record.op == Op::attention_norm) {
    layer.stream = rows;
    layer.hidden = cols;
  } else if (record.op == Op::attention_q) {
    layer.all = rows;
    layer.q = cols;
  } else if (record.op == Op::attention_k) {
    layer.kv = cols;
  } else if (record.op == Op::attention_heads) {
    layer.kv = cols / 2;
  } else if (record.op == Op::attention_absorb || record.op == Op::attention_latent_context) {
    layer.absorbed += rows * cols;
  } else if (record.op == Op::attention_in_order) {
    layer.over_cp += rows * cols;
  } else if (record.op == Op::attention_ring_receive) {
    // One step's are attended to while the next come.
    layer.over_cp = std::max(layer.over_cp, 2 * rows * cols);
  } else if (record.op == Op::mlp) {
    layer.mlp_rows = rows;
    layer.mlp_size = static_cast<double>(held.mlp_size.count);
  } else if (record.op == Op::router_logits) {
    layer.own = rows;
    layer.experts = cols;
  } else if (record.op == Op::dispatch_rows) {
    layer.gathered = rows;
  } else if (record.op == Op::moe_permute) {
    layer.slots = rows;
  } else if (record.op == Op::moe_sort) {
    layer.expert_rows = rows;
  } else if (record.op == Op::moe_expert) {
    layer.busiest = std::max(layer.busiest, rows);
  }
}

std::map<int, MicrobatchRows> rows_of(const RankTrace& trace, const ModelConfig& model, const Layout& layout) {
  std::map<int, MicrobatchRows> all;
  for (const RecordRun& run : trace.all_runs()) {
    for (std::size_t i = run.begin; i < run.end; ++i) {
      const OpRecord& record = trace.ops[i];
      MicrobatchRows& microbatch = all[record.microbatch + run.microbatch_shift];
      if (record.op == Op::logits) {
        const double elements_of_row = static_cast<double>(model.hidden_size) + static_cast<double>(record.cols);
        microbatch.head = static_cast<double>(record.rows) * elements_of_row;
      }
      if (record.layer < 0) continue;
      LayerRows& layer = microbatch.layers[record.layer + run.layer_shift];
      layer.layers = run.layers;
      add_to_layer(record, layout.layer(model, record.layer), layer);
    }
  }
  return all;
}

double alive_elements(const MicrobatchRows& microbatch) {
  double worst = 0;
  for (const auto& [index, layer] : microbatch.layers) {
    const double stream = layer.stream * layer.hidden;
    const double attention =
        layer.all * (2 * layer.hidden + 2 * layer.q + 2 * layer.kv) + layer.over_cp + layer.absorbed;
    // One expert works at a time; the rows of the others wait.
    const double experts = stream + 2 * layer.gathered * layer.hidden + layer.slots * layer.hidden +
                           layer.expert_rows * 2 * layer.hidden + layer.busiest * 2 * layer.intermediate_size;
    const double mlp = layer.mlp_rows * (2 * layer.hidden + 2 * layer.mlp_size);
    worst = std::max(worst, stream + std::max({attention, experts, mlp, microbatch.head}));
  }
  return worst;
}

double kept_elements(const MicrobatchRows& microbatch) {
  double kept = 0;
  for (const auto& [index, layer] : microbatch.layers) {
    const double of_layer = 4 * layer.stream * layer.hidden + layer.all * (2 * layer.q + 2 * layer.kv) +
                            layer.own * layer.experts +
                            layer.expert_rows * (2 * layer.hidden + 3 * layer.intermediate_size) +
                            layer.mlp_rows * (2 * layer.hidden + 3 * layer.mlp_size);
    kept += layer.layers * of_layer;
  }
  return kept;
}

}  // namespace

Activations activations_of(const RankTrace& trace, const ModelConfig& model, const Layout& layout) {
  Activations result;
  double before = 0;  // of the half batch that runs beside this one
  const bool pairs = layout.parallel.overlap == Overlap::two_batch;
  for (const auto& [index, microbatch] : rows_of(trace, model, layout)) {
    const double alive = alive_elements(microbatch);
    result.alive = std::max(result.alive, alive + (pairs && index % 2 == 1 ? before : 0));
    before = alive;
    result.kept = std::max(result.kept, kept_elements(microbatch));
    ++result.microbatches;
  }
  return result;
}

}  // namespace shardproof
