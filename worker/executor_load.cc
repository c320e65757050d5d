// Loading of an Executor: limits, model, workspace.
#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kernels/check.h"
#include "kernels/status.h"
#include "model/checkpoint.h"
#include "model/random_init.h"
#include "model/weight_table.h"
#include "rpc/steady_time.h"
#include "worker/collective_group.h"
#include "worker/executor.h"

namespace switchyard {
namespace {

// What the device keeps free beside weights, workspace, arena and graphs.
constexpr int64_t kReserveBytes = int64_t{256} << 20;
// For the first sums of a group, whose ranks have just met.
constexpr absl::Duration kWarmTimeout = absl::Minutes(1);
// Enough for the arrays of most steps: 64 sequences of 8192 positions in blocks
// of 16, in 48 layers, take 6 MiB.
constexpr int64_t kStepBufferBytes = int64_t{8} << 20;
// What a rank on a CPU takes for its cache unasked, at most.
constexpr int64_t kDefaultCpuCacheBytes = int64_t{2} << 30;

absl::StatusOr<DType> ReadDType(const std::string& dtype,
                                const Device& device) {
  const bool cpu = device.type() == DeviceType::kCpu;
  if (dtype == "fp32" || (cpu && (dtype.empty() || dtype == "auto"))) {
    return DType::kF32;
  }
  if (dtype == "bf16" && cpu) {
    return absl::UnimplementedError(
        "dtype bf16 is not supported on the CPU, which computes in fp32");
  }
  if (dtype == "bf16" || dtype.empty() || dtype == "auto") return DType::kBF16;
  return absl::InvalidArgumentError(
      absl::StrCat("dtype is \"", dtype, "\", should be auto, fp32 or bf16"));
}

absl::Status CheckPositive(uint32_t value, const char* field) {
  if (value >= 1 && value <= std::numeric_limits<int32_t>::max()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(field, " is ", value, ", should be at least 1"));
}

}  // namespace

absl::StatusOr<v1::ConfigureResponse> Executor::Load(
    const v1::ConfigureRequest& request, Collective& collective,
    LoadProgress& progress) {
  SY_CHECK(model_ == nullptr);
  collective_ = &collective;
  if (collective.world_size() > 1) {
    SY_ASSIGN_OR_RETURN(side_stream_, step_device_->MakeSideStream());
  }
  group_ = std::make_unique<CollectiveGroup>(&collective, device_->stream(),
                                             side_stream_.get());
  SY_ASSIGN_OR_RETURN(const DType dtype, ReadDType(request.dtype(), *device_));
  SY_ASSIGN_OR_RETURN(config_, request.random_init().empty()
                                   ? LoadModelConfig(request.model_dir())
                                   : NamedShape(request.random_init()));
  if (Fingerprint(config_) != request.config_fingerprint()) {
    return absl::FailedPreconditionError(
        absl::StrCat("config_fingerprint: the model in ",
                     request.random_init().empty() ? request.model_dir()
                                                   : request.random_init(),
                     " is not the coordinator's"));
  }
  SY_RETURN_IF_ERROR(ReadLimits(request));
  SY_RETURN_IF_ERROR(ValidateTensorParallel(config_, collective.world_size()));
  SY_RETURN_IF_ERROR(WarmCollective());

  CacheSpecOptions cache;
  cache.world_size = collective.world_size();
  cache.block_size = static_cast<int32_t>(request.block_size());
  cache.kv_element_bytes = static_cast<int32_t>(DTypeBytes(dtype));
  SY_ASSIGN_OR_RETURN(cache_spec_, CacheSpec::Create(config_, cache));
  SY_RETURN_IF_ERROR(LoadModel(request, dtype, progress));

  OutputOptions output;
  output.vocab_size = config_.vocab_size;
  output.max_num_seqs = limits_.max_num_seqs;
  output.max_rows = limits_.max_rows;
  output.max_prompt_rows = limits_.max_num_batched_tokens;
  output.reports = collective.rank() == 0;
  SY_ASSIGN_OR_RETURN(
      output_, OutputStage::Create(device_.get(), step_device_.get(), output));
  SY_RETURN_IF_ERROR(AllocateWorkspace());
  SY_RETURN_IF_ERROR(MakeSteps());

  SY_ASSIGN_OR_RETURN(const int64_t free_bytes, device_->FreeBytes());
  v1::ConfigureResponse response;
  response.set_device(device_->name());
  response.set_weights_bytes(model_->weights_bytes());
  const int64_t reserve_bytes =
      kReserveBytes + (graphs_enabled_ ? kMaxGraphBytes : 0);
  const int64_t available_bytes = std::max<int64_t>(
      0, free_bytes - reserve_bytes - CacheStore::PaddingBytes(*cache_spec_));
  response.set_available_cache_bytes(available_bytes);
  response.set_workspace_bytes(workspace_.bytes());
  response.set_default_cache_bytes(
      device_->type() == DeviceType::kCpu
          ? std::min(available_bytes / 8, kDefaultCpuCacheBytes)
          : available_bytes);
  response.set_kv_element_bytes(cache.kv_element_bytes);
  return response;
}

absl::Status Executor::ReadLimits(const v1::ConfigureRequest& request) {
  SY_RETURN_IF_ERROR(CheckPositive(request.max_num_seqs(), "max_num_seqs"));
  SY_RETURN_IF_ERROR(CheckPositive(request.max_num_batched_tokens(),
                                   "max_num_batched_tokens"));
  SY_RETURN_IF_ERROR(CheckPositive(request.block_size(), "block_size"));
  limits_.max_num_seqs = static_cast<int32_t>(request.max_num_seqs());
  limits_.max_num_batched_tokens =
      static_cast<int32_t>(request.max_num_batched_tokens());
  // Without a second stream there is nothing to be gained.
  if (side_stream_ != nullptr) {
    limits_.overlap_tokens = static_cast<int32_t>(request.overlap_tokens());
  }
  limits_.batch_invariant = request.batch_invariant();
  limits_.poison_freed_cache = request.poison_freed_cache();
  graphs_enabled_ = request.enable_graphs() && step_device_->has_graphs();
  limits_.max_rows = limits_.max_num_seqs;
  if (graphs_enabled_) {
    // A little more than one placement needs, for batches of several.
    limits_.max_rows = BatchBucket(limits_.max_num_seqs) * 5 / 4;
  }

  const uint32_t model_tokens =
      static_cast<uint32_t>(config_.max_position_embeddings);
  if (request.max_context_tokens() > model_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "max_context_tokens is ", request.max_context_tokens(),
        ", the model's max_position_embeddings is ", model_tokens));
  }
  limits_.max_context_tokens = static_cast<int32_t>(
      request.max_context_tokens() == 0 ? model_tokens
                                        : request.max_context_tokens());
  return absl::OkStatus();
}

