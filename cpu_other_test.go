// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package sealedchat

import "time"

var started = time.Now()

// cpuTime is the time that has passed: the process's own is not asked for here.
func cpuTime() time.Duration { return time.Since(started) }
