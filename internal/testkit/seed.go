// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"os"
	"strconv"
	"testing"
	"time"
)

// Seed returns a seed for tests with random input: SEALEDCHAT_SEED, or else the time. It is printed
// when the test fails.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEALEDCHAT_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("repeat with SEALEDCHAT_SEED=%d", seed)
		}
	})
	return seed
}
