#include "kernels/matmul.h"

#include <utility>

#include "kernels/backends.h"
#include "kernels/op_support.h"
#include "kernels/status.h"

namespace switchyard {

absl::StatusOr<WeightMatrix> WeightMatrix::Create(Device* device,
                                                  const MatrixView& host,
                                                  DType dtype) {
  const OpContext context{device};
  internal::ArgChecker check("WeightMatrix::Create", context);
  check.Matrix("host", host, host.rows, host.cols, internal::kFloats);
  check.Require(!host.empty(), "the matrix is empty");
  check.Require((internal::Only(dtype) & check.activation_types()) != 0,
                "weights are not kept as ", DTypeName(dtype), " on ",
                device->name());
  SY_RETURN_IF_ERROR(check.status());
  SY_ASSIGN_OR_RETURN(std::unique_ptr<Storage> storage,
                      context.cuda()
                          ? internal::PackWeightCuda(device, host, dtype)
                          : internal::PackWeightCpu(device, host, dtype));
  return WeightMatrix(host.rows, host.cols, dtype, std::move(storage));
}

absl::Status Matmul(const OpContext& context, const MatmulArgs& args) {
  internal::ArgChecker check("Matmul", context);
  check.Require(args.weight != nullptr && !args.weight->empty(),
                "there is no weight");
  SY_RETURN_IF_ERROR(check.status());
  check.Matrix("x", args.x, args.x.rows, args.weight->in_features(),
               check.activation_types());
  check.Matrix("out", args.out, args.x.rows, args.weight->out_features(),
               internal::kF32Only | check.activation_types());
  SY_RETURN_IF_ERROR(check.status());
  if (args.out.empty()) return absl::OkStatus();
  return internal::Dispatch(context, args, internal::MatmulCpu,
                            internal::MatmulCuda);
}

}  // namespace switchyard
