// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"io"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

type closerFunc func() error

func (f closerFunc) Close() error { return f() }

// Closers have their turn one after the other. One that hangs is given up after 5 s, and one that panics at once.
func TestCloseAllInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var order []string
		begin := time.Now()
		slow := func(name string, d time.Duration) closerFunc {
			return func() error {
				time.Sleep(d)
				order = append(order, name)
				return nil
			}
		}
		hang := make(chan struct{})
		last := closeAll([]io.Closer{
			slow("one", 2*time.Second), closerFunc(func() error { <-hang; return nil }),
			closerFunc(func() error { panic("it does not keep the others from their turn") }), slow("two", 0),
		}, os.Interrupt, nil)
		if took := time.Since(begin); !slices.Equal(order, []string{"one", "two"}) || took != 2*time.Second+closePatience || last != os.Interrupt {
			t.Errorf("%v after %v, by %v", order, took, last)
		}
		close(hang)
	})
}
