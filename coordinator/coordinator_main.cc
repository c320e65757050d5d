#include "coordinator/coordinator_main.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "coordinator/engine_telemetry.h"
#include "coordinator/liveness.h"
#include "coordinator/log.h"
#include "coordinator/metrics.h"
#include "coordinator/metrics_server.h"
#include "coordinator/presets_watcher.h"
#include "coordinator/worker_group.h"
#include "kernels/status.h"
#include "model/random_init.h"
#include "rpc/health_server.h"
#include "rpc/port_check.h"

namespace switchyard {
namespace {

// How long streams that have ended may take to reach their clients.
constexpr absl::Duration kFarewell = absl::Seconds(2);

// How often the presets file is read.
constexpr absl::Duration kPresetsInterval = absl::Seconds(1);

std::string BaseName(absl::string_view path) {
  while (absl::ConsumeSuffix(&path, "/")) {
  }
  return std::string(path.substr(path.rfind('/') + 1));
}

absl::Status LoadTokenizer(const std::string& model_dir, ServedModel* model) {
  const std::string path = absl::StrCat(model_dir, "/tokenizer.json");
  struct stat unused;
  if (stat(path.c_str(), &unused) != 0) {
    Log(absl::StrCat("there is no ", path,
                     ": serving prompts in token ids only"));
    return absl::OkStatus();
  }
  SY_ASSIGN_OR_RETURN(model->tokenizer, Tokenizer::Load(path));
  const int64_t vocab_size = model->config.vocab_size;
  if (model->tokenizer->vocab_size() > vocab_size) {
    Log(LogLevel::kWarning,
        absl::StrCat(path, " has tokens that the model has not: from id ",
                     vocab_size, " on; texts that contain them are refused"));
  }
  return absl::OkStatus();
}

// A line on a terminal that counts up while the ranks load.
std::function<void(uint64_t, uint64_t)> ProgressLine() {
  if (isatty(STDERR_FILENO) == 0) return [](uint64_t, uint64_t) {};
  return [done = false](uint64_t bytes_loaded, uint64_t bytes_total) mutable {
    if (bytes_total == 0 || done) return;
    constexpr double kMiB = 1 << 20;
    done = bytes_loaded >= bytes_total;
    std::fprintf(stderr, "\rloading %3.0f%%  %.0f of %.0f MiB%s",
                 100.0 * bytes_loaded / bytes_total, bytes_loaded / kMiB,
                 bytes_total / kMiB, done ? "\n" : "");
  };
}

WorkerGroupOptions GroupOptions(const CoordinatorOptions& options,
                                const CoordinatorModel& model,
                                const std::vector<std::string>& workers) {
  WorkerGroupOptions group;
  group.addresses = workers;
  v1::ConfigureRequest& configure = group.configure;
  configure.set_model_dir(options.model_dir);
  configure.set_dtype(options.dtype);
  configure.set_max_num_seqs(options.engine.scheduler.max_num_seqs);
  configure.set_max_num_batched_tokens(
      options.engine.scheduler.max_num_batched_tokens);
  configure.set_block_size(options.block_size);
  configure.set_config_fingerprint(Fingerprint(model.served.config));
  configure.set_poison_freed_cache(options.poison_freed_cache);
  configure.set_max_context_tokens(model.served.max_context_tokens);
  configure.set_enable_graphs(options.cuda_graphs);
  configure.set_overlap_tokens(options.overlap_tokens);
  configure.set_batch_invariant(options.batch_invariant);
  configure.set_random_init(options.random_init);
  group.cache_bytes = static_cast<uint64_t>(options.cache_bytes.value_or(0));
  group.connect_timeout = options.connect_timeout;
  group.step_timeout = options.step_timeout;
  group.on_progress = ProgressLine();
  return group;
}

void Describe(const CoordinatorModel& model, const WorkerGroup& group) {
  const GroupFacts& facts = group.facts();
  Log(absl::StrFormat("%s: %d layers, %d rank%s on %s, %.0f MiB of cache each",
                      model.served.name, model.served.config.num_layers(),
                      facts.ranks.size(), facts.ranks.size() == 1 ? "" : "s",
                      facts.ranks[0].device,
                      static_cast<double>(facts.cache_bytes) / (1 << 20)));
}

// The exit code, or why nothing could be served.
absl::StatusOr<int> Serve(const CoordinatorOptions& options,
                          CoordinatorModel* model,
                          const std::vector<std::string>& workers,
                          StopRequests* stop) {
  // Loading may take long: what would stop the server after it stops it now.
  SY_RETURN_IF_ERROR(CheckPorts(options.server.host,
                                {{"--port", options.server.port},
                                 {"--admin-port", options.server.admin_port},
                                 {"--metrics-port", options.metrics_port},
                                 {"--health-port", options.health_port}}));
  SY_RETURN_IF_ERROR(Server::Check(options.server));
  SY_ASSIGN_OR_RETURN(
      const std::unique_ptr<HealthServer> health,
      HealthServer::Start(options.server.host, options.health_port,
                          {kGenerationServiceName, kAdminServiceName}));
  const auto set_ready = [&health](bool ready) {
    health->Set(kGenerationServiceName, ready);
    health->Set(kAdminServiceName, ready);
  };
  std::printf("health on %s\n", health->address().c_str());
  std::fflush(stdout);

  WorkerGroupOptions group_options = GroupOptions(options, *model, workers);
  SY_ASSIGN_OR_RETURN(group_options.credentials,
                      LoadClientCredentials(options.group));
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<WorkerGroup> group,
                      WorkerGroup::Start(group_options));
  CacheSpecOptions cache_options;
  cache_options.world_size = static_cast<int32_t>(workers.size());
  cache_options.block_size = options.block_size;
  cache_options.kv_element_bytes =
      static_cast<int32_t>(group->facts().kv_element_bytes);
  SY_ASSIGN_OR_RETURN(CacheSpec cache_spec,
                      CacheSpec::Create(model->served.config, cache_options));

