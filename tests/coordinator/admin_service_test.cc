#include "coordinator/admin_service.h"

#include <map>

#include "switchyard/v1/admin.grpc.pb.h"
#include "tests/coordinator/service_fixture.h"

namespace switchyard {
namespace {

class AdminServiceTest : public ServiceFixture {
 protected:
  AdminServiceTest() { Start(); }

  // Calls a method of the stub.
  template <typename Method, typename Request, typename Response>
  grpc::Status Call(Method method, const Request& request, Response* response) {
    const auto stub = v1::AdminService::NewStub(admin_channel_);
    grpc::ClientContext context;
    return (stub.get()->*method)(&context, request, response);
  }

  grpc::Status Switch(const v1::SetDefaultPlacementRequest& request,
                      v1::SetDefaultPlacementResponse* response) {
    return Call(&v1::AdminService::Stub::SetDefaultPlacement, request,
                response);
  }

  v1::GetDefaultPlacementResponse Default() {
    v1::GetDefaultPlacementResponse response;
    EXPECT_TRUE(Call(&v1::AdminService::Stub::GetDefaultPlacement,
                     v1::GetDefaultPlacementRequest(), &response)
                    .ok());
    return response;
  }

  grpc::Status Define(const std::string& name,
                      const std::vector<std::string>& mixers,
                      v1::DefinePresetResponse* response) {
    v1::DefinePresetRequest request;
    request.mutable_preset()->set_name(name);
    for (const std::string& mixer : mixers) {
      request.mutable_preset()->mutable_placement()->add_names(mixer);
    }
    return Call(&v1::AdminService::Stub::DefinePreset, request, response);
  }
};

TEST_F(AdminServiceTest, SwitchesTheDefault) {
  v1::SetDefaultPlacementRequest request;
  request.mutable_placement()->set_preset("all-gdn");
  v1::SetDefaultPlacementResponse response;
  ASSERT_TRUE(Switch(request, &response).ok());
  EXPECT_EQ(response.epoch(), 2);
  ASSERT_EQ(response.placement().names_size(), kNumLayers);
  EXPECT_EQ(response.placement().names(0), "gdn");
  EXPECT_GE(response.pause_ms(), 0);
  EXPECT_EQ(Default().preset(), "all-gdn");
  EXPECT_EQ(Default().epoch(), 2);
}

TEST_F(AdminServiceTest, RefusalsChangeNothing) {
  v1::SetDefaultPlacementRequest request;
  v1::SetDefaultPlacementResponse response;
  EXPECT_EQ(Switch(request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request.mutable_placement()->set_preset("unknown");
  EXPECT_EQ(Switch(request, &response).error_code(),
            grpc::StatusCode::NOT_FOUND);
  request.mutable_placement()->mutable_mixers()->add_names("gdn");
  EXPECT_EQ(Switch(request, &response).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  request.mutable_placement()->set_preset("all-kda");
  request.set_in_flight(static_cast<v1::InFlight>(17));
  EXPECT_EQ(Switch(request, &response).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  request.set_in_flight(v1::IN_FLIGHT_FINISH);
  group_->RefusePrepare(absl::AbortedError("rank 1 (fake:2): no memory"));
  const grpc::Status refused = Switch(request, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::ABORTED);
  EXPECT_NE(refused.error_message().find("rank 1"), std::string::npos);
  EXPECT_EQ(Default().epoch(), 1);
  EXPECT_EQ(Default().placement().names(0), "attention");
}

TEST_F(AdminServiceTest, DefinesListsAndDeletesPresets) {
  v1::DefinePresetResponse defined;
  ASSERT_TRUE(Define("mixed", {"gdn", "kda", "mamba"}, &defined).ok());
  EXPECT_EQ(defined.epoch(), 2);
  EXPECT_EQ(Define("", {"gdn", "kda", "mamba"}, &defined).error_code(),
            grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(Define("short", {"gdn"}, &defined).error_code(),
            grpc::StatusCode::FAILED_PRECONDITION);
  v1::ListPresetsResponse presets;
  ASSERT_TRUE(Call(&v1::AdminService::Stub::ListPresets,
                   v1::ListPresetsRequest(), &presets)
                  .ok());
  EXPECT_EQ(presets.epoch(), 2);
  std::map<std::string, std::string> first_mixer;
  for (const v1::Preset& preset : presets.presets()) {
    first_mixer[preset.name()] = preset.placement().names(0);
  }
  EXPECT_EQ(first_mixer["mixed"], "gdn");
  EXPECT_EQ(first_mixer["all-mamba"], "mamba");

  v1::DeletePresetRequest request;
  request.set_name("mixed");
  v1::DeletePresetResponse deleted;
  ASSERT_TRUE(
      Call(&v1::AdminService::Stub::DeletePreset, request, &deleted).ok());
  EXPECT_EQ(deleted.epoch(), 3);
  EXPECT_EQ(Call(&v1::AdminService::Stub::DeletePreset, request, &deleted)
                .error_code(),
            grpc::StatusCode::NOT_FOUND);
}

TEST_F(AdminServiceTest, ListsTheMixersOfEveryLayer) {
  v1::ListMixersResponse mixers;
  ASSERT_TRUE(Call(&v1::AdminService::Stub::ListMixers, v1::ListMixersRequest(),
                   &mixers)
                  .ok());
  ASSERT_EQ(mixers.layers_size(), kNumLayers);
  for (int i = 0; i < kNumLayers; ++i) {
    const v1::LayerMixers& layer = mixers.layers(i);
    EXPECT_EQ(layer.layer(), i);
    EXPECT_EQ(layer.main_mixer_name(), "attention");
    ASSERT_EQ(layer.options_size(), kNumSupernetMixers);
    EXPECT_EQ(layer.options(kWindow).type(), "attention");
    EXPECT_EQ(layer.options(kWindow).window_size(), 10);
    EXPECT_EQ(layer.options(kMamba).type(), "mamba");
  }
}

TEST_F(AdminServiceTest, TellsRanksAndLoad) {
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(Call(&v1::AdminService::Stub::GetServerInfo,
                   v1::GetServerInfoRequest(), &info)
                  .ok());
  EXPECT_EQ(info.model(), "made-up");
  EXPECT_NE(info.version(), "");
  ASSERT_EQ(info.ranks_size(), 1);
  EXPECT_EQ(info.ranks(0).address(), "fake:1");
  EXPECT_EQ(info.ranks(0).cache_bytes(), uint64_t{256} << 20);
  EXPECT_EQ(info.load().cache_total_bytes(), uint64_t{256} << 20);
  EXPECT_EQ(info.load().running_sequences(), 0);
}

}  // namespace
}  // namespace switchyard
