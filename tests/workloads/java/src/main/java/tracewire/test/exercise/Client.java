package tracewire.test.exercise;

import com.google.protobuf.ByteString;
import io.grpc.ConnectivityState;
import io.grpc.Grpc;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.ClientCallStreamObserver;
import io.grpc.stub.ClientResponseObserver;
import io.grpc.stub.MetadataUtils;
import io.grpc.stub.StreamObserver;
import java.nio.channels.FileChannel;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;

final class Client {
  private static final String LANG = "java";
  private static final List<String> MIXED =
      List.of("unary", "errors", "server-stream", "client-stream", "bidi");
  private static final List<String> OTHERS =
      List.of("cancel", "deadline", "large", "metadata", "churn", "mixed");
  private static final String BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

  /** What call number n of a scenario is: its method, its ask and how it is made. */
  private static final class Plan {
    final String id;
    final Metadata metadata = new Metadata();
    final Ask ask;
    String method = "Unary";
    int asks = 1;
    int gapMs;
    int timeoutMs;
    boolean cancel;

    Plan(String scenario, int n) {
      id = LANG + "-" + scenario + "-" + n + "-" + ProcessHandle.current().pid();
      put("x-call-id", id);
      int size = scenario.equals("large") ? 4 * Main.MIB : 64;
      Ask.Builder builder = Ask.newBuilder().setId(id).setReplyBytes(size);
      builder.setPayload(ByteString.copyFrom(new byte[size]));
      String failure = "expected failure " + n + ": na\u00efve % text";
      switch (scenario.equals("mixed") ? MIXED.get(n % MIXED.size()) : scenario) {
        case "errors":
          builder.setCode(n % 17).setMessage(failure);
          break;
        case "server-stream":
          method = "ServerStream";
          builder.setReplies(3).setGapMs(5);
          if (n % 4 == 3) {
            builder.setCode(Status.Code.ABORTED.value()).setMessage(failure);
          }
          break;
        case "client-stream":
          method = "ClientStream";
          asks = 4;
          gapMs = 2;
          break;
        case "bidi":
          method = "Bidi";
          asks = 3;
          break;
        case "cancel":
          method = "ServerStream";
          cancel = true;
          builder.setReplies(1000).setGapMs(5);
          break;
        case "deadline":
          timeoutMs = 60;
          builder.setDelayMs(400);
          break;
        case "metadata":
          StringBuilder filler = new StringBuilder();
          for (int i = 0; i < 16_000; i++) {
            filler.append(BASE32.charAt(ThreadLocalRandom.current().nextInt(32)));
          }
          put("x-filler", filler.toString());
          break;
        default:
          break;
      }
      ask = builder.build();
    }

    private void put(String name, String value) {
      metadata.put(Metadata.Key.of(name, Metadata.ASCII_STRING_MARSHALLER), value);
    }
  }

  /** The answers to a streaming call, and at last its status. */
  private static final class Answers implements ClientResponseObserver<Ask, Answer> {
    final BlockingQueue<Object> events = new LinkedBlockingQueue<>();
    final Record record;
    final boolean cancel;
    private ClientCallStreamObserver<Ask> call;

    Answers(Record record, boolean cancel) {
      this.record = record;
      this.cancel = cancel;
    }

    @Override
    public void beforeStart(ClientCallStreamObserver<Ask> call) {
      this.call = call;
    }

    @Override
    public void onNext(Answer answer) {
      record.received++;
      events.add(answer);
      if (cancel) {
        call.cancel("not wanted any more", null);
      }
    }

    @Override
    public void onError(Throwable error) {
      record.finish(Status.fromThrowable(error));
      events.add(Status.fromThrowable(error));
    }

    @Override
    public void onCompleted() {
      record.finish(Status.OK);
      events.add(Status.OK);
    }
  }

