// Quantised weights in a config: quantization_config.
#pragma once

#include "emu/input/object_reader.h"
#include "emu/model/families/load.h"

namespace shardproof::family_config {

/// How weights are stored, which changes what is counted of them and not the mathematics, and a note that says so.
/// Needs the number of layers.
void read_quantisation(ObjectReader& reader, LoadedModel& loaded);

}  // namespace shardproof::family_config
