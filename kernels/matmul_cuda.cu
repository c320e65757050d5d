// Matmul on CUDA: packs weights, chooses between the streaming kernel, the wide
// one, cuBLASLt and the scalar one, and keeps cuBLASLt's plans.
#include <algorithm>
#include <map>
#include <memory>
#include <tuple>
#include <vector>

#include "kernels/backends.h"
#include "kernels/cuda_common.h"
#include "kernels/matmul_cuda.h"

namespace switchyard::internal {
namespace {

using namespace switchyard::cuda;

cudaDataType_t BlasType(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : CUDA_R_16BF;
}

// The largest power of two up to 256 that divides an address.
uint32_t Alignment(const void* p) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(p) | 256;
  return static_cast<uint32_t>(address & -address);
}

template <typename T, cublasStatus_t (*Destroy)(T)>
struct BlasDeleter {
  void operator()(T object) const { Destroy(object); }
};
template <typename T, cublasStatus_t (*Destroy)(T)>
using BlasHandle =
    std::unique_ptr<std::remove_pointer_t<T>, BlasDeleter<T, Destroy>>;
using BlasLayout =
    BlasHandle<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using BlasMatmul = BlasHandle<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using BlasPreference =
    BlasHandle<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

// out^T = W x^T in cuBLAS's column-major terms: a = W, b = x, d = out.
struct Plan {
  BlasMatmul matmul;
  BlasLayout a, b, d;
  cublasLtMatmulAlgo_t algorithm;
};

using PlanKey = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, DType,
                           DType, uint32_t, uint32_t>;

struct PlanCache final : CudaOpCache {
  std::map<PlanKey, Plan> plans;
};

absl::StatusOr<BlasLayout> MakeLayout(DType dtype, int64_t rows, int64_t cols,
                                      int64_t stride) {
  cublasLtMatrixLayout_t layout;
  SY_RETURN_IF_CUBLAS_ERROR(
      cublasLtMatrixLayoutCreate(&layout, BlasType(dtype), rows, cols, stride));
  return BlasLayout(layout);
}

absl::StatusOr<Plan> MakePlan(CudaDevice* device, const MatrixView& x,
                              const MatrixView& out, int64_t in_features) {
  Plan plan;
  cublasLtMatmulDesc_t matmul;
  SY_RETURN_IF_CUBLAS_ERROR(
      cublasLtMatmulDescCreate(&matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F));
  plan.matmul.reset(matmul);
  const cublasOperation_t transpose = CUBLAS_OP_T;
  SY_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulDescSetAttribute(
      matmul, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose)));
  SY_ASSIGN_OR_RETURN(plan.a,
                      MakeLayout(x.dtype, in_features, out.cols, in_features));
  SY_ASSIGN_OR_RETURN(plan.b,
                      MakeLayout(x.dtype, in_features, x.rows, x.row_stride));
  SY_ASSIGN_OR_RETURN(
      plan.d, MakeLayout(out.dtype, out.cols, out.rows, out.row_stride));

  cublasLtMatmulPreference_t preference;
  SY_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceCreate(&preference));
  const BlasPreference owned(preference);
  const uint64_t workspace_bytes = CudaDevice::kBlasWorkspaceBytes;
  SY_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace_bytes,
      sizeof(workspace_bytes)));
  const uint32_t x_alignment = Alignment(x.data),
                 out_alignment = Alignment(out.data);
  SY_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceSetAttribute(
      preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &x_alignment,
      sizeof(x_alignment)));
  for (const auto attribute : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                               CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    SY_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulPreferenceSetAttribute(
        preference, attribute, &out_alignment, sizeof(out_alignment)));
  }
  cublasLtMatmulHeuristicResult_t result;
  int found = 0;
  SY_RETURN_IF_CUBLAS_ERROR(cublasLtMatmulAlgoGetHeuristic(
      device->blas(), matmul, plan.a.get(), plan.b.get(), plan.d.get(),
      plan.d.get(), preference, 1, &result, &found));
  if (found == 0) {
    return absl::UnimplementedError(
        absl::StrCat("Matmul: cuBLAS has no algorithm for [", x.rows, ", ",
                     in_features, "] x [", out.cols, ", ", in_features, "]^T"));
  }
  plan.algorithm = result.algo;
  return plan;
}

absl::Status RunBlas(const OpContext& context, const MatrixView& x,
                     const WeightMatrix& weight, const MatrixView& out) {
  CudaDevice* device = AsCuda(context.device);
  if (device->matmul_cache() == nullptr)
    device->matmul_cache() = std::make_unique<PlanCache>();
  auto& plans = static_cast<PlanCache*>(device->matmul_cache().get())->plans;
  const PlanKey key(weight.out_features(), weight.in_features(), x.rows,
                    x.row_stride, out.row_stride, x.dtype, out.dtype,
                    Alignment(x.data), Alignment(out.data));
  auto it = plans.find(key);
  if (it == plans.end()) {
    SY_ASSIGN_OR_RETURN(Plan plan,
                        MakePlan(device, x, out, weight.in_features()));
    it = plans.emplace(key, std::move(plan)).first;
  }
  const Plan& plan = it->second;
  const float one = 1, zero = 0;
  SY_RETURN_IF_CUBLAS_ERROR(cublasLtMatmul(
      device->blas(), plan.matmul.get(), &one, AsCuda(weight).data.get(),
      plan.a.get(), x.data, plan.b.get(), &zero, out.data, plan.d.get(),
      out.data, plan.d.get(), &plan.algorithm, device->blas_workspace(),
      CudaDevice::kBlasWorkspaceBytes, device->cuda_stream()));
  return absl::OkStatus();
}