  Describe(*model, *group);
  MetricsOptions metrics_options;
  metrics_options.model_name = model->served.name;
  metrics_options.max_context_tokens = model->served.max_context_tokens;
  metrics_options.num_ranks = static_cast<int>(workers.size());
  Metrics metrics(metrics_options);
  EngineTelemetry telemetry(group->facts(), model->placements->default_name(),
                            &metrics);
  const uint64_t model_epoch = model->placements->epoch();
  EngineOptions engine_options = options.engine;
  engine_options.observer = &telemetry;
  Engine engine(engine_options, &model->served, *std::move(model->placements),
                std::move(cache_spec), group.get(),
                [stop](const absl::Status&) {
                  stop->Lost();  // the observer has logged it
                });
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Server> server,
                      Server::Start(options.server, &engine, &model->served));
  MetricsServerOptions metrics_port;
  metrics_port.host = options.server.host;
  metrics_port.port = options.metrics_port;
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<MetricsServer> metrics_server,
                      MetricsServer::Start(metrics_port, &metrics));
  LivenessMonitor liveness(
      options.liveness_timeout, [&engine] { return engine.overdue(); },
      [&health, &server, &metrics, &options](bool alive) {
        if (alive) {
          Log(LogLevel::kInfo, "the step loop goes on");
        } else {
          Log(LogLevel::kError, "no step has ended in time",
              {{"liveness_timeout_seconds",
                absl::ToDoubleSeconds(options.liveness_timeout)}});
        }
        metrics.SetAlive(alive);
        health->Set("", alive);
        server->SetAlive(alive);
      });
  PresetsWatcher presets(
      options.presets_file, &model->served.config,
      [&engine](Presets now) { return engine.ReplaceFilePresets(now); },
      [](LogLevel level, absl::string_view line) { Log(level, line); });
  if (!options.presets_file.empty()) presets.Start(kPresetsInterval);
  stop->Serving();
  set_ready(true);
  std::printf("serving on %s\nadmin on %s\nmetrics on %s\n",
              server->address().c_str(), server->admin_address().c_str(),
              metrics_server->address().c_str());
  std::fflush(stdout);

  Log(LogLevel::kInfo, "serving",
      {{"address", server->address()},
       {"admin_address", server->admin_address()},
       {"metrics_address", metrics_server->address()},
       {"epoch", model_epoch}});

  stop->WaitForSignalOrLoss();
  set_ready(false);
  server->AnnounceDraining();
  bool idle = true;
  if (!stop->is_lost()) {
    engine.Drain([stop] { stop->Idle(); });
    idle = stop->WaitUntilIdle(options.drain_timeout);
  }
  const bool lost = stop->is_lost();
  // Ends what still runs now, even if a step hangs.
  if (!lost && !idle) group->Shutdown();
  engine.Stop();
  server->Shutdown(kFarewell);
  group->Shutdown();
  return lost ? 1 : 0;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CoordinatorModel>> LoadCoordinatorModel(
    const CoordinatorOptions& options, int32_t world_size) {
  auto model = std::make_unique<CoordinatorModel>();
  ServedModel& served = model->served;
  if (options.model_dir.empty() == options.random_init.empty()) {
    return absl::InvalidArgumentError("give either --model or --random-init");
  }
  const bool random = !options.random_init.empty();
  served.name = random ? options.random_init : BaseName(options.model_dir);
  SY_ASSIGN_OR_RETURN(served.config, random
                                         ? NamedShape(options.random_init)
                                         : LoadModelConfig(options.model_dir));
  served.limits = options.limits;
  for (const std::string& notice : served.config.notices) Log(notice);
  SY_RETURN_IF_ERROR(ValidateTensorParallel(served.config, world_size));
  if (const absl::Status status = ValidateBlockSize(options.block_size);
      !status.ok()) {
    return absl::Status(status.code(),
                        absl::StrCat("--block-size: ", status.message()));
  }

  const uint32_t context =
      static_cast<uint32_t>(served.config.max_position_embeddings);
  served.max_context_tokens = options.max_context_tokens.value_or(context);
  if (served.max_context_tokens > context) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-context-tokens=", served.max_context_tokens,
                     ": the model's context is ", context, " tokens"));
  }
  if (random) {
    Log("random weights have no tokenizer: serving prompts in token ids only");
  } else {
    SY_RETURN_IF_ERROR(LoadTokenizer(options.model_dir, &served));
  }

  Presets presets;
  if (!options.presets_file.empty()) {
    SY_ASSIGN_OR_RETURN(presets,
                        LoadPresets(options.presets_file, served.config));
  }
  absl::StatusOr<PlacementTable> placements = PlacementTable::Create(
      &served.config, std::move(presets), options.placement);
  if (!placements.ok()) {
    return absl::Status(placements.status().code(),
                        absl::StrCat("--placement=", options.placement, ": ",
                                     placements.status().message()));
  }
  model->placements = *std::move(placements);
  return model;
}

int RunCoordinator(const CoordinatorOptions& options, CoordinatorModel* model,
                   const std::vector<std::string>& workers,
                   StopRequests* stop) {
  const absl::StatusOr<int> exit_code = Serve(options, model, workers, stop);
  if (exit_code.ok()) return *exit_code;
  Log(LogLevel::kError, exit_code.status().message());
  return 1;
}

}  // namespace switchyard
