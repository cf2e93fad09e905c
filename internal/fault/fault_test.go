// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package fault

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"
)

// Errors of ended time say so as net/http's do; others have the method too, and say no.
func TestTimeout(t *testing.T) {
	past, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	caused, cancel := context.WithDeadlineCause(t.Context(), time.Now().Add(-time.Second), io.EOF)
	defer cancel()
	ended, end := context.WithCancelCause(t.Context())
	end(errors.New("enough"))
	closed, end := context.WithCancelCause(t.Context())
	end(ErrClosed)
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"an attempt":         {Connection("x", ErrAttemptTimeout, false), true},
		"a stalled stream":   {Connection("x", ErrStalled, true), true},
		"a deadline of I/O":  {Connection("x", os.ErrDeadlineExceeded, true), true},
		"a connection":       {Connection("x", io.ErrUnexpectedEOF, true), false},
		"a cancelled one":    {Connection("x", context.Canceled, false), false},
		"a deadline":         {Ended(past), true},
		"one with its cause": {Ended(caused), true},
		"a call that ended":  {Ended(ended), false},
		"a closed client":    {Ended(closed), false},
	} {
		timeout, ok := test.err.(interface{ Timeout() bool })
		if !ok || timeout.Timeout() != test.want {
			t.Errorf("%s: %v", name, test.err)
		}
	}
	if !errors.Is(Ended(caused), io.EOF) || !errors.Is(Ended(caused), context.DeadlineExceeded) ||
		!errors.Is(Ended(closed), ErrClosed) {
		t.Error("the cause was lost")
	}
}
