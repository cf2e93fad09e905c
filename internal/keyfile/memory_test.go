// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keyfile

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestLargestStoreFitsIntoMemory opens the largest file that there can be, and one whose header
// promises as much.
func TestLargestStoreFitsIntoMemory(t *testing.T) {
	const most = 64 << 20
	master, err := NewMasterKey([]byte("passphrase"), 1, AllowWeak)
	if err != nil {
		t.Fatal(err)
	}
	body := &Body{Generation: 1}
	for i := range MaxPins {
		origin := fmt.Sprintf("https://%d.", i)
		body.Pins = append(body.Pins, Pin{
			Origin: origin + strings.Repeat("x", MaxOriginSize-len(origin)), FirstSeen: time.Now(),
			Fingerprint: [32]byte{1},
		})
	}
	file, err := Seal(body, master)
	if err != nil {
		t.Fatal(err)
	}
	if len(file) < 6<<20 {
		t.Fatalf("%d bytes are not the largest", len(file))
	}
	for name, text := range map[string][]byte{"full": file,
		"padded": append(file[:len(file)-2:len(file)-2],
			strings.Repeat(" ", MaxStoreSize-len(file))...)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if f, err := ParseHeader(text); err == nil {
			opened, err := Open(f, master)
			if err != nil {
				t.Fatal(err)
			}
			opened.Wipe()
		} else if name == "full" {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		if used := after.TotalAlloc - before.TotalAlloc; used > most {
			t.Errorf("%s: %d MiB for a file of %d MiB", name, used>>20, len(text)>>20)
		} else {
			t.Logf("%s: %d MiB for a file of %d MiB", name, used>>20, len(text)>>20)
		}
	}
}
