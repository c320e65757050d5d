#include "worker/gloo_collective.h"

#include <gloo/rendezvous/context.h>
#include <gloo/rendezvous/store.h>
#include <gloo/transport/buffer.h>
#include <gloo/transport/pair.h>
#include <gloo/transport/tcp/address.h>
#include <gloo/transport/tcp/device.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "worker/rendezvous.h"
#include "worker/sockets.h"

namespace switchyard {
namespace {

// Ranks never have more than two chunks under way to the same peer, and both
// fit the socket's send buffer (which Linux allows 416 KiB by default): so a
// write cannot block on a peer that is itself blocked in a write.
constexpr int64_t kChunkBytes = 128 * 1024;

// Below this, every rank sends all to all: one exchange. Above, each reduces
// its share and gathers the others': two exchanges, but 2/world_size as many
// bytes. Between two ranks the bytes are the same.
constexpr int64_t kDirectBytes = 32 * 1024;

// Carries a Status through Gloo's rendezvous, which reports by exceptions.
class StatusException final : public std::exception {
 public:
  explicit StatusException(absl::Status status) : status_(std::move(status)) {}
  const char* what() const noexcept override { return "rendezvous failed"; }
  const absl::Status& status() const { return status_; }

 private:
  absl::Status status_;
};

// Gloo's store, in our rendezvous. Waits are bounded by one deadline, not by
// Gloo's timeouts.
class RendezvousStore final : public gloo::rendezvous::Store {
 public:
  RendezvousStore(Rendezvous& rendezvous, absl::Duration timeout)
      : rendezvous_(rendezvous), deadline_(absl::Now() + timeout) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    const absl::Status status =
        rendezvous_.Put("gloo/" + key, std::string(data.begin(), data.end()));
    if (!status.ok()) throw StatusException(status);
  }

  std::vector<char> get(const std::string& key) override {
    absl::StatusOr<std::string> value =
        rendezvous_.Get("gloo/" + key, deadline_ - absl::Now());
    if (!value.ok()) throw StatusException(value.status());
    return std::vector<char>(value->begin(), value->end());
  }

  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) get(key);
  }

  void wait(const std::vector<std::string>& keys,
            const std::chrono::milliseconds&) override {
    wait(keys);
  }

 private:
  Rendezvous& rendezvous_;
  const absl::Time deadline_;
};

// One connected peer.
struct Peer {
  std::vector<char> outgoing = std::vector<char>(kChunkBytes);
  std::vector<char> incoming = std::vector<char>(kChunkBytes);
  std::unique_ptr<gloo::transport::Buffer> send;  // over outgoing
  std::unique_ptr<gloo::transport::Buffer> recv;  // over incoming
  int socket = -1;
};

class GlooCollective final : public Collective {
 public:
  GlooCollective(const CollectiveOptions& options,
                 std::shared_ptr<gloo::rendezvous::Context> context)
      : options_(options),
        context_(std::move(context)),
        peers_(options.world_size) {}

  ~GlooCollective() override {
    for (Peer& peer : peers_) {
      peer.send.reset();
      peer.recv.reset();
      if (peer.socket >= 0) ::close(peer.socket);
    }
  }

  // Takes the connections over from Gloo's event thread.
  absl::Status Open() {
    return Guard([this] {
      for (int rank = 0; rank < world_size(); ++rank) {
        if (rank == options_.rank) continue;
        Peer& peer = peers_[rank];
        gloo::transport::Pair& pair = *context_->getPair(rank);
        peer_in_use_ = rank;
        // Gloo keeps a pair's socket to itself, but Abort needs it to wake a
        // thread that blocks in it.
        const auto& local =
            static_cast<const gloo::transport::tcp::Address&>(pair.address());
        absl::StatusOr<int> socket = DuplicateSocketAt(local.getSockaddr());
        if (!socket.ok()) throw StatusException(socket.status());
        peer.socket = *socket;
        constexpr int kSlot = 0;
        peer.recv = pair.createRecvBuffer(kSlot, peer.incoming.data(),
                                          peer.incoming.size());
        peer.send = pair.createSendBuffer(kSlot, peer.outgoing.data(),
                                          peer.outgoing.size());
        pair.setSync(/*sync=*/true, /*busyPoll=*/false);
      }
      // A full chunk each way makes Gloo size the sockets' buffers for it.
      ForEachPeer([&](int rank) { Send(rank, nullptr, kChunkBytes); });
      ForEachPeer([&](int rank) { Receive(rank); });
    });
  }

