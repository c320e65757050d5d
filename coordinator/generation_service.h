// The client API on gRPC: GenerationService of generation.proto.
#ifndef SWITCHYARD_COORDINATOR_GENERATION_SERVICE_H_
#define SWITCHYARD_COORDINATOR_GENERATION_SERVICE_H_

#include <memory>

#include "absl/time/time.h"
#include "coordinator/engine.h"
#include "coordinator/served_model.h"

namespace grpc {
class Service;
}

namespace switchyard {

class TokenSet;

// Streams are driven by gRPC's callbacks and by the engine's thread, which
// writes to a stream directly when nothing is being written on it. A client
// that reads slowly finds what it has missed in one larger chunk: nothing is
// lost, nobody waits, and a stream never keeps more than its own tokens.
//
// Thread-safe. Every stream must have ended before this is destroyed (the
// server's shutdown waits for them).
class GenerationService {
 public:
  // All are borrowed; `tokens` are the clients', null if they need none.
  GenerationService(Engine* engine, const ServedModel* model, TokenSet* tokens);
  ~GenerationService();

  // To register with a server; owned by this object.
  grpc::Service* service();

  // Until every admitted stream has been written to its end, or `patience`
  // ends.
  void WaitForStreams(absl::Duration patience);

 private:
  class Impl;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_COORDINATOR_GENERATION_SERVICE_H_
