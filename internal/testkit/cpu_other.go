// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package testkit

import "time"

var started = time.Now()

// CPUTime is how long the process has run: how long it has computed is not asked for here.
func CPUTime() time.Duration { return time.Since(started) }
