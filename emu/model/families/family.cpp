#include "emu/model/families/family.h"

#include <algorithm>

namespace shardproof {
namespace {

constexpr Family kFamilies[] = {
    {.model_type = "mixtral", .architecture = "Mixtral", .layer = {}, .left_out = {}},
    {.model_type = "qwen3_moe",
     .architecture = "Qwen3Moe",
     .layer = {.attention = {.query_key_norm = true}, .feed_forward = {.norm_topk_prob = false}},
     .moe_intermediate_size = true,
     .left_out = "the norms of queries and keys inside each head are left out of the emulation; they lie within one "
                 "head and do not change how anything is sharded"},
};

}  // namespace

std::span<const Family> families() {
  return kFamilies;
}

const Family* find_family(std::string_view model_type) {
  const auto found = std::ranges::find(kFamilies, model_type, &Family::model_type);
  return found == std::end(kFamilies) ? nullptr : &*found;
}

const Family* family_of_architecture(std::string_view architecture) {
  const auto found = std::ranges::find_if(
      kFamilies, [&](const Family& family) { return architecture.starts_with(family.architecture); });
  return found == std::end(kFamilies) ? nullptr : &*found;
}

}  // namespace shardproof
