// Builds a client and the message that opens a stream; prints the message's bytes.
package main

import (
	"fmt"
	"log"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	tidegatev1 "tidegate/v1"
)

func main() {
	connection, err := grpc.Dial("localhost:50051", grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	_ = tidegatev1.NewTidegateServiceClient(connection).Predict
	request, err := proto.Marshal(&tidegatev1.PredictRequest{Kind: &tidegatev1.PredictRequest_Open{Open: &tidegatev1.Open{
		StreamId:   "pump-7",
		Existence:  tidegatev1.Existence_EXISTENCE_MUST_BE_NEW,
		ResumeFrom: 1<<63 - 2,
		KeptMax:    1000,
	}}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%x\n", request)
}
