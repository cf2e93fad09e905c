// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package keystore

import "testing"

func childFullDisk(t *testing.T, _, _ string) {
	t.Fatal("only Linux mounts a small file system for one process")
}
