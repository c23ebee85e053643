package tracewire.test.exercise;

import com.google.protobuf.ByteString;
import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.Metadata;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollEventLoopGroup;
import io.grpc.netty.shaded.io.netty.channel.epoll.EpollServerDomainSocketChannel;
import io.grpc.netty.shaded.io.netty.channel.unix.DomainSocketAddress;
import io.grpc.stub.ServerCallStreamObserver;
import io.grpc.stub.StreamObserver;
import java.net.InetSocketAddress;
import java.nio.channels.FileChannel;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;

final class Server extends ExerciseGrpc.ExerciseImplBase {
  private static final Metadata.Key<String> CALL_ID =
      Metadata.Key.of("x-call-id", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> TRACEPARENT =
      Metadata.Key.of("traceparent", Metadata.ASCII_STRING_MARSHALLER);
  private static final Context.Key<String> PARENTS = Context.keyWithDefault("traceparent", "");
  private static final Context.Key<String> ID = Context.keyWithDefault("call-id", "");

  private final FileChannel log;

  private Server(FileChannel log) {
    this.log = log;
  }

  /** Takes the id of the call from its metadata. */
  private static final class TakeId implements ServerInterceptor {
    @Override
    public <Q, R> ServerCall.Listener<Q> interceptCall(
        ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
      String id = headers.get(CALL_ID);
      Iterable<String> parents = headers.getAll(TRACEPARENT);
      Context context =
          Context.current()
              .withValue(ID, id == null ? "" : id)
              .withValue(PARENTS, parents == null ? "" : String.join(",", parents));
      return Contexts.interceptCall(context, call, headers, next);
    }
  }

  /** One call: its record, its answers, and whether the client has given up. */
  private final class Call {
    final Record record;
    final StreamObserver<Answer> answers;
    private final CountDownLatch ended = new CountDownLatch(1);

    Call(String method, int received, StreamObserver<Answer> answers) {
      this.answers = answers;
      record = new Record(log, "server", ID.get(), method);
      record.received = received;
      record.traceparent = PARENTS.get();
      // With a handler set, answers to a cancelled call are dropped quietly.
      ((ServerCallStreamObserver<Answer>) answers).setOnCancelHandler(this::cancelled);
      // The context hears of it even while a handler is at work.
      Context.current().addListener(context -> cancelled(), Runnable::run);
    }

    void cancelled() {
      record.finish(Status.CANCELLED);
      ended.countDown();
    }

    /** Waits; false when the call has ended meanwhile. */
    boolean pause(int millis) {
      try {
        return millis <= 0 ? ended.getCount() != 0 : !ended.await(millis, TimeUnit.MILLISECONDS);
      } catch (InterruptedException e) {
        return false;
      }
    }

    void send(Ask ask) {
      if (record.isDone()) {
        return;
      }
      answers.onNext(answer(ask, record.sent++));
    }

    /** Ends the call as the ask wishes, with a last answer if there is one. */
    void end(Ask ask, Answer last) {
      if (record.isDone()) {
        return;
      }
      if (ask.getCode() != 0) {
        Status status = Status.fromCodeValue(ask.getCode()).withDescription(ask.getMessage());
        record.finish(status);
        answers.onError(status.asRuntimeException());
        return;
      }
      if (last != null) {
        record.sent++;
      }
      record.finish(Status.OK);
      if (last != null) {
        answers.onNext(last);
      }
      answers.onCompleted();
    }
  }

  private static Answer answer(Ask ask, int n) {
    ByteString payload = ByteString.copyFrom(new byte[ask.getReplyBytes()]);
    return Answer.newBuilder().setId(ask.getId()).setN(n).setPayload(payload).build();
  }

  @Override
  public void unary(Ask ask, StreamObserver<Answer> answers) {
    Call call = new Call("Unary", 1, answers);
    if (call.pause(ask.getDelayMs())) {
      call.end(ask, answer(ask, 0));
    }
  }

  @Override
  public void serverStream(Ask ask, StreamObserver<Answer> answers) {
    Call call = new Call("ServerStream", 1, answers);
    boolean open = call.pause(ask.getDelayMs());
    for (int n = 0; n < ask.getReplies() && open; n++) {
      open = n == 0 || call.pause(ask.getGapMs());
      if (open) {
        call.send(ask);
      }
    }
    call.end(ask, null);
  }

  @Override
  public StreamObserver<Ask> clientStream(StreamObserver<Answer> answers) {
    Call call = new Call("ClientStream", 0, answers);
    return new StreamObserver<>() {
      private Ask last = Ask.getDefaultInstance();

      @Override
      public void onNext(Ask ask) {
        call.record.received++;
        last = ask;
      }

      @Override
      public void onError(Throwable error) {
        call.cancelled();
      }

      @Override
      public void onCompleted() {
        if (call.pause(last.getDelayMs())) {
          call.end(last, answer(last, call.record.received));
        }
      }
    };
  }

  @Override
  public StreamObserver<Ask> bidi(StreamObserver<Answer> answers) {
    Call call = new Call("Bidi", 0, answers);
    return new StreamObserver<>() {
      private Ask last = Ask.getDefaultInstance();

      @Override
      public void onNext(Ask ask) {
        call.record.received++;
        last = ask;
        if (call.pause(ask.getDelayMs())) {
          call.send(ask);
        }
      }

      @Override
      public void onError(Throwable error) {
        call.cancelled();
      }

      @Override
      public void onCompleted() {
        call.end(last, null);
      }
    };
  }

  static void run(Map<String, String> options) throws Exception {
    String listen = options.get("--listen");
    NettyServerBuilder builder;
    if (listen.startsWith("unix:")) {
      builder =
          NettyServerBuilder.forAddress(
                  new DomainSocketAddress(listen.substring(5)), Credentials.server())
              .channelType(EpollServerDomainSocketChannel.class)
              .bossEventLoopGroup(new EpollEventLoopGroup(1))
              .workerEventLoopGroup(new EpollEventLoopGroup());
    } else {
      int colon = listen.lastIndexOf(':');
      builder =
          NettyServerBuilder.forAddress(
              new InetSocketAddress(
                  listen.substring(0, colon), Integer.parseInt(listen.substring(colon + 1))),
              Credentials.server());
    }
    io.grpc.Server server =
        builder
            .maxInboundMessageSize(64 * Main.MIB)
            .maxInboundMetadataSize(64 * 1024)
            .intercept(new TakeId())
            .addService(new Server(Record.open(options.get("--log"))))
            .build()
            .start();
    Runtime.getRuntime()
        .addShutdownHook(
            new Thread(
                () -> {
                  try {
                    if (!server.shutdown().awaitTermination(1, TimeUnit.SECONDS)) {
                      server.shutdownNow().awaitTermination(1, TimeUnit.SECONDS);
                    }
                  } catch (InterruptedException e) {
                    // Exits all the same.
                  }
                  Runtime.getRuntime().halt(0);
                }));
    System.out.println("listening");
    server.awaitTermination();
  }
}
