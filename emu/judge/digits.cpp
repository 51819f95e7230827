#include "emu/judge/digits.h"

#include <fmt/format.h>

#include <limits>

namespace shardproof {

std::pair<std::string, std::string> told_apart(double a, double b, int digits) {
  for (;; ++digits) {
    std::pair<std::string, std::string> texts{fmt::format("{:.{}g}", a, digits), fmt::format("{:.{}g}", b, digits)};
    if (texts.first != texts.second || digits >= std::numeric_limits<double>::max_digits10) return texts;
  }
}

}  // namespace shardproof
