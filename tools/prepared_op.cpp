#include "tools/prepared_op.h"

#include "tools/prepare.h"

namespace shardproof::tools {
namespace {

template <class T>
PreparedOp prepared(const OpShape& shape, ops::Format format) {
  switch (shape.kernel) {
    case Kernel::embed:
      return prepare::embed<T>(shape, format);
    case Kernel::rms_norm:
    case Kernel::rms_norm_part:
    case Kernel::layer_norm:
      return prepare::norm<T>(shape, format);
    case Kernel::sum_squares:
      return prepare::squares<T>(shape, format);
    case Kernel::linear:
      return prepare::linear<T>(shape, format);
    case Kernel::rope:
      return prepare::rope<T>(shape, format);
    case Kernel::split_heads:
      return prepare::split_heads<T>(shape, format);
    case Kernel::absorb_queries:
      return prepare::absorb_queries<T>(shape, format);
    case Kernel::latent_attention:
      return prepare::latent_attention<T>(shape, format);
    case Kernel::expand_context:
      return prepare::expand_context<T>(shape, format);
    case Kernel::attention:
      return prepare::attention<T>(shape, format);
    case Kernel::attention_part:
      return prepare::attention_part<T>(shape, format);
    case Kernel::merge_parts:
      return prepare::merge_parts<T>(shape, format);
    case Kernel::add:
    case Kernel::add_scaled:
    case Kernel::scale:
    case Kernel::gate_rows:
      return prepare::elementwise<T>(shape, format);
    case Kernel::route:
      return prepare::route<T>(shape, format);
    case Kernel::gather_rows:
      return prepare::gather_rows<T>(shape, format);
    case Kernel::expert:
      return prepare::expert<T>(shape, format);
    case Kernel::combine:
      return prepare::combine<T>(shape, format);
  }
  return {};
}

}  // namespace

double memory_of(const OpShape& shape, ops::Format format) {
  const double scalar = ops::computes_in_double(format) ? 8 : 4;
  const double table =
      shape.kernel == Kernel::embed ? static_cast<double>(shape.inner) * static_cast<double>(shape.cols) * scalar : 0;
  // The packed copies of a product's operands are smaller than these.
  return 1.25 * cost_of(shape, static_cast<int>(scalar)).bytes + table;
}

PreparedOp prepare_op(const OpShape& shape, ops::Format format) {
  return ops::computes_in_double(format) ? prepared<double>(shape, format) : prepared<float>(shape, format);
}

}  // namespace shardproof::tools
