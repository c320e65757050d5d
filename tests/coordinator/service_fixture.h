// A server with an engine on a fake group, for tests that speak gRPC to it.
#ifndef SWITCHYARD_TESTS_COORDINATOR_SERVICE_FIXTURE_H_
#define SWITCHYARD_TESTS_COORDINATOR_SERVICE_FIXTURE_H_

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "coordinator/engine.h"
#include "coordinator/server.h"
#include "tests/coordinator/fake_group.h"
#include "tests/coordinator/made_up_model.h"
#include "tests/coordinator/supernet.h"
#include "tests/coordinator/tiny_tokenizer.h"

namespace switchyard {

class ServiceFixture : public ::testing::Test {
 protected:
  static constexpr int kNumLayers = 3;

  ServiceFixture() { model_ = MakeMadeUpModel(kNumLayers, 8192); }

  ~ServiceFixture() override {
    if (server_ == nullptr) return;
    group_->Release();
    engine_->Stop();
    server_->Shutdown(absl::Seconds(5));
    EXPECT_EQ(group_->complaints(), std::vector<std::string>());
  }

  void Start() {
    const CacheSpec spec = MakeSpec(model_.config);
    group_ =
        std::make_unique<FakeGroup>(&model_.config, spec, uint64_t{256} << 20);
    engine_ = std::make_unique<Engine>(
        options_, &model_,
        PlacementTable::Create(&model_.config, {}, "").value(), spec,
        group_.get(), nullptr);
    ServerOptions ports;
    ports.port = 0;
    ports.admin_port = 0;
    server_ = Server::Start(ports, engine_.get(), &model_).value();
    channel_ = grpc::CreateChannel(server_->address(),
                                   grpc::InsecureChannelCredentials());
    admin_channel_ = grpc::CreateChannel(server_->admin_address(),
                                         grpc::InsecureChannelCredentials());
  }

  ServedModel model_;
  EngineOptions options_;
  std::unique_ptr<FakeGroup> group_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Server> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::shared_ptr<grpc::Channel> admin_channel_;
};

}  // namespace switchyard

#endif  // SWITCHYARD_TESTS_COORDINATOR_SERVICE_FIXTURE_H_
