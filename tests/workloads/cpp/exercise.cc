// An ordinary gRPC service and its client, with the blocking API. Both sides
// write one JSON line per call to --log.

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "exercise.grpc.pb.h"

using grpc::ServerContext;
using grpc::Status;
using grpc::StatusCode;
using std::chrono::milliseconds;
using tracewire::test::Answer;
using tracewire::test::Ask;
using tracewire::test::Exercise;

namespace {

constexpr char kLang[] = "cpp";
constexpr int kMiB = 1 << 20;
constexpr int kMaxMessage = 64 * kMiB;
constexpr int kMaxMetadata = 64 << 10;
constexpr const char* kCodes[] = {
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
};

[[noreturn]] void Die(const std::string& why) {
  std::fprintf(stderr, "%s\n", why.c_str());
  // Not exit: other threads may still be in the middle of calls.
  std::_Exit(1);
}

void Pause(int ms) {
  if (ms > 0) std::this_thread::sleep_for(milliseconds(ms));
}

// --- log -------------------------------------------------------------------

std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", c);
      quoted += escape;
    } else {
      quoted += c;
    }
  }
  return quoted + '"';
}

class Log {
 public:
  explicit Log(const std::string& path)
      : fd_(open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
    if (fd_ < 0) Die(path + ": " + std::strerror(errno));
  }

  // The whole line with one write to a file opened for appending.
  void Write(const std::string& line) {
    if (write(fd_, line.data(), line.size()) != static_cast<ssize_t>(line.size())) {
      Die("cannot write the log");
    }
  }

 private:
  int fd_;
};

long long Now() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

// What one side knows of one call.
struct Record {
  Record(const char* side, std::string id, const char* method)
      : side(side), id(std::move(id)), method(method), start(Now()) {}

  void Finish(Log& log, const Status& status) const {
    log.Write("{\"side\":" + Quoted(side) + ",\"id\":" + Quoted(id) +
              ",\"method\":" + Quoted(std::string("tracewire.test.Exercise/") + method) +
              ",\"code\":" + Quoted(kCodes[status.error_code()]) +
              ",\"message\":" + Quoted(status.error_message()) +
              ",\"start_ns\":" + std::to_string(start) +
              ",\"end_ns\":" + std::to_string(Now()) +
              ",\"sent\":" + std::to_string(sent) +
              ",\"received\":" + std::to_string(received) +
              ",\"traceparent\":" + Quoted(traceparent) + "}\n");
  }

  const char* side;
  std::string id;
  const char* method;
  long long start;
  int sent = 0;
  int received = 0;
  std::string traceparent;
};

// --- server ----------------------------------------------------------------

Answer AnswerTo(const Ask& ask, int n) {
  Answer answer;
  answer.set_id(ask.id());
  answer.set_n(n);
  answer.set_payload(std::string(ask.reply_bytes(), 'a'));
  return answer;
}

class Service final : public Exercise::Service {
 public:
  explicit Service(Log& log) : log_(log) {}

  Status Unary(ServerContext* context, const Ask* ask, Answer* answer) override {
    Record record = Begin(context, "Unary");
    record.received = 1;
    if (!Wait(context, ask->delay_ms())) return GivenUp(record);
    if (ask->code() == 0) {
      *answer = AnswerTo(*ask, 0);
      record.sent = 1;
    }
    return End(record, *ask);
  }

  Status ServerStream(ServerContext* context, const Ask* ask,
                      grpc::ServerWriter<Answer>* writer) override {
    Record record = Begin(context, "ServerStream");
    record.received = 1;
    if (!Wait(context, ask->delay_ms())) return GivenUp(record);
    for (int n = 0; n < ask->replies(); n++) {
      if (n > 0 && !Wait(context, ask->gap_ms())) return GivenUp(record);
      if (!writer->Write(AnswerTo(*ask, n))) return GivenUp(record);
      record.sent++;
    }
    return End(record, *ask);
  }

  Status ClientStream(ServerContext* context, grpc::ServerReader<Ask>* reader,
                      Answer* answer) override {
    Record record = Begin(context, "ClientStream");
    Ask last;
    for (Ask ask; reader->Read(&ask); last = ask) record.received++;
    if (!Wait(context, last.delay_ms())) return GivenUp(record);
    if (last.code() == 0) {
      *answer = AnswerTo(last, record.received);
      record.sent = 1;
    }
    return End(record, last);
  }

  Status Bidi(ServerContext* context,
              grpc::ServerReaderWriter<Answer, Ask>* stream) override {
    Record record = Begin(context, "Bidi");
    Ask last;
    for (Ask ask; stream->Read(&ask); last = ask) {
      record.received++;
      if (!Wait(context, ask.delay_ms())) return GivenUp(record);
      if (!stream->Write(AnswerTo(ask, record.sent))) return GivenUp(record);
      record.sent++;
    }
    if (context->IsCancelled()) return GivenUp(record);
    return End(record, last);
  }

