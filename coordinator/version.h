#ifndef SWITCHYARD_COORDINATOR_VERSION_H_
#define SWITCHYARD_COORDINATOR_VERSION_H_

namespace switchyard {

inline constexpr char kVersion[] = "0.1.0";

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_VERSION_H_
