// The golden checkpoints of families: folders of tests/golden/families, each a tiny model of one.
#pragma once

#include <string>
#include <vector>

namespace shardproof::testing {

inline const std::vector<std::string> kGoldenFamilies = {"llama3_scaled",
                                                         "llama_linear_biased",
                                                         "mistral_window",
                                                         "qwen2_later_windows",
                                                         "qwen3",
                                                         "mixtral_window",
                                                         "qwen3_moe_mixed",
                                                         "qwen2_moe_shared",
                                                         "deepseek_v3",
                                                         "deepseek_v3_mscale",
                                                         "deepseek_v3_biases",
                                                         "deepseek_v2_groups",
                                                         "glm4_moe",
                                                         "gpt_oss",
                                                         "olmoe",
                                                         "olmoe_clipped",
                                                         "granitemoe",
                                                         "phimoe"};

}  // namespace shardproof::testing