absl::Status Executor::WarmCollective() {
  // On the CPU connections take nothing that the cache could.
  if (group_->world_size() == 1 || device_->type() == DeviceType::kCpu) {
    return absl::OkStatus();
  }
  const int64_t tokens =
      std::max(limits_.max_num_batched_tokens, limits_.max_rows);
  const int64_t logits_rows =
      std::max<int64_t>(OutputStage::kMinSlabRows, limits_.max_rows);
  const int64_t most =
      std::max(tokens * config_.hidden_size, logits_rows * config_.vocab_size);
  const int64_t bytes = most * static_cast<int64_t>(sizeof(float));
  SY_ASSIGN_OR_RETURN(const DeviceBuffer memory, device_->Allocate(bytes));
  SY_RETURN_IF_ERROR(device_->Fill(memory.get(), 0, bytes));
  int64_t size = std::min<int64_t>(config_.hidden_size, most);
  while (true) {
    const MatrixView x = MakeMatrix(memory.get(), DType::kF32, 1, size);
    SY_RETURN_IF_ERROR(group_->AllReduceSum(x));
    SY_ASSIGN_OR_RETURN(const int64_t sum, group_->BeginAllReduceSum(x));
    SY_RETURN_IF_ERROR(group_->AwaitSum(sum));
    const int64_t shard_size = size / group_->world_size();
    if (shard_size > 0) {
      float* const all = x.Row<float>(0);
      SY_RETURN_IF_ERROR(
          group_->AllGather(MakeMatrix(all + group_->rank() * shard_size,
                                       DType::kF32, 1, shard_size),
                            all));
    }
    if (size == most) break;
    size = std::min(2 * size, most);
  }
  // A peer may never come: the group's end, or our patience, ends the wait.
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<StreamMark> done,
                      step_device_->MakeMark());
  SY_RETURN_IF_ERROR(done->Set());
  const SteadyTime start = SteadyNow();
  while (true) {
    SY_RETURN_IF_ERROR(collective_->health());
    SY_ASSIGN_OR_RETURN(const bool reached, done->Reached());
    if (reached) return collective_->health();
    if (Since(start) > kWarmTimeout) {
      return absl::DeadlineExceededError(
          absl::StrCat("rank ", group_->rank(), " waited ",
                       absl::FormatDuration(kWarmTimeout),
                       " for its peers' part in the first sums of the group"));
    }
    absl::SleepFor(absl::Milliseconds(1));
  }
}