  private static void call(ManagedChannel channel, Plan plan, FileChannel log)
      throws InterruptedException {
    Record record = new Record(log, "client", plan.id, plan.method);
    var attach = MetadataUtils.newAttachHeadersInterceptor(plan.metadata);
    if (plan.method.equals("Unary")) {
      var stub = ExerciseGrpc.newBlockingStub(channel).withInterceptors(attach);
      if (plan.timeoutMs > 0) {
        stub = stub.withDeadlineAfter(plan.timeoutMs, TimeUnit.MILLISECONDS);
      }
      record.sent = 1;
      try {
        stub.unary(plan.ask);
        record.received = 1;
        record.finish(Status.OK);
      } catch (StatusRuntimeException e) {
        record.finish(e.getStatus());
      }
      return;
    }

    var stub = ExerciseGrpc.newStub(channel).withInterceptors(attach);
    Answers answers = new Answers(record, plan.cancel);
    if (plan.method.equals("ServerStream")) {
      record.sent = 1;
      stub.serverStream(plan.ask, answers);
    } else {
      boolean bidi = plan.method.equals("Bidi");
      StreamObserver<Ask> asks = bidi ? stub.bidi(answers) : stub.clientStream(answers);
      for (int n = 0; n < plan.asks && !record.isDone(); n++) {
        if (n > 0 && plan.gapMs > 0) {
          Thread.sleep(plan.gapMs);
        }
        record.sent++;
        asks.onNext(plan.ask);
        if (bidi && answers.events.take() instanceof Status) {
          return;
        }
      }
      asks.onCompleted();
    }
    while (!(answers.events.take() instanceof Status)) {
      // More answers: counted as they came.
    }
  }

  private static ManagedChannel connect(String target) {
    return Grpc.newChannelBuilder(target, Credentials.channel())
        .disableRetry()
        .disableServiceConfigLookUp()
        .proxyDetector(address -> null)
        .maxInboundMessageSize(64 * Main.MIB)
        .maxInboundMetadataSize(64 * 1024)
        .build();
  }

  /**
   * Connects, and loads what a call needs with one that gets no further than a closed channel: else
   * a cold JVM spends the whole of a short deadline before there is anything on the wire.
   */
  private static void warmUp(String target, List<ManagedChannel> channels)
      throws InterruptedException {
    ManagedChannel closed = connect(target).shutdownNow();
    Plan plan = new Plan("deadline", 0);
    for (int i = 0; i < 2; i++) {
      call(closed, plan, null);
    }
    for (ManagedChannel channel : channels) {
      channel.getState(true);
    }
    long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(5);
    for (ManagedChannel channel : channels) {
      while (channel.getState(false) != ConnectivityState.READY && System.nanoTime() < deadline) {
        Thread.sleep(1);
      }
    }
  }

  static int run(Map<String, String> options) throws Exception {
    String target = options.get("--target");
    String scenario = options.get("--scenario");
    if (!MIXED.contains(scenario) && !OTHERS.contains(scenario)) {
      System.err.println("no such scenario: " + scenario);
      return 2;
    }
    int calls = Integer.parseInt(options.get("--calls"));
    int concurrency = Integer.parseInt(options.getOrDefault("--concurrency", "1"));
    int connections = Integer.parseInt(options.getOrDefault("--connections", "1"));
    FileChannel log = Record.open(options.get("--log"));
    Thread.sleep(Long.parseLong(options.getOrDefault("--start-delay-ms", "0")));

    boolean churn = scenario.equals("churn");
    List<ManagedChannel> channels = new ArrayList<>();
    for (int i = 0; i < connections && !churn; i++) {
      channels.add(connect(target));
    }
    warmUp(target, channels);
    AtomicInteger next = new AtomicInteger();
    AtomicInteger failed = new AtomicInteger();
    Runnable work =
        () -> {
          try {
            for (int n = next.getAndIncrement(); n < calls; n = next.getAndIncrement()) {
              ManagedChannel channel = churn ? connect(target) : channels.get(n % connections);
              call(channel, new Plan(scenario, n), log);
              if (churn) {
                channel.shutdown().awaitTermination(1, TimeUnit.SECONDS);
              }
            }
          } catch (Throwable e) {
            e.printStackTrace();
            failed.set(1);
          }
        };
    List<Thread> threads = new ArrayList<>();
    for (int i = 0; i < concurrency; i++) {
      threads.add(new Thread(work));
    }
    threads.forEach(Thread::start);
    for (Thread thread : threads) {
      thread.join();
    }
    channels.forEach(ManagedChannel::shutdown);
    return failed.get();
  }

  private Client() {}
}
