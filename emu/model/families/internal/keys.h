// What a key may say where only some of its values are understood. A key that is absent says nothing.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string_view>

#include "emu/input/object_reader.h"

namespace shardproof::keys {

/// Null, 0, false or an empty array; anything else adds a part to the layer.
void refuse_unless_zero(ObjectReader& reader, ObjectReader::Names names, std::string_view why);
void refuse_unless_one(ObjectReader& reader, ObjectReader::Names names, std::string_view why);
void refuse_unless_text(ObjectReader& reader, ObjectReader::Names names,
                        std::initializer_list<std::string_view> allowed, std::string_view why);
/// A boolean that may only say what is so anyway.
void refuse_unless(ObjectReader& reader, ObjectReader::Names names, bool value, std::string_view why);

/// Keys of Hugging Face configs that say nothing about the forward pass of a decoder in evaluation.
void ignore_irrelevant(ObjectReader& reader);

}  // namespace shardproof::keys
