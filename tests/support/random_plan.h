// Valid plans drawn at random, for property tests.
#pragma once

#include <cstdint>
#include <string>

#include "emu/plan/plan.h"

namespace shardproof::testing {

/// The seed of this process' property tests: SHARDPROOF_TEST_SEED if set, else a fixed one.
std::uint64_t property_seed();

/// A valid plan of at most `max_world` ranks: all of tp, cp, dp, pp, ep, etp, sp; every way of
/// bringing keys and values together over cp, and sequences shorter than 2 cp; uneven layers, replicas without a
/// sequence, expert counts that are no power of two, 1 <= top_k <= experts, fewer kv heads than tp; small widths. A
/// pure function of the seed.
Plan random_plan(std::uint64_t seed, int max_world = 64);

/// Architectures whose features random_family_plan() draws.
enum class Drawn { qwen3_moe, qwen2_moe, deepseek, glm4_moe, gpt_oss, dense, windowed, olmoe, granitemoe, phimoe };
inline constexpr Drawn kDrawn[] = {Drawn::qwen3_moe,  Drawn::qwen2_moe, Drawn::deepseek, Drawn::glm4_moe,
                                   Drawn::gpt_oss,    Drawn::dense,     Drawn::windowed, Drawn::olmoe,
                                   Drawn::granitemoe, Drawn::phimoe};
std::string to_string(Drawn drawn);

/// The plan of random_plan() with a model of that architecture: its features, each with sizes drawn; dense layers among
/// those with experts; every degree that the model allows.
Plan random_family_plan(std::uint64_t seed, Drawn drawn, int max_world = 32);

/// The plan with its sequences as requests: prompts that are cut, outputs, arrivals, blocks and limits drawn, and in
/// one of four the steps stated.
Plan serving(Plan plan, std::uint64_t seed);

/// The plan's degrees, model and workload in one line, for messages.
std::string describe(const Plan& plan);

}  // namespace shardproof::testing
