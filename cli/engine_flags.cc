#include "cli/engine_flags.h"

#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "model/random_init.h"

namespace switchyard {
namespace {

// Of what would always be too late with no time at all.
constexpr absl::Duration kShortestWait = absl::Milliseconds(1);

}  // namespace

void AddEngineFlags(CoordinatorOptions* options, FlagSet* flags) {
  flags->String(
      "random-init", &options->random_init, "NAME",
      absl::StrCat("instead of a checkpoint, random weights in one of "
                   "these shapes, for benchmarks: ",
                   absl::StrJoin(NamedShapes(), ", ")));

  flags->Section("Where it listens");
  flags->String("host", &options->server.host, "ADDRESS",
                "of both APIs; 0.0.0.0 for every interface");
  flags->Int("port", &options->server.port, 0, 65535,
             "of the client API; 0 picks a free one");
  flags->Int("admin-port", &options->server.admin_port, 0, 65535,
             "of the operator's API; 0 picks a free one");
  flags->Int("metrics-port", &options->metrics_port, 0, 65535,
             "of Prometheus metrics, at /metrics; 0 picks a free one");
  flags->Int("health-port", &options->health_port, 0, 65535,
             "of grpc.health.v1 in plaintext, for probes; 0 picks a free one");

  flags->Section("Who may call");
  flags->String("tls-cert", &options->server.tls.cert, "FILE",
                "certificate of the client and admin ports (PEM); read again "
                "when it changes, like all of these");
  flags->String("tls-key", &options->server.tls.key, "FILE", "its key (PEM)");
  flags->String("tls-client-ca", &options->server.tls.ca, "FILE",
                "clients and operators must show a certificate that these CAs "
                "sign (PEM)");
  flags->String("api-token-file", &options->server.api_token_file, "FILE",
                "clients must bring a bearer token out of this file, which has "
                "one a line");
  flags->String("admin-token-file", &options->server.admin_token_file, "FILE",
                "the same for operators, on the admin port");

  ConnectionLimits* limits = &options->server.limits;
  flags->Section("How much they may ask for");
  flags->Int("max-message-bytes", &limits->max_message_bytes, 1024, INT32_MAX,
             "of one request on the wire");
  flags->Int("max-prompt-tokens", &options->limits.max_prompt_tokens, 1,
             INT32_MAX,
             "of one request (default: what the model's context allows)");
  flags->Int("max-stop-strings", &options->limits.max_stop_strings, 0, 1024,
             "of one request");
  flags->Int("max-stop-string-bytes", &options->limits.max_stop_string_bytes, 1,
             1 << 20, "of one of them");
  flags->Int("max-logprobs", &options->limits.max_logprobs, 0, kMaxLogprobs,
             "log-probabilities beside each token's own");
  flags->Int("max-logit-biases", &options->limits.max_logit_biases, 0, 1 << 20,
             "of one request");
  flags->Int("max-concurrent-streams", &limits->max_concurrent_streams, 1,
             1 << 20, "calls at a time on one connection");
  flags->Int("max-header-bytes", &limits->max_header_bytes, 1024, 1 << 20,
             "of the metadata of one call");
  flags->Duration("min-ping-interval", &limits->min_ping_interval,
                  "clients that ping more often are disconnected");
  flags->Duration("handshake-timeout", &limits->handshake_timeout,
                  "for a new connection to get ready for calls", kShortestWait);

  flags->Section("Placements");
  flags->String("placement", &options->placement, "PRESET|a,b,...",
                "the default: a preset, or one mixer name per layer (default: "
                "the checkpoint's main mixers)");
  flags->String(
      "presets", &options->presets_file, "FILE",
      "named placements: {\"presets\": {\"fast\": \"gdn\", \"mixed\": "
      "[\"attention\", \"gdn\", ...]}}, read again when it changes; all-NAME "
      "is there from the start for every mixer that all layers have");

  flags->Section("Batching");
  flags->Int("max-num-seqs", &options->engine.scheduler.max_num_seqs, 1,
             1 << 16, "sequences that run at a time");
  flags->Int("max-num-batched-tokens",
             &options->engine.scheduler.max_num_batched_tokens, 1, 1 << 20,
             "tokens in one step; longer prompts are computed in chunks");
  flags->Int("overlap-tokens", &options->overlap_tokens, 0, 1 << 20,
             "on several GPUs, a step of twice as many tokens runs in two "
             "parts, so that the all-reduces of one hide behind the products "
             "of the other; 0: never");
  flags->Int("max-waiting-seqs", &options->engine.max_waiting_seqs, 0, 1 << 20,
             "requests that may wait beyond those that run; more are refused");
  flags->Int("max-context-tokens", &options->max_context_tokens, 2, INT32_MAX,
             "prompt and completion together (default: the model's context)");
  flags->Bool("async-scheduling", &options->engine.async_scheduling,
              "plan a step while the one before it runs");
  flags->Bool("prefix-caching", &options->engine.scheduler.prefix_caching,
              "keep what requests have computed for others that begin with the "
              "same tokens under the same placement, as long as there is room");

  flags->Section("Memory and numbers");
  flags->Bytes(
      "cache-bytes", &options->cache_bytes,
      "cache of each rank, e.g. 2GiB (default: what a GPU has left; on "
      "a CPU an eighth of the free memory, at most 2GiB)");
  flags->Int("block-size", &options->block_size, 1, 1024,
             "tokens in a block of the attention cache; a power of two");
  flags->Choice("dtype", &options->dtype, {"auto", "fp32", "bf16"},
                "of weights and cache; auto: what suits the device");
  flags->Bool("batch-invariant", &options->batch_invariant,
              "a request's result does not depend, bit for bit, on what runs "
              "beside it; costs speed on CUDA, and is always so on the CPU");
  flags->Bool("cuda-graphs", &options->cuda_graphs,
              "on CUDA, record decode steps and replay them");
  flags->Bool("poison-freed-cache", &options->poison_freed_cache,
              "fill freed cache with NaN, to find reads of it");

  flags->Section("Logs, on stderr");
  flags->Choice("log-format", &options->log_format, {"text", "json"},
                "one line per event, for people or for machines");
  flags->Choice("log-level", &options->log_level,
                {"debug", "info", "warning", "error"},
                "what is logged at least; debug: every step");

  flags->Section("Patience");
  flags->Duration("connect-timeout", &options->connect_timeout,
                  "for reaching a worker");
  flags->Duration("step-timeout", &options->step_timeout,
                  "for one step; a rank that takes longer is lost",
                  kShortestWait);
  flags->Duration("drain-timeout", &options->drain_timeout,
                  "for running streams to end after SIGTERM");
  flags->Duration("liveness-timeout", &options->liveness_timeout,
                  "for one step, as health checks see it", kShortestWait);
}

void AddGroupFlags(ClientFiles* files, FlagSet* flags) {
  flags->Section("How the workers know their coordinator");
  flags->String("group-tls-cert", &files->tls.cert, "FILE",
                "our certificate, for the workers (PEM)");
  flags->String("group-tls-key", &files->tls.key, "FILE", "its key (PEM)");
  flags->String("group-tls-ca", &files->tls.ca, "FILE",
                "signs the certificates of the workers (PEM)");
  flags->String("group-token-file", &files->token_file, "FILE",
                "the secret that the workers ask for; its first line");
}

}  // namespace switchyard
