// Two numbers with as many digits as it takes to tell them apart.
#pragma once

#include <string>
#include <utility>

namespace shardproof {

/// With `digits` of them where these do: {"6", "-5"}, {"3", "3.0000000000000009"}. Equal ones
/// have the same text.
std::pair<std::string, std::string> told_apart(double a, double b, int digits = 6);

}  // namespace shardproof
