// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// fakeTB stands in for a test that is expected to fail.
type fakeTB struct {
	testing.TB
	failures []string
	cleanups []func()
}

func (f *fakeTB) Helper()           {}
func (f *fakeTB) Cleanup(c func())  { f.cleanups = append(f.cleanups, c) }
func (f *fakeTB) Error(args ...any) { f.failures = append(f.failures, fmt.Sprint(args...)) }
func (f *fakeTB) Errorf(s string, a ...any) {
	f.failures = append(f.failures, fmt.Sprintf(s, a...))
}
func (f *fakeTB) Fatal(args ...any)         { f.Error(args...); runtime.Goexit() }
func (f *fakeTB) Fatalf(s string, a ...any) { f.Errorf(s, a...); runtime.Goexit() }

// mustFail runs test and its cleanups, and fails t unless test failed with a message that contains
// want.
func mustFail(t *testing.T, want string, test func(testing.TB)) {
	t.Helper()
	fake := &fakeTB{TB: t}
	runFake(fake, test)
	if !slices.ContainsFunc(fake.failures, func(s string) bool {
		return strings.Contains(s, want)
	}) {
		t.Errorf("failures %q, want one with %q", fake.failures, want)
	}
}

// mustPass runs test and its cleanups, and fails t if test failed.
func mustPass(t *testing.T, test func(testing.TB)) {
	t.Helper()
	fake := &fakeTB{TB: t}
	runFake(fake, test)
	if len(fake.failures) > 0 {
		t.Errorf("failures %q, want none", fake.failures)
	}
}

func runFake(fake *fakeTB, test func(testing.TB)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(fake)
	}()
	<-done
	for _, cleanup := range slices.Backward(fake.cleanups) {
		cleanup()
	}
}
