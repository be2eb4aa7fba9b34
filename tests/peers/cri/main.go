// A client of the CRI: one call, with its request on stdin and its response on stdout, both as JSON.
//
// Usage: cri SOCKET METHOD < REQUEST
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How long a call may take.
const patience = 3 * time.Minute

func main() {
	if err := call(); err != nil {
		fmt.Fprintln(os.Stderr, "cri:", err)
		os.Exit(1)
	}
}

// The messages of a method.
func messages(method string) (request, response any) {
	switch method {
	case "RunPodSandbox":
		return &cri.RunPodSandboxRequest{}, &cri.RunPodSandboxResponse{}
	case "StopPodSandbox":
		return &cri.StopPodSandboxRequest{}, &cri.StopPodSandboxResponse{}
	case "RemovePodSandbox":
		return &cri.RemovePodSandboxRequest{}, &cri.RemovePodSandboxResponse{}
	case "UpdatePodSandboxResources":
		return &cri.UpdatePodSandboxResourcesRequest{}, &cri.UpdatePodSandboxResourcesResponse{}
	case "PodSandboxStatus":
		return &cri.PodSandboxStatusRequest{}, &cri.PodSandboxStatusResponse{}
	case "PodSandboxStats":
		return &cri.PodSandboxStatsRequest{}, &cri.PodSandboxStatsResponse{}
	case "CreateContainer":
		return &cri.CreateContainerRequest{}, &cri.CreateContainerResponse{}
	case "StartContainer":
		return &cri.StartContainerRequest{}, &cri.StartContainerResponse{}
	case "StopContainer":
		return &cri.StopContainerRequest{}, &cri.StopContainerResponse{}
	case "RemoveContainer":
		return &cri.RemoveContainerRequest{}, &cri.RemoveContainerResponse{}
	case "ContainerStatus":
		return &cri.ContainerStatusRequest{}, &cri.ContainerStatusResponse{}
	case "ContainerStats":
		return &cri.ContainerStatsRequest{}, &cri.ContainerStatsResponse{}
	case "UpdateContainerResources":
		return &cri.UpdateContainerResourcesRequest{}, &cri.UpdateContainerResourcesResponse{}
	case "ExecSync":
		return &cri.ExecSyncRequest{}, &cri.ExecSyncResponse{}
	case "Status":
		return &cri.StatusRequest{}, &cri.StatusResponse{}
	}
	return nil, nil
}

func call() error {
	if len(os.Args) != 3 {
		return fmt.Errorf("usage: cri SOCKET METHOD < REQUEST")
	}
	request, response := messages(os.Args[2])
	if request == nil {
		return fmt.Errorf("unknown method %q", os.Args[2])
	}
	if err := json.NewDecoder(os.Stdin).Decode(request); err != nil {
		return fmt.Errorf("the request is not understood: %w", err)
	}
	connection, err := grpc.NewClient("unix://"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := connection.Invoke(ctx, "/runtime.v1.RuntimeService/"+os.Args[2], request, response); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(response)
}
