// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix

package envelope

import (
	"bytes"
	"os"
	"syscall"
	"testing"
)

// Assembly that reads or writes a byte too far faults here: the next page is not accessible.
func TestBase64AtTheEndOfMemory(t *testing.T) {
	page := os.Getpagesize()
	edge := func() []byte { // a page before one that is not accessible
		memory, err := syscall.Mmap(-1, 0, 2*page, syscall.PROT_READ|syscall.PROT_WRITE,
			syscall.MAP_ANON|syscall.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Munmap(memory) })
		if err := syscall.Mprotect(memory[page:], syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
		return memory[:page]
	}
	from, to := edge(), edge()
	for n := range 600 {
		data := from[page-n:]
		for i := range data {
			data[i] = byte(i*7 + n)
		}
		want := bytes.Clone(data)
		text := to[page-(n+2)/3*4:]
		encode(text, data, apart)
		clear(data)
		if err := decode(data, text, apart, "field"); err != nil || !bytes.Equal(data, want) {
			t.Fatalf("%d bytes: %x, %v", n, data, err)
		}
	}
}
