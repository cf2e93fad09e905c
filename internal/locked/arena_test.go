// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func alloc(t testing.TB, a *Arena, n int) *Buffer {
	t.Helper()
	b, err := a.Alloc(n)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A thousand random steps: buffers keep what was written, never overlap, begin empty and aligned;
// all comes back.
func TestArena(t *testing.T) {
	testkit.NeedLocked(t, 1<<20)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	for _, policy := range []Policy{BestEffort, Required, Off} {
		before := Report()
		a := NewArena(policy)
		live := make(map[*Buffer]byte)
		for i := range 1000 {
			if len(live) < 40 && rng.IntN(2) == 0 {
				n := 1 + rng.IntN(300)
				if rng.IntN(20) == 0 {
					n = 1 + rng.IntN(2*chunkSize)
				}
				b := alloc(t, a, n)
				if data := b.Bytes(); len(data) != n || cap(data) != n ||
					!bytes.Equal(data, make([]byte, n)) {
					t.Fatalf("%v: %d bytes: len %d, cap %d, or not zero", policy, n, len(data),
						cap(data))
				} else if n%8 == 0 && uintptr(unsafe.Pointer(&data[0]))%8 != 0 {
					t.Fatal("not aligned")
				}
				mark := byte(i) | 1
				copy(b.Bytes(), bytes.Repeat([]byte{mark}, n))
				live[b] = mark
				continue
			}
			for b, mark := range live {
				if !bytes.Equal(b.Bytes(), bytes.Repeat([]byte{mark}, len(b.Bytes()))) {
					t.Fatalf("%v: somebody else wrote here", policy)
				}
				delete(live, b)
				b.Destroy()
				b.Destroy()
				break
			}
		}
		for b := range live {
			b.Destroy()
		}
		if len(a.chunks) > 1 || (policy == Required && len(a.chunks) != 1) {
			t.Errorf("%v: %d chunks are kept", policy, len(a.chunks))
		}
		a.Close()
		if now := Report(); now.InUse != before.InUse || now.Locked != before.Locked ||
			now.Unlocked != before.Unlocked {
			t.Errorf("%v: before %+v, after %+v", policy, before, now)
		}
	}
}

func TestArenaWipes(t *testing.T) {
	a := NewArena(BestEffort)
	defer a.Close()
	keep := alloc(t, a, 100) // so that the pages stay
	defer keep.Destroy()
	b := alloc(t, a, 100)
	whole := b.m.whole
	copy(whole, "secret")
	b.Narrow(50, 60)
	b.Destroy()
	if !bytes.Equal(whole, make([]byte, 100)) {
		t.Error("the bytes outlived Destroy")
	}
}

func TestArenaClose(t *testing.T) {
	a := NewArena(BestEffort)
	b, large := alloc(t, a, 10), alloc(t, a, 5*chunkSize)
	copy(b.Bytes(), "0123456789")
	before := Report().Locked
	a.Close()
	a.Close()
	if string(b.Bytes()) != "0123456789" || len(large.Bytes()) != 5*chunkSize {
		t.Error("a buffer went with the arena")
	}
	if _, err := a.Alloc(1); !errors.Is(err, ErrClosed) {
		t.Errorf("Alloc after Close: %v", err)
	}
	wasLocked := b.Locked()
	b.Destroy()
	if after := Report().Locked; wasLocked && before-after != roundToPages(chunkSize) {
		t.Errorf("%d bytes came back", before-after)
	}
	large.Destroy()
}

func TestNarrow(t *testing.T) {
	b := makeBuffer(10)
	defer b.Destroy()
	copy(b.Bytes(), "0123456789")
	b.Narrow(2, 8)
	b.Narrow(1, 6)
	if got := b.Bytes(); string(got) != "34567" || cap(got) != 5 {
		t.Errorf("got %q, cap %d", got, cap(got))
	}
	for _, bad := range [][2]int{{-1, 2}, {3, 2}, {0, 6}} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%v: no panic", bad)
				}
			}()
			b.Narrow(bad[0], bad[1])
		}()
	}
	(&Buffer{}).Narrow(0, 0)
}

func TestOff(t *testing.T) {
	before := Report()
	for name, f := range map[string]func() (*Buffer, error){
		"pages": func() (*Buffer, error) {
			return NewWith(Off, 10)
		}, "resting": func() (*Buffer, error) { return NewResting(Off, 10) },
		"arena": func() (*Buffer, error) { return NewArena(Off).Alloc(10) },
	} {
		b, err := f()
		if err != nil || b.Locked() || len(b.Bytes()) != 10 {
			t.Errorf("%s: %v", name, err)
		}
		whole := b.m.whole
		copy(whole, "secret")
		if now := Report(); now.Unlocked != before.Unlocked+10 || now.Level != Wiped ||
			now.Locked != before.Locked {
			t.Errorf("%s: %+v", name, now)
		}
		b.Destroy()
		if !bytes.Equal(whole, make([]byte, 10)) {
			t.Errorf("%s: not wiped", name)
		}
	}
	if now := Report(); now.Misses != before.Misses {
		t.Error("what was not to be locked counts as a miss")
	}
}

