import com.google.common.io.BaseEncoding;
import io.grpc.ManagedChannel;
import io.grpc.ManagedChannelBuilder;
import io.tidegate.v1.Existence;
import io.tidegate.v1.PredictRequest;
import io.tidegate.v1.TidegateServiceGrpc;

/** Builds a client and the message that opens a stream; prints the message's bytes. */
public final class Open {
  public static void main(String[] arguments) {
    ManagedChannel channel = ManagedChannelBuilder.forAddress("localhost", 50051).usePlaintext().build();
    TidegateServiceGrpc.TidegateServiceStub client = TidegateServiceGrpc.newStub(channel);
    PredictRequest request =
        PredictRequest.newBuilder()
            .setOpen(
                io.tidegate.v1.Open.newBuilder()
                    .setStreamId("pump-7")
                    .setExistence(Existence.EXISTENCE_MUST_BE_NEW)
                    .setResumeFrom(Long.MAX_VALUE - 1)
                    .setKeptMax(1000))
            .build();
    System.out.println(BaseEncoding.base16().lowerCase().encode(request.toByteArray()));
    ((ManagedChannel) client.getChannel()).shutdownNow();
  }
}
