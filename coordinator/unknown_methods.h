// Answers calls of methods that a port does not have, with what it has.
#ifndef SWITCHYARD_COORDINATOR_UNKNOWN_METHODS_H_
#define SWITCHYARD_COORDINATOR_UNKNOWN_METHODS_H_

#include <grpcpp/generic/async_generic_service.h>

#include <string>
#include <utility>

namespace switchyard {

// gRPC's own answer is UNIMPLEMENTED without a word. Thread-safe.
class UnknownMethods final : public grpc::CallbackGenericService {
 public:
  // `advice` follows the method's name in the message.
  explicit UnknownMethods(std::string advice) : advice_(std::move(advice)) {}

  grpc::ServerGenericBidiReactor* CreateReactor(
      grpc::GenericCallbackServerContext* context) override;

 private:
  const std::string advice_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_UNKNOWN_METHODS_H_
