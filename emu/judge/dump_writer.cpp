#include "emu/judge/dump_writer.h"

#include <algorithm>
#include <utility>

#include "emu/weights/safetensors_save.h"

namespace shardproof {
namespace {

TensorType type_of(ops::Format format, std::span<const double> values) {
  const TensorType stored = format == ops::Format::bf16   ? TensorType::bf16
                            : format == ops::Format::fp16 ? TensorType::f16
                            : format == ops::Format::fp32 ? TensorType::f32
                                                          : TensorType::f64;
  return holds(stored, values) ? stored : TensorType::f32;
}

}  // namespace

template <class T>
void DumpWriter::keep(int rank, const TapId& id, const Placement& placement, ops::MatrixView<const T> part) {
  const std::lock_guard lock(mutex_);
  const auto [at, fresh] = ranks_[rank].try_emplace(to_string(id), id, Part{});
  Part& kept = at->second.second;
  kept.cols = part.cols;
  for (ops::Index i = 0; i < part.rows; ++i) {
    kept.rows.push_back(placement.row(i));
    for (const T value : part.row(i)) kept.values.push_back(static_cast<double>(value));
  }
}

void DumpWriter::tap(GlobalRank rank, const TapKey& key, const Placement& placement, const TapValues& part) {
  if (!key.name.empty()) return;
  std::visit([&](const auto& values) { keep(to_int(rank), key.id, placement, values); }, part);
}

std::string DumpWriter::file(int rank, std::span<const std::int32_t> token_ids) const {
  const std::vector<std::int64_t> tokens(token_ids.begin(), token_ids.end());
  std::vector<TensorBytes> tensors{tensor_of("tokens", {std::ssize(tokens)}, tokens)};
  const auto taps = ranks_.find(rank);
  if (taps == ranks_.end()) return safetensors_file(tensors);
  for (const auto& [name, tap] : taps->second) {
    const auto& [id, part] = tap;
    const auto rows = std::ssize(part.rows);
    if (tap_row(id.kind).ids) {
      const std::vector<std::int64_t> ids(part.values.begin(), part.values.end());
      tensors.push_back(tensor_of(name, {rows, part.cols}, ids));
    } else {
      tensors.push_back(tensor_of(name, type_of(format_, part.values), {rows, part.cols}, part.values));
    }
    if (tap_row(id.kind).slots) tensors.push_back(tensor_of(name + ".rows", {rows}, part.rows));
  }
  return safetensors_file(tensors);
}

}  // namespace shardproof
