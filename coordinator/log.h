// The coordinator's log: the process's, see log/log.h.
#ifndef SWITCHYARD_COORDINATOR_LOG_H_
#define SWITCHYARD_COORDINATOR_LOG_H_

#include "absl/strings/string_view.h"
#include "log/log.h"

namespace switchyard {

// A line without fields for whoever reads along.
inline void Log(absl::string_view line) { Log(LogLevel::kInfo, line); }

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_LOG_H_
