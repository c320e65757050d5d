// switchyard placement get|set|list|define|delete|mixers: the operator's view
// of the placements of a running server.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cli/client_flags.h"
#include "cli/commands.h"
#include "cli/flags.h"
#include "cli/placement_arg.h"
#include "kernels/status.h"
#include "proto/grpc_status.h"
#include "switchyard/v1/admin.grpc.pb.h"

namespace switchyard {
namespace {

using Stub = v1::AdminService::Stub;

// The admin port that a command talks to.
struct Target {
  std::string address = "127.0.0.1:8001";
  ClientFiles files;
};

void DeclareTarget(FlagSet& flags, Target* target) {
  AddTargetFlags(&target->address, "the server's admin port", &target->files,
                 &flags);
}

template <typename Request, typename Response>
absl::Status Call(const Target& target,
                  grpc::Status (Stub::*method)(grpc::ClientContext*,
                                               const Request&, Response*),
                  const Request& request, Response* response) {
  SY_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                      Dial(target.address, target.files));
  grpc::ClientContext context;
  return FromGrpcStatus((Stub(channel).*method)(&context, request, response));
}

// "attention x12, gdn x4": long placements at a glance, in order of layers.
std::string Summary(const v1::MixerList& placement) {
  std::vector<std::string> runs;
  for (int i = 0; i < placement.names_size();) {
    int end = i;
    while (end < placement.names_size() &&
           placement.names(end) == placement.names(i))
      ++end;
    runs.push_back(end - i == 1
                       ? placement.names(i)
                       : absl::StrCat(placement.names(i), " x", end - i));
    i = end;
  }
  return absl::StrJoin(runs, ", ");
}

int Get(absl::Span<const std::string> args) {
  Target target;
  FlagSet flags("switchyard placement get",
                "Prints the default placement and the epoch.",
                "[--target HOST:PORT]");
  DeclareTarget(flags, &target);
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
  v1::GetDefaultPlacementResponse response;
  const absl::Status status =
      Call(target, &Stub::GetDefaultPlacement, {}, &response);
  if (!status.ok()) return Fail("placement get", status);
  std::printf("epoch      %llu\n",
              static_cast<unsigned long long>(response.epoch()));
  if (!response.preset().empty())
    std::printf("preset     %s\n", response.preset().c_str());
  std::printf("placement  %s\n",
              absl::StrJoin(response.placement().names(), ",").c_str());
  return kExitOk;
}

int Set(absl::Span<const std::string> args) {
  Target target;
  std::string placement;
  std::string in_flight = "finish";
  FlagSet flags("switchyard placement set",
                "Switches the default placement, on every rank or on none.",
                "PRESET|A,B,... [flags]");
  flags.Choice("in-flight", &in_flight, {"finish", "recompute", "drain"},
               "what happens to the streams that run on the old default: they "
               "finish on it, go on under the new one, "
               "or the switch waits for them");
  DeclareTarget(flags, &target);
  flags.Operand("PLACEMENT", &placement,
                "a preset, or one mixer name per layer separated by commas");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
  v1::SetDefaultPlacementRequest request;
  *request.mutable_placement() = PlacementFromArgument(placement);
  request.set_in_flight(in_flight == "drain"       ? v1::IN_FLIGHT_DRAIN
                        : in_flight == "recompute" ? v1::IN_FLIGHT_RECOMPUTE
                                                   : v1::IN_FLIGHT_FINISH);
  v1::SetDefaultPlacementResponse response;
  const absl::Status status =
      Call(target, &Stub::SetDefaultPlacement, request, &response);
  if (!status.ok()) return Fail("placement set", status);
  std::printf("epoch      %llu\n",
              static_cast<unsigned long long>(response.epoch()));
  std::printf("placement  %s\n",
              absl::StrJoin(response.placement().names(), ",").c_str());
  std::printf("pause      %.3f ms\n", response.pause_ms());
  if (request.in_flight() == v1::IN_FLIGHT_RECOMPUTE) {
    std::printf("recomputed %u sequences\n", response.recomputed_sequences());
  }
  return kExitOk;
}

int List(absl::Span<const std::string> args) {
  Target target;
  FlagSet flags("switchyard placement list", "Prints the presets.",
                "[--target HOST:PORT]");
  DeclareTarget(flags, &target);
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
  v1::ListPresetsResponse response;
  const absl::Status status = Call(target, &Stub::ListPresets, {}, &response);
  if (!status.ok()) return Fail("placement list", status);
  size_t width = 0;
  for (const v1::Preset& preset : response.presets())
    width = std::max(width, preset.name().size());
  for (const v1::Preset& preset : response.presets()) {
    std::printf("%-*s  %s\n", static_cast<int>(width), preset.name().c_str(),
                Summary(preset.placement()).c_str());
  }
  return kExitOk;
}

int Define(absl::Span<const std::string> args) {
  Target target;
  std::string name;
  std::string placement;
  FlagSet flags("switchyard placement define", "Adds or replaces a preset.",
                "NAME A,B,... [flags]");
  DeclareTarget(flags, &target);
  flags.Operand("NAME", &name, "of the preset");
  flags.Operand("MIXERS", &placement,
                "one mixer name per layer, separated by commas");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
  v1::DefinePresetRequest request;
  request.mutable_preset()->set_name(name);
  for (absl::string_view mixer : absl::StrSplit(placement, ',')) {
    request.mutable_preset()->mutable_placement()->add_names(
        std::string(mixer));
  }
  v1::DefinePresetResponse response;
  const absl::Status status =
      Call(target, &Stub::DefinePreset, request, &response);
  if (!status.ok()) return Fail("placement define", status);
  std::printf("epoch      %llu\n",
              static_cast<unsigned long long>(response.epoch()));
  return kExitOk;
}

int Delete(absl::Span<const std::string> args) {
  Target target;
  v1::DeletePresetRequest request;
  FlagSet flags("switchyard placement delete",
                "Removes a preset; sequences that run on it go on.",
                "NAME [flags]");
  DeclareTarget(flags, &target);
  flags.Operand("NAME", request.mutable_name(), "of the preset");
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
  v1::DeletePresetResponse response;
  const absl::Status status =
      Call(target, &Stub::DeletePreset, request, &response);
  if (!status.ok()) return Fail("placement delete", status);
  std::printf("epoch      %llu\n",
              static_cast<unsigned long long>(response.epoch()));
  return kExitOk;
}

int Mixers(absl::Span<const std::string> args) {
  Target target;
  FlagSet flags("switchyard placement mixers",
                "Prints what every layer can run.", "[--target HOST:PORT]");
  DeclareTarget(flags, &target);
  if (std::optional<int> exit_code = flags.ParseOrExitCode(args))
    return *exit_code;
  v1::ListMixersResponse response;
  const absl::Status status = Call(target, &Stub::ListMixers, {}, &response);
  if (!status.ok()) return Fail("placement mixers", status);
  std::printf("layer  mixers (* the checkpoint's default)\n");
  for (const v1::LayerMixers& layer : response.layers()) {
    std::vector<std::string> options;
    for (const v1::MixerOption& option : layer.options()) {
      std::string text = option.name();
      if (option.name() == layer.main_mixer_name()) text += "*";
      std::string type = option.type();
      if (option.window_size() > 0)
        absl::StrAppend(&type, ", window ", option.window_size());
      if (type != option.name()) absl::StrAppend(&text, " (", type, ")");
      options.push_back(std::move(text));
    }
    std::printf("%5u  %s\n", layer.layer(),
                absl::StrJoin(options, ", ").c_str());
  }
  return kExitOk;
}

struct Action {
  const char* summary;
  int (*run)(absl::Span<const std::string>);
};

const std::map<std::string, Action>& Actions() {
  static const auto* actions = new std::map<std::string, Action>{
      {"get", {"the default placement and the epoch", Get}},
      {"set", {"switches the default placement", Set}},
      {"list", {"the presets", List}},
      {"define", {"adds or replaces a preset", Define}},
      {"delete", {"removes a preset", Delete}},
      {"mixers", {"what every layer can run", Mixers}},
  };
  return *actions;
}

void PrintHelp(std::FILE* out) {
  std::fprintf(out,
               "Usage: switchyard placement ACTION [flags]\n\nThe placements "
               "of a running server.\n\n");
  for (const auto& [name, action] : Actions())
    std::fprintf(out, "  %-8s %s\n", name.c_str(), action.summary);
  std::fprintf(
      out, "\n`switchyard placement ACTION --help` tells an action's flags.\n");
}

}  // namespace

int PlacementCommand(absl::Span<const std::string> args) {
  if (!args.empty() && (args[0] == "--help" || args[0] == "-h")) {
    PrintHelp(stdout);
    return kExitOk;
  }
  const auto action = args.empty() ? Actions().end() : Actions().find(args[0]);
  if (action == Actions().end()) {
    std::fprintf(stderr, "switchyard placement: %s\n",
                 args.empty()
                     ? "an action is missing"
                     : absl::StrCat("unknown action '", args[0], "'").c_str());
    PrintHelp(stderr);
    return kExitUsage;
  }
  return action->second.run(args.subspan(1));
}

}  // namespace switchyard
