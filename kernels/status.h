// Propagation of absl::Status.
#ifndef SWITCHYARD_KERNELS_STATUS_H_
#define SWITCHYARD_KERNELS_STATUS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define SY_RETURN_IF_ERROR(expr)                                            \
  do {                                                                      \
    if (absl::Status sy_status = (expr); !sy_status.ok()) return sy_status; \
  } while (false)

#define SY_CONCAT_INNER(a, b) a##b
#define SY_CONCAT(a, b) SY_CONCAT_INNER(a, b)

// SY_ASSIGN_OR_RETURN(auto value, StatusOrExpression());
#define SY_ASSIGN_OR_RETURN(lhs, expr) \
  SY_ASSIGN_OR_RETURN_IMPL(SY_CONCAT(sy_or_, __LINE__), lhs, expr)
#define SY_ASSIGN_OR_RETURN_IMPL(tmp, lhs, expr) \
  auto tmp = (expr);                             \
  if (!tmp.ok()) return std::move(tmp).status(); \
  lhs = std::move(tmp).value()

#endif  // SWITCHYARD_KERNELS_STATUS_H_
