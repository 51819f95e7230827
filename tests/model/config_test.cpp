#include "emu/model/config.h"

#include <gtest/gtest.h>

namespace shardproof {
namespace {

LayerSpec layer_of(std::int64_t heads) {
  return {.attention = {.heads = heads}};
}

TEST(LayerList, SharesOneSpecAmongLayersThatAreAlike) {
  LayerList layers(3, layer_of(4));

  layers.push_back(layer_of(8));
  layers.push_back(layer_of(4));

  EXPECT_EQ(layers.size(), 5);
  EXPECT_EQ(layers.kinds().size(), 2U);
  EXPECT_EQ(layers.count_of(0), 4);
  EXPECT_EQ(layers[3].attention.heads, 8);
  EXPECT_EQ(layers[4].attention.heads, 4);
}

TEST(LayerList, IsComparedLayerByLayer) {
  LayerList grown;
  grown.push_back(layer_of(4));
  grown.push_back(layer_of(8));
  LayerList edited(2, layer_of(4));
  const LayerList same_kinds_elsewhere = [] {
    LayerList list(1, layer_of(8));
    list.push_back(layer_of(4));
    return list;
  }();

  EXPECT_NE(grown, edited);
  EXPECT_NE(grown, same_kinds_elsewhere);
  EXPECT_EQ(LayerList(2, layer_of(4)), edited);
}

TEST(LayerList, ResizesWithItsLastKind) {
  LayerList layers(1, layer_of(4));
  layers.push_back(layer_of(8));

  layers.resize(4);

  EXPECT_EQ(layers[3].attention.heads, 8);
  layers.resize(1);
  EXPECT_EQ(layers.size(), 1);
  EXPECT_EQ(layers[0].attention.heads, 4);
}

}  // namespace
}  // namespace shardproof
