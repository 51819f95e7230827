#include "emu/model/quantisation.h"

#include <gtest/gtest.h>

namespace shardproof {
namespace {

TEST(Quantisation, CountsAScaleOfFourBytesForEachBlockOfFp8AndOfItsRest) {
  const Quantisation fp8{.method = "fp8", .format = QuantisedFormat::fp8};

  const StoredBytes latent = quantised_bytes(fp8, 128, 576, 7168);  // 4.5 x 56 blocks

  EXPECT_EQ(latent.values, 576.0 * 7168);
  EXPECT_EQ(latent.scales, 5.0 * 56 * 4);
  EXPECT_EQ(quantised_bytes(fp8, 0, 576, 7168).scales, 4);
  EXPECT_EQ(quantised_bytes_of_value(fp8, 128), 1 + 4.0 / (128 * 128));
}

TEST(Quantisation, CountsAScaleForEachGroupOfARowInFourBits) {
  const Quantisation mxfp4{.method = "mxfp4", .format = QuantisedFormat::mxfp4};
  const Quantisation awq{.method = "awq", .format = QuantisedFormat::int4, .zero_points = true};
  const Quantisation int8{.method = "gptq", .format = QuantisedFormat::int8};

  EXPECT_EQ(quantised_bytes(mxfp4, 32, 10, 96).values, 480);
  EXPECT_EQ(quantised_bytes(mxfp4, 32, 10, 96).scales, 30);
  EXPECT_EQ(quantised_bytes_of_value(mxfp4, 32), 17.0 / 32);
  EXPECT_EQ(quantised_bytes(awq, 128, 10, 256).total(), 1280 + 20 * 2.5);
  EXPECT_EQ(quantised_bytes(int8, 0, 10, 256).total(), 2560 + 10 * 2);
}

}  // namespace
}  // namespace shardproof
