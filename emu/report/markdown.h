// Reports for a review or a pull request.
#pragma once

#include <string>

namespace shardproof {

struct CheckReport;

std::string to_markdown(const CheckReport& report);

}  // namespace shardproof
