package tracewire.test.exercise;

import io.grpc.ChannelCredentials;
import io.grpc.InsecureChannelCredentials;
import io.grpc.InsecureServerCredentials;
import io.grpc.ServerCredentials;
import io.grpc.TlsChannelCredentials;
import io.grpc.TlsServerCredentials;
import java.io.File;
import java.io.IOException;
import java.io.UncheckedIOException;

/**
 * TLS, if EXERCISE_TLS names a folder with ca.pem, cert.pem and key.pem; EXERCISE_MUTUAL_TLS has
 * the client show its certificate too.
 */
final class Credentials {
  private static final String FOLDER = System.getenv("EXERCISE_TLS");
  private static final boolean MUTUAL = System.getenv("EXERCISE_MUTUAL_TLS") != null;

  private Credentials() {}

  private static File pem(String name) {
    return new File(FOLDER, name);
  }

  static ServerCredentials server() {
    if (FOLDER == null) {
      return InsecureServerCredentials.create();
    }
    try {
      var tls = TlsServerCredentials.newBuilder().keyManager(pem("cert.pem"), pem("key.pem"));
      if (MUTUAL) {
        tls.trustManager(pem("ca.pem")).clientAuth(TlsServerCredentials.ClientAuth.REQUIRE);
      }
      return tls.build();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }

  static ChannelCredentials channel() {
    if (FOLDER == null) {
      return InsecureChannelCredentials.create();
    }
    try {
      var tls = TlsChannelCredentials.newBuilder().trustManager(pem("ca.pem"));
      if (MUTUAL) {
        tls.keyManager(pem("cert.pem"), pem("key.pem"));
      }
      return tls.build();
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
