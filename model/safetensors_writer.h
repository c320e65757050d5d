// Writing of safetensors files (format: see safetensors.h).
#ifndef SWITCHYARD_MODEL_SAFETENSORS_WRITER_H_
#define SWITCHYARD_MODEL_SAFETENSORS_WRITER_H_

#include <string>

#include "absl/status/status.h"
#include "model/safetensors.h"

namespace switchyard {

// The 8 bytes of length and the header of a file that holds `tensors` one after
// the other in the map's order, padded with spaces so that the data begins at a
// multiple of 8 bytes.
std::string SafetensorsHeader(const TensorMap& tensors);

// Writes the tensors to a new file at `path`, replacing one that is there only
// when everything has been written. FailedPrecondition or ResourceExhausted
// name the path and the system's reason.
absl::Status WriteSafetensors(const std::string& path,
                              const TensorMap& tensors);

}  // namespace switchyard

#endif  // SWITCHYARD_MODEL_SAFETENSORS_WRITER_H_
