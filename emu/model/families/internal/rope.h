// Rotary embeddings in a config: rope_theta at the top level, the rest in rope_parameters or rope_scaling.
#pragma once

#include <vector>

#include "emu/input/object_reader.h"
#include "emu/model/config.h"
#include "emu/model/families/family.h"

namespace shardproof::family_config {

/// Reads the rotary embedding of every layer, and with latent attention what it makes of the scores. Needs head_dim.
void read_rope(ObjectReader& reader, const Family& family, AttentionSpec& attention, std::vector<Problem>& problems);

}  // namespace shardproof::family_config
