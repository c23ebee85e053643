package tracewire.test.exercise;

import java.util.HashMap;
import java.util.Map;
import java.util.logging.Level;
import java.util.logging.Logger;

/** An ordinary gRPC service and its client; each writes one JSON line per call to --log. */
public final class Main {
  static final int MIB = 1024 * 1024;

  // Warns that Unix sockets have no SO_KEEPALIVE; a field, as loggers are held weakly.
  private static final Logger BOOTSTRAP =
      Logger.getLogger("io.grpc.netty.shaded.io.netty.bootstrap");

  public static void main(String[] args) throws Exception {
    BOOTSTRAP.setLevel(Level.SEVERE);
    Map<String, String> options = new HashMap<>();
    for (int i = 1; i + 1 < args.length; i += 2) {
      options.put(args[i], args[i + 1]);
    }
    String side = args.length == 0 ? "" : args[0];
    if (side.equals("server") && has(options, "--listen", "--log")) {
      Server.run(options);
    } else if (side.equals("client")
        && has(options, "--target", "--scenario", "--calls", "--log")) {
      System.exit(Client.run(options));
    } else {
      System.err.println("usage: run server --listen ADDR --log FILE");
      System.err.println("       run client --target ADDR --scenario NAME --calls N --log FILE");
      System.err.println("           [--concurrency C] [--connections K] [--start-delay-ms D]");
      System.exit(2);
    }
  }

  private static boolean has(Map<String, String> options, String... names) {
    for (String name : names) {
      if (!options.containsKey(name)) {
        return false;
      }
    }
    return true;
  }

  private Main() {}
}
