// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
)

// makeBuffer returns a buffer that is locked if the limit allows.
func makeBuffer(n int) *Buffer {
	b, _ := NewWith(BestEffort, n) // only Required fails
	return b
}

func TestBuffer(t *testing.T) {
	page := os.Getpagesize()
	for _, n := range []int{1, 31, 4096, page - 1, page, page + 1, 5*page + 3} {
		b := makeBuffer(n)
		data := b.Bytes()
		if len(data) != n || cap(data) != n {
			t.Errorf("%d bytes: len %d, cap %d", n, len(data), cap(data))
		}
		if !bytes.Equal(data, make([]byte, n)) {
			t.Errorf("%d bytes: not zero", n)
		}
		for i := range data { // all of it is writable
			data[i] = byte(i)
		}
		b.Destroy()
		if b.Bytes() != nil || b.Locked() {
			t.Errorf("%d bytes: something is left after Destroy", n)
		}
		b.Destroy()
	}
}

func TestEmpty(t *testing.T) {
	b := makeBuffer(0)
	if len(b.Bytes()) != 0 || b.Locked() {
		t.Errorf("an empty buffer: %d bytes, locked %v", len(b.Bytes()), b.Locked())
	}
	b.Destroy()
	(&Buffer{}).Destroy()
}

// On the heap Destroy is all the protection there is, so it must wipe.
func TestHeapFallbackIsWiped(t *testing.T) {
	data := []byte("secret")
	b := newBuffer(BestEffort, &memory{whole: data})
	b.Destroy()
	if !bytes.Equal(data, make([]byte, 6)) {
		t.Errorf("left: %q", data)
	}
}

func TestBuffersDoNotOverlap(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for range 20 {
				b := makeBuffer(100)
				want := bytes.Repeat([]byte{byte(i + 1)}, 100)
				copy(b.Bytes(), want)
				if !bytes.Equal(b.Bytes(), want) {
					t.Error("somebody else wrote here")
				}
				b.Destroy()
			}
		})
	}
	wg.Wait()
}

func TestLimitErrorText(t *testing.T) {
	cause := errors.New("cause")
	err := error(&LimitError{Limit: 65536, InUse: 61440, Needed: 12288, Err: cause})
	if !errors.Is(err, fault.ErrMemoryLimit) || !errors.Is(err, cause) ||
		errors.Is(err, fault.ErrTooLarge) {
		t.Error("not what it should be")
	}
	for _, figure := range []string{"65536", "61440", "12288"} {
		if !strings.Contains(err.Error(), figure) {
			t.Errorf("%s is not in %q", figure, err)
		}
	}
}