 private:
  static Record Begin(ServerContext* context, const char* method) {
    const auto& metadata = context->client_metadata();
    auto id = metadata.find("x-call-id");
    std::string name;
    if (id != metadata.end()) name.assign(id->second.data(), id->second.size());
    Record record("server", name, method);
    auto [first, last] = metadata.equal_range("traceparent");
    for (; first != last; ++first) {
      if (!record.traceparent.empty()) record.traceparent += ",";
      record.traceparent.append(first->second.data(), first->second.size());
    }
    return record;
  }

  // Waits; false if the call ended before.
  static bool Wait(ServerContext* context, int ms) {
    auto until = std::chrono::steady_clock::now() + milliseconds(ms);
    while (!context->IsCancelled()) {
      auto left = until - std::chrono::steady_clock::now();
      if (left <= left.zero()) return true;
      std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(left, milliseconds(5)));
    }
    return false;
  }

  Status GivenUp(const Record& record) {
    record.Finish(log_, Status::CANCELLED);
    return Status::CANCELLED;
  }

  // Ends the call as its ask wishes.
  Status End(const Record& record, const Ask& ask) {
    Status status = Status::OK;
    if (ask.code() != 0) {
      status = Status(static_cast<StatusCode>(ask.code()), ask.message());
    }
    record.Finish(log_, status);
    return status;
  }

  Log& log_;
};

// TLS, if EXERCISE_TLS names a folder with ca.pem, cert.pem and key.pem;
// EXERCISE_MUTUAL_TLS has the client show its certificate too.
bool Mutual() { return std::getenv("EXERCISE_MUTUAL_TLS") != nullptr; }

