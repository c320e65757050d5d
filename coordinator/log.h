// The coordinator's log: short lines on stderr.
#ifndef SWITCHYARD_COORDINATOR_LOG_H_
#define SWITCHYARD_COORDINATOR_LOG_H_

#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace switchyard {

// One line, written whole, so that lines of several threads and processes do
// not mix. Any thread.
inline void Log(absl::string_view line) {
  const std::string text = absl::StrCat("switchyard: ", line, "\n");
  std::fwrite(text.data(), 1, text.size(), stderr);
}

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_LOG_H_
