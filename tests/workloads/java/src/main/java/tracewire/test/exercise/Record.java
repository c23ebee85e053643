package tracewire.test.exercise;

import io.grpc.Status;
import java.io.IOException;
import java.io.UncheckedIOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.time.Instant;

/** What one side knows of one call; finish() writes it, once. */
final class Record {
  private final FileChannel log;
  private final String side;
  private final String id;
  private final String method;
  private final long start = now();
  private boolean done;
  volatile int sent;
  volatile int received;
  volatile String traceparent = "";

  Record(FileChannel log, String side, String id, String method) {
    this.log = log;
    this.side = side;
    this.id = id;
    this.method = method;
  }

  static FileChannel open(String path) throws IOException {
    return FileChannel.open(Path.of(path), StandardOpenOption.CREATE, StandardOpenOption.APPEND);
  }

  static long now() {
    Instant now = Instant.now();
    return now.getEpochSecond() * 1_000_000_000L + now.getNano();
  }

  synchronized boolean isDone() {
    return done;
  }

  synchronized void finish(Status status) {
    if (done) {
      return;
    }
    done = true;
    String message = status.getDescription() == null ? "" : status.getDescription();
    String line =
        "{\"side\":" + quote(side)
            + ",\"id\":" + quote(id)
            + ",\"method\":" + quote("tracewire.test.Exercise/" + method)
            + ",\"code\":" + quote(status.getCode().name())
            + ",\"message\":" + quote(message)
            + ",\"start_ns\":" + start
            + ",\"end_ns\":" + now()
            + ",\"sent\":" + sent
            + ",\"received\":" + received
            + ",\"traceparent\":" + quote(traceparent)
            + "}\n";
    try {
      // A whole line with one write to a file opened for appending.
      if (log != null) {
        log.write(ByteBuffer.wrap(line.getBytes(StandardCharsets.UTF_8)));
      }
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  private static String quote(String text) {
    StringBuilder out = new StringBuilder("\"");
    for (char c : text.toCharArray()) {
      if (c == '"' || c == '\\') {
        out.append('\\').append(c);
      } else if (c < ' ') {
        out.append(String.format("\\u%04x", (int) c));
      } else {
        out.append(c);
      }
    }
    return out.append('"').toString();
  }
}
