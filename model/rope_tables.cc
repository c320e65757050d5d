#include "model/rope_tables.h"

#include <vector>

#include "kernels/rope.h"
#include "kernels/status.h"

namespace switchyard {

absl::StatusOr<RopeTable> RopeTables::Get(const RopeKind& kind) {
  DeviceBuffer& buffer =
      tables_[{kind.theta, kind.head_size, kind.bf16_frequencies}];
  if (buffer == nullptr) {
    const std::vector<float> host = MakeRopeTable(
        num_positions_, kind.head_size, kind.theta, kind.bf16_frequencies);
    const int64_t bytes = host.size() * sizeof(float);
    SY_ASSIGN_OR_RETURN(buffer, device_->Allocate(bytes));
    SY_RETURN_IF_ERROR(device_->CopyToDevice(buffer.get(), host.data(), bytes));
    SY_RETURN_IF_ERROR(device_->Synchronize());
  }
  return RopeTable{reinterpret_cast<const float*>(buffer.get()),
                   num_positions_};
}

}  // namespace switchyard
