// Builds a client and the message that opens a stream; prints the message's bytes. With @grpc/grpc-js, which reads the proto.
import { credentials, loadPackageDefinition } from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";

const definition = loadSync("tidegate/v1/tidegate.proto", { includeDirs: ["protos"], longs: String });
const { TidegateService } = loadPackageDefinition(definition).tidegate.v1;
const client = new TidegateService("localhost:50051", credentials.createInsecure());
const open = { streamId: "pump-7", existence: "EXISTENCE_MUST_BE_NEW", resumeFrom: "9223372036854775806", keptMax: 1000 };
if (typeof client.predict !== "function") throw new Error("the client has no predict");
console.log(TidegateService.service.Predict.requestSerialize({ open }).toString("hex"));
client.close();
