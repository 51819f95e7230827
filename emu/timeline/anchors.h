// Published measurements, and what the virtual clock makes of them: bench/anchors/anchors.json.
//
// A case is a decode step, a prefill, a first token (a prefill, from the request's arrival), a step of training, a
// fused MoE kernel, a product or a collective, with the seconds that somebody measured and where that is published.
// Half of each group (engine and card; kernels and collectives by card) calibrate: bench/anchors/calibrate.py fits
// presets.json to them, and their residuals are the intervals that projections are given. The other half is held out.
// Which is which was fixed before anything was fitted: every other row.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/input/problem.h"
#include "emu/model/config.h"
#include "emu/plan/parallel.h"
#include "emu/timeline/collective_time.h"
#include "emu/timeline/hardware_model.h"
#include "emu/timeline/training_time.h"
#include "emu/timeline/work.h"

namespace shardproof {

enum class AnchorKind { decode, prefill, first_token, training, fused_moe, gemm, collective };

/// "decode", "prefill", "first_token", "training", "fused_moe", "gemm", "collective".
std::string_view to_string(AnchorKind kind);

struct Anchor {
  std::string id;
  std::string engine;  ///< empty: the card's own figures
  std::string card;
  AnchorKind kind{};
  bool calibrates = false;  ///< else it is held out
  double seconds = 0;       ///< as published
  std::string source;
  WeightFormat weights{};
  int tp = 1, dp = 1, ep = 1, etp = 1, pp = 1, cp = 1;
  bool sp = false;
  DispatchComm dispatch{};
  Overlap overlap{};
  // Of a step: so many sequences, each of so many tokens (decode: that are there already).
  std::string model;
  std::int64_t batch = 0, context = 0;
  TrainingStep training;  ///< of `batch` sequences
  // Of one rank's share of a layer's experts, tokens dealt evenly; and of a product [m, k] x [k, n].
  std::int64_t tokens = 0, hidden = 0, width = 0, experts = 0, top_k = 0;
  std::int64_t m = 0, n = 0, k = 0;
  // Of a collective inside a node: all bytes, as nccl-tests counts them.
  Operation operation{};
  int ranks = 0;
  double bytes = 0;
  bool direct = false;  ///< an all-reduce that is read directly, not NCCL's ring

  /// "vllm on h100, decode"; kernels and collectives of a card are a group each.
  std::string group() const;
};

struct AnchorBook {
  std::map<std::string, ModelConfig> models;
  std::vector<Anchor> cases;
};

struct LoadedAnchors {
  std::optional<AnchorBook> book;
  std::vector<Problem> problems;
};

/// `name` stands for the text in messages. Cards and engines are checked where they are asked for.
LoadedAnchors parse_anchors(std::string_view text, std::string_view name);
/// Those of anchors.json.
const AnchorBook& built_in_anchors();

struct ProjectedAnchor {
  const Anchor* anchor = nullptr;
  double seconds = 0;
  /// The group has at least three rows that calibrate.
  bool calibrated = false;
  double error() const { return seconds / anchor->seconds - 1; }
};

/// An engine that is not calibrated on the card is projected with the card's own figures. Throws std::invalid_argument
/// for a card or a model that is not known.
std::vector<ProjectedAnchor> project_anchors(const AnchorBook& anchors, const HardwareBook& hardware);

/// Measured / projected - 1 over the rows that calibrate.
Residuals residuals_of(const std::vector<const ProjectedAnchor*>& rows);

}  // namespace shardproof
