// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// childClaimer claims ids in both protocols, as fast as it can, and says of each that it had it.
// Every third of protocol v1 it releases before it says so.
func childClaimer(d *fsafe.Dir) error {
	f := NewFile(d, 0)
	f.spare = 64
	random := rand.New(rand.NewPCG(rand.Uint64(), 0))
	until := time.Now().Add(time.Hour)
	for {
		for range 2 { // so that the file is written anew often
			if _, err := f.Claim(context.Background(), replayID(1<<20), [32]byte{1},
				until); err != nil {
				return err
			}
			if err := f.Release(context.Background(), replayID(1<<20)); err != nil {
				return err
			}
		}
		n := random.Uint64N(1 << 14)
		client := [32]byte{byte(n % 2)}
		ok, err := f.Claim(context.Background(), replayID(n), client, until)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		said := "claimed"
		if n%6 == 1 {
			if err := f.Release(context.Background(), replayID(n)); err != nil {
				return err
			}
			said = "released"
		}
		fmt.Println(said, n)
	}
}

// TestKilledFile kills processes that claim in one folder, at any moment: what one of them was told
// that it had, no other ever has.
func TestKilledFile(t *testing.T) {
	kills := 8
	if os.Getenv("SEALEDCHAT_LONG") == "1" {
		kills = 200
	}
	d := newFolder(t)
	had, replaced := make(map[string]bool), make(map[[32]byte]bool)
	for kill := 0; kill < kills; kill += 2 {
		var cmds [2]*exec.Cmd
		var said [2]bytes.Buffer
		first := make(chan struct{}, 2) // each has claimed
		for i := range cmds {
			cmds[i] = command(t, "claimer", d.Path())
			cmds[i].Stdout = &firstWrite{to: &said[i], first: first}
			if err := cmds[i].Start(); err != nil {
				t.Fatal(err)
			}
		}
		<-first
		// the moment of the kill is what is tried
		time.Sleep(time.Duration(rand.IntN(20_000)) * time.Microsecond)
		for i := range cmds {
			if err := cmds[i].Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmds[i].Wait()
		}
		for i := range said {
			text := said[i].String()
			for line := range strings.Lines(text[:strings.LastIndexByte(text, '\n')+1]) {
				word, id, _ := strings.Cut(strings.TrimSpace(line), " ")
				if had[id] && word == "claimed" {
					t.Fatalf("kill %d: %s was had twice", kill, id)
				}
				had[id] = true
			}
		}
		f := NewFile(d, 0)
		f.readAll(t)
		replaced[f.version] = true
		f.crash()
	}
	f := openFile(t, d, 0, nil)
	for id := range had {
		var n uint64
		fmt.Sscan(id, &n)
		who := [32]byte{byte(n % 2)}
		if n%6 == 1 {
			who = [32]byte{7} // the same client may again, and nobody else
		}
		if ok, err := f.Claim(t.Context(), replayID(n), who, time.Now().Add(time.Hour)); ok ||
			err != nil {
			t.Fatalf("%d: %v, %v", n, ok, err)
		}
	}
	if names, err := d.Names(); err != nil || len(names) != 1 {
		t.Errorf("%v is in the folder, %v", names, err)
	}
	if len(had) < kills/2 || len(replaced) < 2 {
		t.Errorf("only %d claims were had, in %d versions of the file", len(had), len(replaced))
	}
	t.Logf("%d kills, %d claims, %d versions of the file", kills, len(had), len(replaced))
}

type firstWrite struct {
	to    *bytes.Buffer
	first chan<- struct{}
	told  bool
}

func (w *firstWrite) Write(b []byte) (int, error) {
	if !w.told {
		w.told = true
		w.first <- struct{}{}
	}
	return w.to.Write(b)
}

// TestTornTail cuts the file at each byte of its last records, and spoils them as a power cut
// would.
func TestTornTail(t *testing.T) {
	until := time.Now().Add(time.Hour)
	d := newFolder(t)
	whole := func() []byte {
		f := openFile(t, d, 0, nil)
		for n := range uint64(4) {
			mustClaimFile(t, f, n, true)
		}
		f.crash()
		b, err := os.ReadFile(filepath.Join(d.Path(), FileName))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}()
	if len(whole) != 5*recordSize {
		t.Fatalf("%d bytes", len(whole))
	}
	again := func(what string, b []byte, remembered uint64) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(d.Path(), FileName), b, 0o600); err != nil {
			t.Fatal(err)
		}
		for round := range 2 { // the second reads what the first made of it
			f := openFile(t, d, 0, nil)
			for n := range uint64(4) {
				want := n >= remembered && round == 0
				if ok, err := f.Claim(t.Context(), replayID(n), [32]byte{1}, until); ok != want ||
					err != nil {
					t.Fatalf("%s, round %d, %d: %v, %v", what, round, n, ok, err)
				}
			}
			f.crash()
		}
	}
	for cut := range 2*recordSize + 1 {
		size := len(whole) - cut
		again(fmt.Sprintf("cut to %d", size), whole[:size], uint64(size/recordSize-1))
	}
	for _, size := range []int{0, 1, recordSize - 1} {
		again(fmt.Sprintf("cut to %d", size), whole[:size], 0)
	}
	zeros := bytes.Clone(whole)
	clear(zeros[3*recordSize+40:])
	again("zeros at the end", zeros, 2)
	again("zeros behind the end", append(bytes.Clone(whole), make([]byte, 50*recordSize+1)...), 4)
	again("a header of zeros", make([]byte, recordSize), 0)
}

func mustClaimFile(t testing.TB, f *File, n uint64, want bool) {
	t.Helper()
	ok, err := f.Claim(t.Context(), replayID(n), [32]byte{1}, time.Now().Add(time.Hour))
	if ok != want || err != nil {
		t.Errorf("Claim(%d): %v, %v; want %v", n, ok, err, want)
	}
}