  absl::Status AllReduceSum(void* buffer, int64_t num_elements,
                            CollectiveType type,
                            CollectiveStream stream) override {
    if (stream != nullptr || type != CollectiveType::kFloat32) {
      return absl::UnimplementedError(
          "the Gloo collective sums fp32 in host memory only");
    }
    return Guard([&] {
      float* data = static_cast<float*>(buffer);
      const int64_t bytes = num_elements * sizeof(float);
      if (world_size() == 2 || bytes <= kDirectBytes)
        ReduceDirectly(data, num_elements);
      else
        ReduceByShares(data, num_elements);
    });
  }

  absl::Status AllGather(const void* input, void* output, int64_t num_elements,
                         CollectiveType type,
                         CollectiveStream stream) override {
    if (stream != nullptr) {
      return absl::UnimplementedError(
          "the Gloo collective gathers in host memory only");
    }
    return Guard([&] {
      const int64_t bytes = num_elements * CollectiveTypeBytes(type);
      char* out = static_cast<char*>(output);
      char* own = out + rank() * bytes;
      if (input != own && bytes > 0) std::memmove(own, input, bytes);
      for (int64_t at = 0; at < bytes; at += kChunkBytes) {
        const int64_t n = std::min(kChunkBytes, bytes - at);
        ForEachPeer([&](int peer) { Send(peer, own + at, n); });
        ForEachPeer([&](int peer) {
          std::memcpy(out + peer * bytes + at, Receive(peer), n);
        });
      }
    });
  }

  absl::Status Barrier() override {
    return Guard([this] {
      ForEachPeer([this](int peer) { Send(peer, "", 1); });
      ForEachPeer([this](int peer) { Receive(peer); });
    });
  }

  void Abort() override {
    if (aborted_.exchange(true)) return;
    for (Peer& peer : peers_)
      if (peer.socket >= 0) ::shutdown(peer.socket, SHUT_RDWR);
  }

  int rank() const override { return options_.rank; }
  int world_size() const override { return options_.world_size; }
  absl::Duration time_spent() const override {
    return absl::Nanoseconds(nanoseconds_spent_.load());
  }

 private:
  // data <- the sum, every rank summing everything.
  void ReduceDirectly(float* data, int64_t num_elements) {
    constexpr int64_t kStep = kChunkBytes / sizeof(float);
    for (int64_t at = 0; at < num_elements; at += kStep) {
      const int64_t n = std::min(kStep, num_elements - at);
      ForEachPeer([&](int peer) { Send(peer, data + at, n * sizeof(float)); });
      SumInRankOrder(data + at, n);
    }
  }

  // data <- the sum, rank r summing the r-th share and sending it to the rest.
  void ReduceByShares(float* data, int64_t num_elements) {
    constexpr int64_t kStep = kChunkBytes / sizeof(float);
    const auto share_begin = [&](int rank) {
      return num_elements * rank / world_size();
    };
    const auto share_size = [&](int rank) {
      return share_begin(rank + 1) - share_begin(rank);
    };
    // Shares differ by at most one element: all ranks take the same steps, the
    // last of which may be empty for some.
    const int64_t longest = (num_elements + world_size() - 1) / world_size();
    for (int64_t at = 0; at < longest; at += kStep) {
      const auto length = [&](int rank) {
        return std::clamp<int64_t>(share_size(rank) - at, 0, kStep);
      };
      float* own = data + share_begin(rank()) + at;
      const int64_t own_length = length(rank());
      ForEachPeer([&](int peer) {
        if (length(peer) > 0)
          Send(peer, data + share_begin(peer) + at,
               length(peer) * sizeof(float));
      });
      if (own_length > 0) {
        SumInRankOrder(own, own_length);
        ForEachPeer(
            [&](int peer) { Send(peer, own, own_length * sizeof(float)); });
      }
      ForEachPeer([&](int peer) {
        if (length(peer) > 0)
          std::memcpy(data + share_begin(peer) + at, Receive(peer),
                      length(peer) * sizeof(float));
      });
    }
  }

