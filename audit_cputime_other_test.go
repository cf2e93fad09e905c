// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package sealedchat

import (
	"testing"
	"time"
)

// cpuTime is the wall time here.
func cpuTime(testing.TB) float64 { return float64(time.Now().UnixNano()) / 1e9 }
