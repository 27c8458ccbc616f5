// Builds a client and the message that opens a stream; prints the message's bytes.
#include <grpcpp/grpcpp.h>

#include <cstdio>

#include "tidegate/v1/tidegate.grpc.pb.h"

int main() {
  auto channel = grpc::CreateChannel("localhost:50051", grpc::InsecureChannelCredentials());
  auto client = tidegate::v1::TidegateService::NewStub(channel);
  tidegate::v1::PredictRequest request;
  auto* open = request.mutable_open();
  open->set_stream_id("pump-7");
  open->set_existence(tidegate::v1::EXISTENCE_MUST_BE_NEW);
  open->set_resume_from((1ull << 63) - 2);
  open->set_kept_max(1000);
  for (unsigned char byte : request.SerializeAsString()) std::printf("%02x", byte);
  std::printf("\n");
  return client == nullptr;
}
