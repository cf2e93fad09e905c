// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestRun(t *testing.T) {
	answer, err := run(t.Context(), "What is the capital of France?")
	if err != nil || answer != "Paris." {
		t.Fatalf("%q, %v", answer, err)
	}
}
