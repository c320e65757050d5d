#include "coordinator/admin_service.h"

#include <grpcpp/grpcpp.h>

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/client_status.h"
#include "coordinator/version.h"
#include "rpc/tokens.h"
#include "switchyard/v1/admin.grpc.pb.h"

namespace switchyard {
namespace {

absl::Status CheckInFlight(v1::InFlight in_flight) {
  if (v1::InFlight_IsValid(in_flight)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("in_flight: ", in_flight,
                   " is not one of IN_FLIGHT_FINISH, IN_FLIGHT_RECOMPUTE and "
                   "IN_FLIGHT_DRAIN"));
}

void Describe(const MixerConfig& mixer, v1::MixerOption* option) {
  option->set_name(mixer.name);
  option->set_type(MixerTypeName(mixer.type()));
  if (const AttentionConfig* attention = mixer.As<AttentionConfig>()) {
    option->set_window_size(attention->window_size.value_or(0));
  }
}

}  // namespace

class AdminService::Impl final : public v1::AdminService::Service {
 public:
  Impl(Engine* engine, const ServedModel* model, TokenSet* tokens)
      : engine_(engine), model_(model), tokens_(tokens) {}

  grpc::Status SetDefaultPlacement(
      grpc::ServerContext* context,
      const v1::SetDefaultPlacementRequest* request,
      v1::SetDefaultPlacementResponse* response) override {
    if (grpc::Status status = Authorize(*context); !status.ok()) return status;
    if (absl::Status status = CheckInFlight(request->in_flight());
        !status.ok()) {
      return ToClientStatus(status);
    }
    const absl::StatusOr<PlacementSwitch> done = engine_->SetDefaultPlacement(
        request->placement(), request->in_flight(),
        [context] { return context->IsCancelled(); });
    if (!done.ok()) return ToClientStatus(done.status());
    response->set_epoch(done->epoch);
    *response->mutable_placement() =
        engine_->placements()->ToProto(done->placement);
    response->set_pause_ms(absl::ToDoubleMilliseconds(done->pause));
    response->set_recomputed_sequences(done->num_recomputed);
    return grpc::Status::OK;
  }

  grpc::Status GetDefaultPlacement(
      grpc::ServerContext* context,
      const v1::GetDefaultPlacementRequest* /*request*/,
      v1::GetDefaultPlacementResponse* response) override {
    if (grpc::Status status = Authorize(*context); !status.ok()) return status;
    const std::shared_ptr<const PlacementTable> table = engine_->placements();
    response->set_epoch(table->epoch());
    *response->mutable_placement() = table->ToProto(table->default_placement());
    response->set_preset(table->default_preset());
    return grpc::Status::OK;
  }

  grpc::Status ListMixers(grpc::ServerContext* context,
                          const v1::ListMixersRequest* /*request*/,
                          v1::ListMixersResponse* response) override {
    if (grpc::Status status = Authorize(*context); !status.ok()) return status;
    const ModelConfig& config = model_->config;
    for (int32_t i = 0; i < config.num_layers(); ++i) {
      const LayerConfig& layer = config.layers[i];
      v1::LayerMixers* out = response->add_layers();
      out->set_layer(i);
      out->set_main_mixer_name(layer.mixers[layer.main_mixer].name);
      for (const MixerConfig& mixer : layer.mixers) {
        Describe(mixer, out->add_options());
      }
    }
    return grpc::Status::OK;
  }

  grpc::Status DefinePreset(grpc::ServerContext* context,
                            const v1::DefinePresetRequest* request,
                            v1::DefinePresetResponse* response) override {
    if (grpc::Status status = Authorize(*context); !status.ok()) return status;
    const absl::StatusOr<uint64_t> epoch = engine_->DefinePreset(
        request->preset(), [context] { return context->IsCancelled(); });
    if (!epoch.ok()) return ToClientStatus(epoch.status());
    response->set_epoch(*epoch);
    return grpc::Status::OK;
  }

  grpc::Status DeletePreset(grpc::ServerContext* context,
                            const v1::DeletePresetRequest* request,
                            v1::DeletePresetResponse* response) override {
    if (grpc::Status status = Authorize(*context); !status.ok()) return status;
    const absl::StatusOr<uint64_t> epoch = engine_->DeletePreset(
        request->name(), [context] { return context->IsCancelled(); });
    if (!epoch.ok()) return ToClientStatus(epoch.status());
    response->set_epoch(*epoch);
    return grpc::Status::OK;
  }

  grpc::Status ListPresets(grpc::ServerContext* context,
                           const v1::ListPresetsRequest* /*request*/,
                           v1::ListPresetsResponse* response) override {
    if (grpc::Status status = Authorize(*context); !status.ok()) return status;
    const std::shared_ptr<const PlacementTable> table = engine_->placements();
    response->set_epoch(table->epoch());
    for (const auto& [name, placement] : table->presets()) {
      v1::Preset* preset = response->add_presets();
      preset->set_name(name);
      *preset->mutable_placement() = table->ToProto(placement);
    }
    return grpc::Status::OK;
  }

  grpc::Status GetServerInfo(grpc::ServerContext* context,
                             const v1::GetServerInfoRequest* /*request*/,
                             v1::GetServerInfoResponse* response) override {
    if (grpc::Status status = Authorize(*context); !status.ok()) return status;
    absl::StatusOr<v1::Load> load = engine_->load();
    if (!load.ok()) return ToClientStatus(load.status());
    response->set_version(kVersion);
    response->set_model(model_->name);
    response->set_epoch(engine_->placements()->epoch());
    const GroupFacts& group = engine_->group();
    for (size_t i = 0; i < group.ranks.size(); ++i) {
      v1::RankInfo* rank = response->add_ranks();
      rank->set_rank(static_cast<uint32_t>(i));
      rank->set_address(group.ranks[i].address);
      rank->set_device(group.ranks[i].device);
      rank->set_weights_bytes(group.ranks[i].weights_bytes);
      rank->set_cache_bytes(group.cache_bytes);
    }
    *response->mutable_load() = *std::move(load);
    return grpc::Status::OK;
  }

 private:
  grpc::Status Authorize(const grpc::ServerContext& context) {
    return ToClientStatus(CheckToken(tokens_, context));
  }

  Engine* const engine_;
  const ServedModel* const model_;
  TokenSet* const tokens_;  // null: none are needed
};

AdminService::AdminService(Engine* engine, const ServedModel* model,
                           TokenSet* tokens)
    : impl_(std::make_unique<Impl>(engine, model, tokens)) {}

AdminService::~AdminService() = default;

grpc::Service* AdminService::service() { return impl_.get(); }

}  // namespace switchyard
