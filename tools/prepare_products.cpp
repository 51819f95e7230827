#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "ops/elementwise.h"
#include "ops/expert.h"
#include "ops/linear.h"
#include "ops/swiglu.h"
#include "tools/prepare.h"

namespace shardproof::tools::prepare {

namespace {

template <class T>
struct Biased {
  Matrix<T> x, w, bias, y;
};

/// One more sum.
template <class T>
void add_bias(double bias, Expected& sum) {
  sum.value += bias;
  sum.bound += unit<T>() * (std::abs(sum.value) + sum.bound);
}

}  // namespace

template <class T>
PreparedOp linear(const OpShape& s, Format format) {
  return made(
      Biased<T>{filled<T>(s.rows, s.inner, 1, format),
                filled<T>(s.cols, s.inner, 2, format),
                filled<T>(s.bias ? 1 : 0, s.cols, 3, format),
                {s.rows, s.cols}},
      4, 8,
      [format](Biased<T>& a) {
        ops::linear<T>(a.x, a.w, a.y);
        if (a.bias.rows() > 0) ops::add_bias<T>(a.y, std::as_const(a.bias).row(0));
        ops::round_to<T>(a.y.span(), format);
      },
      [format](const Biased<T>& a, Index i, Index j) {
        Expected sum = dot<T>(a.x.row(i), a.w.row(j));
        if (a.bias.rows() > 0) add_bias<T>(static_cast<double>(a.bias(0, j)), sum);
        return stored<T>(sum.value, sum.bound, format);
      });
}

namespace {

template <class T>
struct Mlp {
  Matrix<T> x, gate, up, down, y;
  Matrix<T> biases;  // of gate, up and down, or none
  double limit = 0;
  /// Of the row that was asked for last: the activation, and how far each may be off.
  mutable Index row = -1;
  mutable std::vector<Expected> activation = {};
};

/// What the activation of g and u is, from the definition, and how much it changes with each: |silu'| is below 1.1, and
/// so is that of the clamped one's gate, g sigmoid(1.702 g).
struct Activation {
  double gate, up, slope = 1.1;
};
inline Activation activation_of(double g, double u, double limit) {
  if (limit == 0) return {g / (1 + std::exp(-g)), u};
  const double clamped = std::min(g, limit);
  return {clamped / (1 + std::exp(-ops::kClampedSwigluAlpha * clamped)), std::clamp(u, -limit, limit) + 1};
}

/// Of a row of x. Exponential, quotient and products take some more roundings.
template <class T>
void activate(const Mlp<T>& a, Index row, Format format) {
  a.row = row;
  a.activation.clear();
  const double exp_error = format == Format::exact ? ops::kExpStep : 16 * unit<T>();
  for (Index j = 0; j < a.gate.rows(); ++j) {
    Expected g = dot<T>(a.x.row(row), a.gate.row(j)), u = dot<T>(a.x.row(row), a.up.row(j));
    if (a.biases.rows() > 0) {
      add_bias<T>(static_cast<double>(a.biases(0, j)), g);
      add_bias<T>(static_cast<double>(a.biases(1, j)), u);
    }
    const double g_error = stored<T>(g.value, g.bound, format).bound,
                 u_error = stored<T>(u.value, u.bound, format).bound;
    const Activation act = activation_of(g.value, u.value, a.limit);
    const double gate_error = act.slope * g_error + exp_error * (std::abs(g.value) + g_error);
    const double up_error = u_error + (a.limit > 0 ? 2 * unit<T>() * (std::abs(act.up) + u_error) : 0);
    const double error = gate_error * (std::abs(act.up) + up_error) + std::abs(act.gate) * up_error;
    a.activation.push_back(stored<T>(act.gate * act.up, error, format));
  }
}

template <class T>
void run_expert(Mlp<T>& a, Format format) {
  ops::ExpertOptions<T> options{.swiglu_limit = a.limit};
  if (a.biases.rows() > 0) {
    const auto first = [&](Index row, Index count) {
      return std::as_const(a.biases).row(row).first(static_cast<std::size_t>(count));
    };
    options.gate_bias = first(0, a.gate.rows());
    options.up_bias = first(1, a.gate.rows());
    options.down_bias = first(2, a.down.rows());
  }
  ops::expert<T>(a.x, a.gate, a.up, a.down, format, a.y, {}, options);
}

}  // namespace

template <class T>
PreparedOp expert(const OpShape& s, Format format) {
  return made(
      Mlp<T>{filled<T>(s.rows, s.cols, 1, format),
             filled<T>(s.inner, s.cols, 2, format),
             filled<T>(s.inner, s.cols, 3, format),
             filled<T>(s.cols, s.inner, 4, format),
             {s.rows, s.cols},
             filled<T>(s.bias ? 3 : 0, std::max(s.inner, s.cols), 5, format),
             s.limit},
      0, 16, [format](Mlp<T>& a) { run_expert(a, format); },
      [format](const Mlp<T>& a, Index i, Index j) {
        if (a.row != i) activate(a, i, format);
        Expected y;
        double magnitude = 0;
        for (Index k = 0; k < a.down.cols(); ++k) {
          const Expected& h = a.activation[static_cast<std::size_t>(k)];
          const auto w = static_cast<double>(a.down(j, k));
          y.value += w * h.value;
          y.bound += std::abs(w) * h.bound;
          magnitude += std::abs(w) * (std::abs(h.value) + h.bound);
        }
        y.bound += gamma<T>(static_cast<double>(a.down.cols()) + 1) * magnitude;
        if (a.biases.rows() > 0) add_bias<T>(static_cast<double>(a.biases(2, j)), y);
        return y;
      });
}

template PreparedOp linear<float>(const OpShape&, Format);
template PreparedOp linear<double>(const OpShape&, Format);
template PreparedOp expert<float>(const OpShape&, Format);
template PreparedOp expert<double>(const OpShape&, Format);

}  // namespace shardproof::tools::prepare