std::string Pem(const char* folder, const char* name) {
  std::ifstream file(std::string(folder) + "/" + name);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentials() {
  const char* folder = std::getenv("EXERCISE_TLS");
  if (folder == nullptr) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      Mutual() ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
               : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
  options.pem_root_certs = Pem(folder, "ca.pem");
  options.pem_key_cert_pairs.push_back({Pem(folder, "key.pem"), Pem(folder, "cert.pem")});
  return grpc::SslServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentials() {
  const char* folder = std::getenv("EXERCISE_TLS");
  if (folder == nullptr) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = Pem(folder, "ca.pem");
  if (Mutual()) {
    options.pem_private_key = Pem(folder, "key.pem");
    options.pem_cert_chain = Pem(folder, "cert.pem");
  }
  return grpc::SslCredentials(options);
}

void Serve(const std::string& listen, Log& log) {
  // Blocked in all threads, so that it arrives in sigwait.
  sigset_t terminate;
  sigemptyset(&terminate);
  sigaddset(&terminate, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &terminate, nullptr);

  Service service(log);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(listen, ServerCredentials(), &port);
  builder.RegisterService(&service);
  builder.SetMaxReceiveMessageSize(kMaxMessage);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadata);
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (!server || port == 0) Die("cannot listen on " + listen);
  std::puts("listening");
  std::fflush(stdout);
  int caught = 0;
  sigwait(&terminate, &caught);
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  server.reset();
  // The last grpc_shutdown of grpc 1.51 joins a thread that may sleep in epoll_wait for ten seconds
  // (its backup poller), observed or not.
  std::quick_exit(0);
}

// --- client ----------------------------------------------------------------

// What one call of a scenario is.
struct Plan {
  Plan(const std::string& scenario, int n) {
    static const std::vector<std::string> mixed = {"unary", "errors", "server-stream",
                                                   "client-stream", "bidi"};
    const std::string& kind = scenario == "mixed" ? mixed[n % mixed.size()] : scenario;
    const std::string failure = "expected failure " + std::to_string(n) + ": naïve % text";
    ask.set_id(std::string(kLang) + "-" + scenario + "-" + std::to_string(n) + "-" +
               std::to_string(getpid()));
    ask.set_reply_bytes(64);
    ask.set_payload(std::string(64, 'q'));
    if (kind == "unary" || kind == "churn") {
    } else if (kind == "errors") {
      ask.set_code(n % 17);
      ask.set_message(failure);
    } else if (kind == "server-stream") {
      method = "ServerStream";
      ask.set_replies(3);
      ask.set_gap_ms(5);
      if (n % 4 == 3) {
        ask.set_code(StatusCode::ABORTED);
        ask.set_message(failure);
      }
    } else if (kind == "client-stream") {
      method = "ClientStream";
    } else if (kind == "bidi") {
      method = "Bidi";
    } else if (kind == "cancel") {
      method = "ServerStream";
      cancel = true;
      ask.set_replies(1000);
      ask.set_gap_ms(5);
    } else if (kind == "deadline") {
      ask.set_delay_ms(400);
      deadline_ms = 60;
    } else if (kind == "large") {
      ask.set_reply_bytes(4 * kMiB);
      ask.set_payload(std::string(4 * kMiB, 'q'));
    } else if (kind == "metadata") {
      static constexpr char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
      thread_local std::mt19937 random{std::random_device{}()};
      for (int i = 0; i < 16000; i++) filler += letters[random() % 32];
    } else {
      Die("unknown scenario " + scenario);
    }
  }

  void Call(Exercise::Stub& stub, Log& log) const {
    grpc::ClientContext context;
    context.AddMetadata("x-call-id", ask.id());
    if (!filler.empty()) context.AddMetadata("x-filler", filler);
    Record record("client", ask.id(), method.c_str());
    if (deadline_ms > 0) {
      context.set_deadline(std::chrono::system_clock::now() + milliseconds(deadline_ms));
    }
    Status status;
    if (method == "Unary") {
      Answer answer;
      record.sent = 1;
      status = stub.Unary(&context, ask, &answer);
      record.received = status.ok();
    } else if (method == "ServerStream") {
      status = ServerStream(stub, context, record);
    } else if (method == "ClientStream") {
      status = ClientStream(stub, context, record);
    } else {
      status = Bidi(stub, context, record);
    }
    record.Finish(log, status);
  }

  Status ServerStream(Exercise::Stub& stub, grpc::ClientContext& context,
                      Record& record) const {
    record.sent = 1;
    auto reader = stub.ServerStream(&context, ask);
    for (Answer answer; reader->Read(&answer);) {
      record.received++;
      if (cancel) context.TryCancel();
    }
    return reader->Finish();
  }

  Status ClientStream(Exercise::Stub& stub, grpc::ClientContext& context,
                      Record& record) const {
    Answer answer;
    auto writer = stub.ClientStream(&context, &answer);
    for (int n = 0; n < 4; n++) {
      if (n > 0) Pause(2);
      if (!writer->Write(ask)) break;
      record.sent++;
    }
    writer->WritesDone();
    Status status = writer->Finish();
    record.received = status.ok();
    return status;
  }

  Status Bidi(Exercise::Stub& stub, grpc::ClientContext& context, Record& record) const {
    Answer answer;
    auto stream = stub.Bidi(&context);
    for (int n = 0; n < 3; n++) {
      if (!stream->Write(ask)) break;
      record.sent++;
      if (!stream->Read(&answer)) break;
      record.received++;
    }
    stream->WritesDone();
    while (stream->Read(&answer)) record.received++;
    return stream->Finish();
  }

  Ask ask;
  std::string method = "Unary";
  std::string filler;
  int deadline_ms = 0;
  bool cancel = false;
};

// A channel with connections of its own.
std::unique_ptr<Exercise::Stub> Connect(const std::string& target) {
  grpc::ChannelArguments options;
  options.SetMaxReceiveMessageSize(kMaxMessage);
  options.SetInt(GRPC_ARG_MAX_METADATA_SIZE, kMaxMetadata);
  options.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  options.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  options.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  options.SetInt(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1);
  return Exercise::NewStub(
      grpc::CreateCustomChannel(target, ChannelCredentials(), options));
}

void Drive(const std::string& target, const std::string& scenario, int calls,
           int concurrency, int connections, Log& log) {
  std::vector<std::unique_ptr<Exercise::Stub>> stubs;
  if (scenario != "churn") {
    for (int n = 0; n < connections; n++) stubs.push_back(Connect(target));
  }
  std::atomic<int> next{0};
  std::vector<std::thread> workers;
  for (int worker = 0; worker < concurrency; worker++) {
    workers.emplace_back([&] {
      for (int n; (n = next++) < calls;) {
        Plan plan(scenario, n);
        if (stubs.empty()) {
          plan.Call(*Connect(target), log);
        } else {
          plan.Call(*stubs[n % stubs.size()], log);
        }
      }
    });
  }
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

int main(int argc, char** argv) {
  const std::string side = argc > 1 ? argv[1] : "";
  std::map<std::string, std::string> options;
  for (int i = 2; i < argc; i += 2) {
    if (i + 1 == argc) Die(std::string(argv[i]) + " needs a value");
    options[argv[i]] = argv[i + 1];
  }
  auto text = [&](const char* name) {
    auto option = options.find(name);
    if (option == options.end()) Die(std::string(name) + " is missing");
    return option->second;
  };
  auto number = [&](const char* name, int otherwise) {
    auto option = options.find(name);
    return option == options.end() ? otherwise : std::atoi(option->second.c_str());
  };
  if (side != "server" && side != "client") {
    Die("usage: run server|client --log FILE ...");
  }

  Log log(text("--log"));
  if (side == "server") {
    Serve(text("--listen"), log);
  } else {
    Plan(text("--scenario"), 0);
    Pause(number("--start-delay-ms", 0));
    Drive(text("--target"), text("--scenario"), number("--calls", 1),
          std::max(number("--concurrency", 1), 1), std::max(number("--connections", 1), 1),
          log);
  }
}
