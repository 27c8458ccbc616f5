// Builds a client and the message that opens a stream; prints the message's bytes. With @bufbuild/protobuf and @connectrpc.
import { create, toBinary } from "@bufbuild/protobuf";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { Existence, PredictRequestSchema, TidegateService } from "./tidegate/v1/tidegate_pb.js";

const client = createClient(TidegateService, createGrpcTransport({ baseUrl: "http://localhost:50051" }));
const open = { streamId: "pump-7", existence: Existence.MUST_BE_NEW, resumeFrom: 2n ** 63n - 2n, keptMax: 1000 };
const request = create(PredictRequestSchema, { kind: { case: "open", value: open } });
if (typeof client.predict !== "function") throw new Error("the client has no predict");
console.log(Buffer.from(toBinary(PredictRequestSchema, request)).toString("hex"));
