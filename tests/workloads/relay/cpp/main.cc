// The relay of proto/relay.proto, with grpc++ and its blocking services: an
// ordinary service without tracing code.

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <iostream>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include <grpcpp/grpcpp.h>

#include "relay.grpc.pb.h"

using tracewire::relay::Hop;
using tracewire::relay::Relay;

namespace {

class Service final : public Relay::Service {
 public:
  Service(int connections, int log) : connections_(connections), log_(log) {}

  grpc::Status Pass(grpc::ServerContext* context, const Hop* hop, Hop* answer) override {
    Note(*context, hop->id());
    answer->set_id(hop->id());
    uint32_t count = 0;
    grpc::Status status = Onwards(*hop, &count);
    answer->set_count(count + 1);
    return status;
  }

  grpc::Status Flow(grpc::ServerContext*, grpc::ServerReaderWriter<Hop, Hop>* stream) override {
    Hop hop;
    while (stream->Read(&hop)) {
      Hop answer;
      uint32_t count = 0;
      grpc::Status status = Onwards(hop, &count);
      if (!status.ok()) return status;
      answer.set_id(hop.id());
      answer.set_count(count);
      stream->Write(answer);
    }
    return grpc::Status::OK;
  }

 private:
  // A call that is under way.
  struct Call {
    grpc::ClientContext context;
    Hop answer;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncResponseReader<Hop>> reader;
  };

  grpc::Status Onwards(const Hop& hop, uint32_t* count) {
    if (hop.route_size() == 0) return grpc::Status::OK;
    uint32_t fan = std::max(hop.fan(), 1u);
    if (fan == 1) {
      Call call;
      Hop ask = Ask(hop, 0, &call.context);
      grpc::Status status = Next(hop.route(0))->Pass(&call.context, ask, &call.answer);
      *count += call.answer.count();
      return status;
    }
    grpc::CompletionQueue queue;
    std::vector<std::unique_ptr<Call>> calls;
    for (uint32_t k = 0; k < fan; ++k) {
      auto call = std::make_unique<Call>();
      Hop ask = Ask(hop, k, &call->context);
      call->reader = Next(hop.route(0))->AsyncPass(&call->context, ask, &queue);
      call->reader->Finish(&call->answer, &call->status, call.get());
      calls.push_back(std::move(call));
    }
    grpc::Status status;
    void* tag;
    bool ok;
    for (uint32_t k = 0; k < fan && queue.Next(&tag, &ok); ++k) {
      auto* call = static_cast<Call*>(tag);
      if (!call->status.ok()) status = call->status;
      *count += call->answer.count();
    }
    queue.Shutdown();
    while (queue.Next(&tag, &ok)) {
    }
    return status;
  }

  static Hop Ask(const Hop& hop, uint32_t k, grpc::ClientContext* context) {
    if (hop.delay_ms() > 0) {
      thread_local std::mt19937 random{std::random_device{}()};
      std::this_thread::sleep_for(std::chrono::microseconds(random() % (hop.delay_ms() * 1000)));
    }
    Hop ask;
    ask.set_id(hop.id() + "/" + std::to_string(k));
    for (int n = 1; n < hop.route_size(); ++n) ask.add_route(hop.route(n));
    ask.set_fan(hop.fan());
    ask.set_delay_ms(hop.delay_ms());
    ask.set_depth(hop.depth());
    context->AddMetadata("x-call-id", ask.id());
    return ask;
  }

  Relay::Stub* Next(const std::string& address) {
    std::lock_guard<std::mutex> lock(mutex_);
    auto& stubs = stubs_[address];
    while (static_cast<int>(stubs.size()) < connections_) {
      grpc::ChannelArguments arguments;
      arguments.SetInt("grpc.use_local_subchannel_pool", 1);
      stubs.push_back(Relay::NewStub(
          grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments)));
    }
    return stubs[next_++ % stubs.size()].get();
  }

  void Note(const grpc::ServerContext& context, const std::string& id) {
    if (log_ < 0) return;
    std::string line = "{\"id\":\"" + id + "\",\"traceparent\":[";
    auto [first, last] = context.client_metadata().equal_range("traceparent");
    for (auto it = first; it != last; ++it) {
      if (it != first) line += ",";
      line += "\"" + std::string(it->second.data(), it->second.size()) + "\"";
    }
    line += "]}\n";
    if (write(log_, line.data(), line.size()) < 0) _exit(1);
  }

  const int connections_;
  const int log_;
  std::mutex mutex_;
  std::map<std::string, std::vector<std::unique_ptr<Relay::Stub>>> stubs_;
  size_t next_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> flags;
  for (int n = 2; n + 1 < argc; n += 2) flags[argv[n]] = argv[n + 1];
  if (argc < 2 || std::string(argv[1]) != "serve" || flags["--listen"].empty()) {
    std::cerr << "usage: run serve --listen ADDRESS [--connections N] [--log FILE]\n";
    return 2;
  }
  signal(SIGTERM, [](int) { _exit(0); });
  int log = flags["--log"].empty() ? -1 : open(flags["--log"].c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  int connections = flags["--connections"].empty() ? 1 : std::stoi(flags["--connections"]);
  Service service(connections, log);
  grpc::ServerBuilder builder;
  builder.AddChannelArgument("grpc.so_reuseport", 0);
  builder.AddListeningPort(flags["--listen"], grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  auto server = builder.BuildAndStart();
  if (!server) return 1;
  std::cout << "listening " << flags["--listen"] << std::endl;
  server->Wait();
}
