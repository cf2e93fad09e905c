// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package testkit

import "testing"

// NeedLocked skips a test if this process cannot lock n more bytes of memory. Here it does nothing:
// the systems on which the tests run allow enough.
func NeedLocked(testing.TB, int) {}
