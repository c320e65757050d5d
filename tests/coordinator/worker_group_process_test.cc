// The worker group against workers that are processes of their own.
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "coordinator/rank_set.h"
#include "tests/coordinator/worker_group_fixture.h"

namespace switchyard {
namespace {

class WorkerProcess {
 public:
  explicit WorkerProcess(const std::vector<std::string>& flags) {
    const std::string program = "tests/worker/fake_worker";
    std::vector<std::string> args = {program, "--port", "0",
                                     "--exit-with-parent"};
    args.insert(args.end(), flags.begin(), flags.end());
    std::vector<char*> argv;
    for (std::string& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    int pipe_ends[2];
    EXPECT_EQ(pipe(pipe_ends), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], 1);
    posix_spawn_file_actions_addclose(&actions, pipe_ends[0]);
    EXPECT_EQ(posix_spawn(&pid_, program.c_str(), &actions, nullptr,
                          argv.data(), environ),
              0);
    posix_spawn_file_actions_destroy(&actions);
    close(pipe_ends[1]);
    FILE* out = fdopen(pipe_ends[0], "r");
    char address[256] = "";
    EXPECT_EQ(fscanf(out, "worker listening on %255s", address), 1);
    address_ = address;
    fclose(out);
  }

  ~WorkerProcess() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

  void Signal(int number) { kill(pid_, number); }

  // Returns when all its threads stand still.
  void Stop() {
    kill(pid_, SIGSTOP);
    waitpid(pid_, nullptr, WUNTRACED);
  }

  // Waits for its end: the exit code, or minus the signal.
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  const std::string& address() const { return address_; }

 private:
  pid_t pid_ = 0;
  std::string address_;
};

class WorkerProcessTest : public WorkerGroupTest {
 protected:
  void StartGroup(int world_size, const std::vector<std::string>& flags = {}) {
    options_.configure.set_config_fingerprint(42);
    for (int r = 0; r < world_size; ++r) {
      processes_.push_back(std::make_unique<WorkerProcess>(flags));
      options_.addresses.push_back(processes_.back()->address());
    }
    JoinGroup();
  }

  std::vector<std::unique_ptr<WorkerProcess>> processes_;
};

TEST_F(WorkerProcessTest, ExitsWithZeroAfterAShutdown) {
  StartGroup(2);
  RunStep(1);
  group_->Shutdown();
  for (auto& process : processes_) EXPECT_EQ(process->Wait(), 0);
}

TEST_F(WorkerProcessTest, ExitsWithZeroAfterSigterm) {
  WorkerProcess process({});
  process.Signal(SIGTERM);
  EXPECT_EQ(process.Wait(), 0);
}

TEST_F(WorkerProcessTest, ExitsWithOneWhenItsCoordinatorIsGone) {
  WorkerProcess process({});
  absl::Notification open;
  RankSet ranks({process.address()});
  ASSERT_TRUE(ranks.Connect(kSoon).ok());
  v1::ConfigureRequest request;
  request.set_config_fingerprint(42);
  ASSERT_TRUE(ranks.Configure(request, nullptr).ok());
  ASSERT_TRUE(ranks
                  .OnEvery([&](size_t rank, RankClient::Done done) {
                    ranks[rank].AllocateCache(4096, kSoon, std::move(done));
                  })
                  .ok());
  RankClient::StreamCallbacks callbacks;
  callbacks.on_open = [&] { open.Notify(); };
  callbacks.on_result = [](v1::StepResult) {};
  callbacks.on_end = [](const absl::Status&) {};
  ranks[0].OpenStream(std::move(callbacks));
  open.WaitForNotification();
  ranks.Cancel();
  EXPECT_EQ(process.Wait(), 1);
}

TEST_F(WorkerProcessTest, AKilledWorkerIsNamedAtOnce) {
  StartGroup(4);
  RunStep(1);
  uint64_t step_id = 2;
  ASSERT_TRUE(group_->Submit(Plan(step_id)).ok());
  const absl::Time start = absl::Now();
  processes_[2]->Signal(SIGKILL);
  while (group_->NextResult().ok())
    if (!group_->Submit(Plan(++step_id)).ok()) break;
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_EQ(Failure(), group_->health());
  ExpectLost(*group_, {"rank 2", options_.addresses[2], "step"});
  EXPECT_EQ(processes_[2]->Wait(), -SIGKILL);
  for (int r : {0, 1, 3}) EXPECT_EQ(processes_[r]->Wait(), 1) << "rank " << r;
}

TEST_F(WorkerProcessTest, AStoppedWorkerIsNamedByItsPeer) {
  StartGroup(2, {"--collective-timeout", "1s"});
  RunStep(1);
  processes_[1]->Stop();
  ASSERT_TRUE(group_->Submit(Plan(2)).ok());
  const absl::Time start = absl::Now();
  EXPECT_FALSE(group_->NextResult().ok());
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  ExpectLost(*group_, {"step 2", "rank 1 did not take part"});
  EXPECT_EQ(processes_[0]->Wait(), 1);
  processes_[1]->Signal(SIGCONT);
  EXPECT_EQ(processes_[1]->Wait(), 1);
}

}  // namespace
}  // namespace switchyard