absl::Status Executor::LoadModel(const v1::ConfigureRequest& request,
                                 DType dtype, LoadProgress& progress) {
  const int64_t weights_bytes =
      WeightBytesPerRank(config_, collective_->world_size(),
                         static_cast<int32_t>(DTypeBytes(dtype)));
  // Not when the memory is full: other processes would have to make room.
  SY_ASSIGN_OR_RETURN(const int64_t free_bytes, device_->FreeBytes());
  if (weights_bytes > free_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(device_->name(), ": the weights of a rank take ",
                     weights_bytes, " bytes as ", DTypeName(dtype), ", and ",
                     free_bytes, " are free: use more memory, or more ranks"));
  }
  std::unique_ptr<WeightSource> source;
  if (request.random_init().empty()) {
    SY_ASSIGN_OR_RETURN(source, Checkpoint::Open(request.model_dir(), config_));
  } else {
    source = std::make_unique<RandomWeights>(config_);
  }
  progress.bytes_total = weights_bytes;
  TransformerOptions options;
  options.rank = collective_->rank();
  options.world_size = collective_->world_size();
  options.activation = dtype;
  options.kv_dtype = dtype;
  options.max_positions = limits_.max_context_tokens;
  options.progress = [&progress](int64_t bytes) {
    progress.bytes_loaded = bytes;
  };
  SY_ASSIGN_OR_RETURN(
      model_, Transformer::Load(device_.get(), config_, *cache_spec_, *source,
                                std::move(options)));
  return absl::OkStatus();
}

absl::Status Executor::AllocateWorkspace() {
  const int64_t model_bytes = model_->WorkspaceBytes(
      std::max(limits_.max_num_batched_tokens, limits_.max_rows),
      output_->max_logits_rows());
  // Ops may take scratch that grows with the batch, such as an fp32 copy of a
  // product: as much again as the model's own is ample.
  const int64_t bytes =
      2 * model_bytes + output_->ScratchBytes() + kOpScratchBytes;
  SY_ASSIGN_OR_RETURN(workspace_buffer_, device_->Allocate(bytes));
  workspace_ = Workspace(workspace_buffer_.get(), bytes);
  return absl::OkStatus();
}

absl::Status Executor::MakeSteps() {
  for (Step& step : steps_) {
    SY_ASSIGN_OR_RETURN(step.output, output_->MakeOutput());
  }
  for (Marks& marks : marks_) {
    SY_ASSIGN_OR_RETURN(marks.begin, step_device_->MakeMark());
    SY_ASSIGN_OR_RETURN(marks.end, step_device_->MakeMark());
  }
  return step_buffer_.Reserve(kStepBufferBytes);
}

}  // namespace switchyard