func TestResting(t *testing.T) {
	before := Report()
	goroutines := runtime.NumGoroutine()
	var all []*Buffer
	for i := range 20 {
		b, err := NewResting(BestEffort, 8*(i+1))
		if err != nil {
			t.Fatal(err)
		}
		data := b.Bytes()
		if len(data) != 8*(i+1) || cap(data) != len(data) ||
			uintptr(unsafe.Pointer(&data[0]))%8 != 0 {
			t.Errorf("%d bytes, cap %d, at %p", len(data), cap(data), data)
		}
		copy(data, "resting")
		all = append(all, b)
	}
	if n := runtime.NumGoroutine(); n > goroutines {
		t.Errorf("%d goroutines, then %d", goroutines, n)
	}
	for _, b := range all {
		if string(b.Bytes()[:7]) != "resting" {
			t.Error("another wrote here")
		}
		b.Destroy()
		b.Destroy()
		if b.Bytes() != nil || b.Locked() {
			t.Error("something is left")
		}
	}
	if now := Report(); now.Locked != before.Locked || now.InUse != before.InUse ||
		process.guarded != 0 {
		t.Errorf("before %+v, after %+v", before, now)
	}
}

func TestManyResting(t *testing.T) {
	if !canLock((maxGuards + 20) * os.Getpagesize()) {
		t.Skip("the lock limit is too low")
	}
	var all []*Buffer
	for range maxGuards + 2 {
		b, err := NewResting(Required, 32)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	if process.guarded != maxGuards || all[maxGuards].m.guard != nil ||
		all[maxGuards-1].m.guard == nil {
		t.Errorf("%d behind memguard", process.guarded)
	}
	for _, b := range all {
		b.Destroy()
	}
}

func TestWatch(t *testing.T) {
	type owner struct{ b *Buffer }
	before := Report()
	kept := &owner{makeBuffer(10)}
	w := WatchOwner(kept, kept.b)
	lost := func() []byte {
		o := &owner{makeBuffer(10)}
		WatchOwner(o, o.b)
		return o.b.m.whole[:0:0]
	}
	lost()
	if n := Report().Watched; n != before.Watched+2 {
		t.Errorf("%d are watched", n)
	}
	for end := time.Now().Add(time.Minute); Report().Leaked == before.Leaked &&
		time.Now().Before(end); time.Sleep(time.Millisecond) {
		runtime.GC()
	}
	w.Stop()
	w.Stop()
	kept.b.Destroy()
	runtime.GC()
	now := Report()
	if now.Leaked != before.Leaked+1 || now.Watched != before.Watched || now.InUse != before.InUse {
		t.Errorf("before %+v, after %+v", before, now)
	}
	(&Watch{}).Stop()
}

func TestConcurrentUsers(t *testing.T) {
	before := Report()
	shared := NewArena(BestEffort)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			own := NewArena(BestEffort)
			defer own.Close()
			for k := range 30 {
				resting, _ := NewResting(BestEffort, 32)
				all := []*Buffer{alloc(t, shared, 100+k), alloc(t, own, 512), makeBuffer(50),
					resting,
					alloc(t, own, chunkSize)}
				for _, b := range all {
					copy(b.Bytes(), bytes.Repeat([]byte{byte(i + 1)}, len(b.Bytes())))
				}
				_ = Report()
				for _, b := range all {
					if !bytes.Equal(b.Bytes(), bytes.Repeat([]byte{byte(i + 1)}, len(b.Bytes()))) {
						t.Error("somebody else wrote here")
					}
					b.Destroy()
				}
			}
		})
	}
	wg.Wait()
	shared.Close()
	if now := Report(); now.InUse != before.InUse || now.Locked != before.Locked ||
		now.Unlocked != before.Unlocked || now.Peak <= before.InUse {
		t.Errorf("before %+v, after %+v", before, now)
	}
}

func BenchmarkArena(b *testing.B) {
	a := NewArena(BestEffort)
	defer a.Close()
	for b.Loop() {
		buf, _ := a.Alloc(32)
		buf.Destroy()
	}
}

func BenchmarkNew(b *testing.B) {
	for b.Loop() {
		makeBuffer(32).Destroy()
	}
}

func BenchmarkResting(b *testing.B) {
	for b.Loop() {
		buf, _ := NewResting(BestEffort, 32)
		buf.Destroy()
	}
}
