// What a GPU and its links do in a second: the numbers that the virtual clock multiplies by.
//
// A product of f flops that reads and writes b bytes takes
//   max(compute.effective(f) / flops_per_second, memory.effective(b) / memory_bytes_per_second) + launch
// and a message of b bytes over a link  alpha + efficiency.effective(b) / bytes_per_second  (collective_time.h).
//
// Presets come from emu/timeline/presets.json, with their sources; --calibrate reads the same format. Rates are of one
// GPU, dense, one direction of a link, bytes and flops a second; times are seconds.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "emu/input/problem.h"
#include "emu/plan/plan.h"
#include "emu/timeline/efficiency.h"

namespace shardproof {

/// What the factors of a product are kept in, as far as it decides its speed. fp16 is as fast as bf16.
enum class Rate { fp64, fp32, bf16, fp8, fp4 };
inline constexpr int kRates = static_cast<int>(Rate::fp4) + 1;

/// "fp64", "fp32", "bf16", "fp8", "fp4".
std::string_view to_string(Rate rate);

struct Link {
  double bytes_per_second = 0;
  Efficiency efficiency;
  double base_seconds = 0;  ///< of a call, beside its steps
  double step_seconds = 0;  ///< of each step (collectives/ALGORITHMS.md)
  /// An all-reduce in which every rank reads all others' parts at once, as engines have for small ones inside a node;
  /// none where base is 0.
  double direct_base_seconds = 0;
  Efficiency direct_efficiency;
};

/// How far measured times lay from projected ones, over the rows that calibrate: measured / projected - 1.
struct Residuals {
  double low = 0;
  double high = 0;
  int cases = 0;
  bool calibrated() const { return cases >= 3; }
  bool operator==(const Residuals&) const = default;
};

struct HardwareModel {
  std::array<double, kRates> flops_per_second{};  ///< by Rate; 0 where the GPU has no such products
  Efficiency compute;                             ///< by flops of an op
  double grouped_share = 1;                       ///< of that, what products of several experts in one kernel reach
  double memory_bytes_per_second = 0;
  Efficiency memory;  ///< by bytes of an op
  double launch_seconds = 0;
  double overhead_seconds = 0;  ///< of the engine, once a step
  /// Of the engine, once a request: from its arrival to the step that takes it, and from there to its first token.
  double request_overhead_seconds = 0;
  Link inside;  ///< of a node
  Link across;  ///< between nodes
  Residuals prefill, decode;

  /// The peak that such products reach: its own, or that of the next wider format that the GPU has.
  double peak(Rate rate) const;
};

/// A serving engine on a card, as calibrated: what it adds to the card's own figures.
struct EngineModel {
  std::string name;
  double launch_seconds = 0;
  double overhead_seconds = 0;
  double request_overhead_seconds = 0;
  double compute_scale = 1;  ///< times the shares of the card's table; so the next
  double memory_scale = 1;
  Residuals prefill, decode;
};

struct HardwarePreset {
  std::string name;
  HardwareModel model;
  double memory_gb = 0;
  std::vector<std::string> sources;
  std::vector<EngineModel> engines;
};

struct HardwareBook {
  std::vector<HardwarePreset> presets;

  const HardwarePreset* find(std::string_view name) const;
  /// "a100, h100, ...".
  std::string names() const;
  /// Over every calibrated engine and card: what is said of hardware that nothing was measured on.
  Residuals widest_prefill() const;
  Residuals widest_decode() const;
};

struct LoadedHardware {
  std::optional<HardwareBook> book;
  std::vector<Problem> problems;
};

/// `name` stands for the text in messages. Presets of `base` are there too, and the text's come in place of them.
LoadedHardware parse_hardware(std::string_view text, std::string_view name, const HardwareBook& base = {});
/// Those of presets.json.
const HardwareBook& built_in_hardware();

struct HardwareRequest {
  std::string preset;  ///< empty: the plan's, or none
  std::string engine;  ///< empty: the card's own figures
  /// The preset that fills what the plan leaves open, where neither says more; empty: the nearest.
  std::string fill_from = {};
};

struct HardwareChoice {
  HardwareModel model;
  std::string name;  ///< "h100", or "stated in the plan"
  /// Each default that was taken, on a line.
  std::vector<std::string> taken;
  /// What the plan leaves open and the preset named `filled_from` fills in; empty where a preset is asked for.
  std::vector<std::string> open;
  std::string filled_from;
  bool calibrated_prefill = false;
  bool calibrated_decode = false;
  std::vector<Problem> problems;  ///< with any, there is no model
};

/// Figures that the plan states come before the preset's. Where it names no preset, what it leaves open comes from that
/// of the nearest peak (of the nearest memory, where no peak is stated either; else the H100).
HardwareChoice choose_hardware(const HardwareBook& book, const std::optional<Hardware>& stated,
                               const HardwareRequest& request);

}  // namespace shardproof
