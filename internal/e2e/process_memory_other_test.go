// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package e2e_test

import "testing"

func TestProcessMemory(t *testing.T) {
	t.Skip("the scanner reads /proc/PID/mem, which only Linux has")
}
