// What `shardproof time` prints for people.
#pragma once

#include <string>
#include <vector>

#include "emu/plan/plan.h"
#include "emu/timeline/anchors.h"
#include "emu/timeline/hardware_model.h"
#include "emu/timeline/projection.h"
#include "emu/timeline/request_times.h"

namespace shardproof::tools {

struct TimeTextOptions {
  bool explain = false;  ///< every kernel and call of the critical rank, with its arithmetic
};

/// Of a plan that serves requests, what each waits for.
std::string requests_text(const RequestTimes& times, const Projection& projection);

std::string time_text(const Plan& plan, const Projection& projection, const TimeTextOptions& options);

/// A row a case, by group, and of each group the median error of the rows that are held out.
std::string anchors_text(const std::vector<ProjectedAnchor>& rows);

/// Every preset with its figures and where they come from.
std::string preset_list(const HardwareBook& book);

}  // namespace shardproof::tools
