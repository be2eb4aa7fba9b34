//go:build tests

// Packages whose tests become programs beside the tools: `go mod tidy` keeps what they need because they are imported here.
package main

import (
	_ "github.com/containerd/containerd/v2/integration"
	_ "github.com/containerd/containerd/v2/integration/client"
)
