// The NCCL collective of a build without CUDA.
#include "worker/nccl_collective.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<Collective>> MakeNcclCollective(
    const CollectiveOptions&, Rendezvous&) {
  return absl::UnimplementedError(
      "NCCL: this build has no CUDA (it was built without the CUDA toolkit)");
}

}  // namespace switchyard
