// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"context"
	"testing"
	"time"
)

// Within is the test's context for a step that must not hang. It has a minute at least, since on a
// busy machine everything takes its time.
func Within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), max(d, time.Minute))
	t.Cleanup(cancel)
	return ctx
}
