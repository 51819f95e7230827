#include "ops/latent.h"

#include <algorithm>

#include "ops/shape.h"

namespace shardproof::ops {

template <class T>
void split_latent_heads(MatrixView<const T> product, MatrixView<const T> shared, Index value_dim, MatrixView<T> k,
                        MatrixView<T> v) {
  if (value_dim < 1) throw ShapeError("split_latent_heads", "columns of a value", 1, value_dim);
  const Index heads = v.cols / value_dim;
  require_equal("split_latent_heads", "columns of the values", heads * value_dim, v.cols);
  const Index still = heads == 0 ? 0 : product.cols / heads - value_dim;
  require_equal("split_latent_heads", "columns of the product", heads * (still + value_dim), product.cols);
  require_equal("split_latent_heads", "columns of the keys", heads * (still + shared.cols), k.cols);
  for (const Index rows : {shared.rows, k.rows, v.rows})
    require_equal("split_latent_heads", "rows", product.rows, rows);
  for (Index t = 0; t < product.rows; ++t) {
    const T* from = product.row(t).data();
    T* key = k.row(t).data();
    T* value = v.row(t).data();
    for (Index head = 0; head < heads; ++head) {
      key = std::copy_n(from, still, key);
      key = std::ranges::copy(shared.row(t), key).out;
      value = std::copy_n(from + still, value_dim, value);
      from += still + value_dim;
    }
  }
}

template void split_latent_heads(MatrixView<const float>, MatrixView<const float>, Index, MatrixView<float>,
                                 MatrixView<float>);
template void split_latent_heads(MatrixView<const double>, MatrixView<const double>, Index, MatrixView<double>,
                                 MatrixView<double>);

}  // namespace shardproof::ops