  // data [n] <- ((rank 0's + rank 1's) + rank 2's) ..., receiving the peers'.
  void SumInRankOrder(float* data, int64_t n) {
    if (rank() > 0) {
      own_.assign(data, data + n);
      std::memcpy(data, Receive(0), n * sizeof(float));
    }
    for (int r = 1; r < world_size(); ++r) {
      const float* term = own_.data();
      if (r != rank()) term = reinterpret_cast<const float*>(Receive(r));
      for (int64_t i = 0; i < n; ++i) data[i] += term[i];
    }
  }

  template <typename F>
  void ForEachPeer(F f) {
    for (int r = 0; r < world_size(); ++r)
      if (r != rank()) f(r);
  }

  // Sends n bytes at `data`; null sends whatever is in the buffer.
  void Send(int rank, const void* data, int64_t n) {
    peer_in_use_ = rank;
    Peer& peer = peers_[rank];
    if (data != nullptr) std::memcpy(peer.outgoing.data(), data, n);
    peer.send->send(0, n);
    peer.send->waitSend();
  }

  // The next message from `rank`; valid until the next Receive from it.
  const char* Receive(int rank) {
    peer_in_use_ = rank;
    Peer& peer = peers_[rank];
    peer.recv->waitRecv();
    return peer.incoming.data();
  }

  // Runs one operation, timed, with Gloo's exceptions as a Status; after a
  // failure all fail, since the peers' messages are no longer in step.
  template <typename F>
  absl::Status Guard(F operation) {
    if (aborted_) return absl::AbortedError("the collective was aborted");
    if (!failure_.ok()) return failure_;
    const absl::Time start = absl::Now();
    try {
      operation();
    } catch (const StatusException& error) {
      failure_ = error.status();
    } catch (const std::exception& error) {
      failure_ = Explain(error.what(), absl::Now() - start);
    }
    nanoseconds_spent_ += absl::ToInt64Nanoseconds(absl::Now() - start);
    return failure_;
  }

  absl::Status Explain(const std::string& what, absl::Duration waited) const {
    if (aborted_) return absl::AbortedError("the collective was aborted");
    if (what.find("timeout") != std::string::npos) {
      return absl::DeadlineExceededError(absl::StrCat(
          "rank ", peer_in_use_, " did not take part in a collective for ",
          absl::FormatDuration(waited)));
    }
    return absl::UnavailableError(
        absl::StrCat("lost the connection to rank ", peer_in_use_, ": ", what));
  }

  const CollectiveOptions options_;
  const std::shared_ptr<gloo::rendezvous::Context> context_;
  std::vector<Peer> peers_;  // [world_size]; this rank's own is empty
  std::vector<float> own_;   // this rank's addends while it sums
  int peer_in_use_ = -1;
  absl::Status failure_;
  std::atomic<bool> aborted_{false};
  std::atomic<int64_t> nanoseconds_spent_{0};
};

}  // namespace

absl::StatusOr<std::unique_ptr<Collective>> MakeGlooCollective(
    const CollectiveOptions& options, Rendezvous& rendezvous) {
  if (options.world_size < 2 || options.rank < 0 ||
      options.rank >= options.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("no Gloo collective for rank ", options.rank, " of ",
                     options.world_size));
  }
  std::shared_ptr<gloo::rendezvous::Context> context;
  try {
    gloo::transport::tcp::attr attributes;
    attributes.hostname = options.local_host;
    std::shared_ptr<gloo::transport::Device> device =
        gloo::transport::tcp::CreateDevice(attributes);
    context = std::make_shared<gloo::rendezvous::Context>(options.rank,
                                                          options.world_size);
    context->setTimeout(std::chrono::milliseconds(
        absl::ToInt64Milliseconds(options.operation_timeout)));
    RendezvousStore store(rendezvous, options.connect_timeout);
    context->connectFullMesh(store, device);
  } catch (const StatusException& error) {
    return error.status();
  } catch (const std::exception& error) {
    return absl::UnavailableError(
        absl::StrCat("rank ", options.rank, " at ", options.local_host,
                     " could not connect to its peers: ", error.what()));
  }
  auto collective =
      std::make_unique<GlooCollective>(options, std::move(context));
  absl::Status opened = collective->Open();
  if (!opened.ok()) return opened;
  return collective;
}

}  // namespace switchyard