template <typename O>
__global__ void AddBiasKernel(const float* x, const float* bias, O* out,
                              int64_t out_stride, int64_t cols) {
  GridTrigger();
  GridWait();
  const int64_t row = blockIdx.x;
  const int64_t column = int64_t{blockIdx.y} * blockDim.x + threadIdx.x;
  if (column < cols)
    out[row * out_stride + column] =
        FromFloat<O>(x[row * cols + column] + bias[column]);
}

// The product in fp32 scratch, then the bias: rounded once, whatever out is.
absl::Status RunBlasWithBias(const OpContext& context, const MatmulArgs& args) {
  const int64_t mark = context.workspace->used();
  const MatrixView product =
      MakeMatrix(context.workspace->Allocate(args.out.rows * args.out.cols *
                                             sizeof(float)),
                 DType::kF32, args.out.rows, args.out.cols);
  SY_RETURN_IF_ERROR(RunBlas(context, args.x, *args.weight, product));
  context.workspace->Rewind(mark);
  return DispatchActivation(args.out.dtype, "Matmul", [&](auto tag) {
    using O = typename decltype(tag)::type;
    return Launch(context, "Matmul (bias)", AddBiasKernel<O>,
                  {dim3(args.out.rows, CeilDiv(args.out.cols, 256)), dim3(256)},
                  static_cast<const float*>(product.data), args.bias,
                  static_cast<O*>(args.out.data), args.out.row_stride,
                  args.out.cols);
  });
}

float HostToFloat(const MatrixView& view, int64_t row, int64_t column) {
  switch (view.dtype) {
    case DType::kBF16:
      return BF16ToFloat(view.Row<uint16_t>(row)[column]);
    case DType::kF16:
      return F16ToFloat(view.Row<uint16_t>(row)[column]);
    default:
      return view.Row<float>(row)[column];
  }
}

// Copies `host` into `device` as `dtype`, converting a few rows at a time.
absl::Status Upload(CudaDevice* device, const MatrixView& host, DType dtype,
                    std::byte* to) {
  const int64_t row_bytes = host.cols * DTypeBytes(dtype);
  if (host.dtype == dtype) {
    SY_RETURN_IF_CUDA_ERROR(cudaMemcpy2DAsync(
        to, row_bytes, host.data, host.row_stride * DTypeBytes(dtype),
        row_bytes, host.rows, cudaMemcpyHostToDevice, device->cuda_stream()));
    return device->Synchronize();
  }
  const int64_t rows_at_once =
      std::max<int64_t>(1, (int64_t{4} << 20) / row_bytes);
  std::vector<std::byte> converted(std::min(rows_at_once, host.rows) *
                                   row_bytes);
  for (int64_t begin = 0; begin < host.rows; begin += rows_at_once) {
    const int64_t num_rows = std::min(rows_at_once, host.rows - begin);
    for (int64_t row = 0; row < num_rows; ++row) {
      std::byte* target = converted.data() + row * row_bytes;
      for (int64_t column = 0; column < host.cols; ++column) {
        const float value = HostToFloat(host, begin + row, column);
        if (dtype == DType::kF32)
          reinterpret_cast<float*>(target)[column] = value;
        else
          reinterpret_cast<uint16_t*>(target)[column] = FloatToBF16(value);
      }
    }
    SY_RETURN_IF_ERROR(device->CopyToDevice(
        to + begin * row_bytes, converted.data(), num_rows * row_bytes));
    SY_RETURN_IF_ERROR(device->Synchronize());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<WeightMatrix::Storage>> PackWeightCuda(
    Device* device, const MatrixView& host, DType dtype) {
  if (dtype != DType::kBF16 && dtype != DType::kF32) {
    return absl::UnimplementedError(absl::StrCat(
        "weights are kept as bf16 or fp32 on CUDA, not as ", DTypeName(dtype)));
  }
  CudaDevice* cuda_device = AsCuda(device);
  auto weight = std::make_unique<CudaWeight>();
  SY_ASSIGN_OR_RETURN(weight->data, device->Allocate(host.rows * host.cols *
                                                     DTypeBytes(dtype)));
  SY_RETURN_IF_ERROR(Upload(cuda_device, host, dtype, weight->data.get()));
  if (dtype == DType::kBF16 && host.cols % 8 == 0) {
    SY_RETURN_IF_ERROR(PlanStreaming(cuda_device->num_sms(), host.rows,
                                     host.cols, weight.get()));
    SY_RETURN_IF_ERROR(
        PlanWide(cuda_device->num_sms(), host.rows, host.cols, weight.get()));
  }
  return weight;
}

bool ServesWide(const OpContext& context, const MatrixView& x,
                const WeightMatrix& weight) {
  if (!CanMultiplyWide(x, weight)) return false;
  if (context.batch_invariant) return true;
  return x.rows >= AsCuda(weight).wide_from && x.rows <= kMaxWideRows;
}

absl::Status MatmulCuda(const OpContext& context, const MatmulArgs& args) {
  if (args.x.dtype != args.weight->dtype()) {
    return absl::UnimplementedError(absl::StrCat(
        "Matmul: ", DTypeName(args.x.dtype), " activations with a ",
        DTypeName(args.weight->dtype()), " weight have no CUDA kernel"));
  }
  if (ServesWide(context, args.x, *args.weight))
    return MatmulWide(context, args);
  if (context.batch_invariant) return MatmulInvariant(context, args);
  if (CanStream(args.x, *args.weight)) return MatmulStreaming(context, args);
  if (args.bias != nullptr) return RunBlasWithBias(context, args);
  return RunBlas(context, args.x, *args.weight, args.out);
}

}  // namespace switchyard::internal
