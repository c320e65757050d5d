// The operator's API on gRPC: AdminService of admin.proto.
#ifndef SWITCHYARD_COORDINATOR_ADMIN_SERVICE_H_
#define SWITCHYARD_COORDINATOR_ADMIN_SERVICE_H_

#include <memory>

#include "coordinator/engine.h"
#include "coordinator/served_model.h"

namespace grpc {
class Service;
}

namespace switchyard {

class TokenSet;

// Its methods wait, each on a thread of its server's pool, until the engine has
// done what they ask. Thread-safe.
class AdminService {
 public:
  // All are borrowed; `tokens` are the operators', null if they need none.
  AdminService(Engine* engine, const ServedModel* model, TokenSet* tokens);
  ~AdminService();

  // To register with a server; owned by this object.
  grpc::Service* service();

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_ADMIN_SERVICE_H_
