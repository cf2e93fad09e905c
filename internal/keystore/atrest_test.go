// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package keystore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/keyfile"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

func TestDataAtRest(t *testing.T) {
	s, _ := createWeak(t, storeDir(t), nil)
	seed := testkit.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for _, size := range []int{0, 1, 15, 16, 17, 1000, 1 << 20} {
		for _, label := range []string{"", "l", "a label, with ümlauts\x00\n",
			strings.Repeat("l", 1024)} {
			plain := make([]byte, size)
			for i := range plain {
				plain[i] = byte(r.Uint32())
			}
			before := bytes.Clone(plain)
			a, err1 := s.Seal(label, plain)
			b, err2 := s.Seal(label, plain)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			if len(a) != size+69 || bytes.Equal(a, b) || !bytes.Equal(plain, before) {
				t.Errorf("%d bytes became %d, equal: %v", size, len(a), bytes.Equal(a, b))
			}
			if size >= 16 && bytes.Contains(a, plain[:16]) {
				t.Error("the plaintext is in it")
			}
			sealed := bytes.Clone(a)
			if got, err := s.Open(label, a); err != nil || !bytes.Equal(got, before) ||
				!bytes.Equal(a, sealed) {
				t.Errorf("%d bytes under %q: %d bytes, %v", size, label, len(got), err)
			}
		}
	}
}

func TestDataAtRestRefusals(t *testing.T) {
	s, _ := createWeak(t, storeDir(t), nil)
	other, _ := createWeak(t, storeDir(t), nil)
	sealed, err := s.Seal("label", []byte("some data"))
	if err != nil {
		t.Fatal(err)
	}
	for _, label := range []string{"", "Label", "label ", "labe", "label\x00",
		strings.Repeat("l", 1025)} {
		_, err := s.Open(label, sealed)
		wantError(t, "label "+label, err, fault.ErrDecryption)
	}
	_, err = other.Open("label", sealed)
	wantError(t, "another store", err, fault.ErrDecryption)
	for i := range sealed {
		for bit := range 8 {
			bad := bytes.Clone(sealed)
			bad[i] ^= 1 << bit
			if _, err := s.Open("label", bad); !errors.Is(err, fault.ErrDecryption) {
				t.Errorf("bit %d of byte %d: %v", bit, i, err)
			}
		}
	}
	for n := range sealed {
		_, err := s.Open("label", sealed[:n])
		wantError(t, "cut end", err, fault.ErrDecryption)
		if n > 0 {
			_, err = s.Open("label", sealed[n:])
			wantError(t, "cut beginning", err, fault.ErrDecryption)
		}
	}
	_, err = s.Open("label", append(bytes.Clone(sealed), 0))
	wantError(t, "more", err, fault.ErrDecryption)
	_, err = s.Open("label", append(bytes.Clone(sealed), sealed...))
	wantError(t, "twice", err, fault.ErrDecryption)
	for _, generation := range []uint32{0, 2, 1<<32 - 1} {
		bad := bytes.Clone(sealed)
		binary.BigEndian.PutUint32(bad[5:], generation)
		_, err = s.Open("label", bad)
		wantError(t, "another generation", err, fault.ErrDecryption)
	}
	_, err = s.Seal(strings.Repeat("l", 1025), nil)
	wantError(t, "a long label", err, fault.ErrInvalidRequest)

	big, err := s.Seal("label", make([]byte, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	seed := testkit.Seed(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 50 {
		i, bit := r.IntN(len(big)), r.IntN(8)
		big[i] ^= 1 << bit
		if _, err := s.Open("label", big); !errors.Is(err, fault.ErrDecryption) {
			t.Errorf("seed %d: bit %d of byte %d: %v", seed, bit, i, err)
		}
		big[i] ^= 1 << bit
		n := r.IntN(len(big))
		if _, err := s.Open("label", big[:n]); !errors.Is(err, fault.ErrDecryption) {
			t.Errorf("seed %d: cut at %d: %v", seed, n, err)
		}
	}
}

func TestDataAtRestLimit(t *testing.T) {
	s, _ := createWeak(t, storeDir(t), nil)
	if keyfile.MaxDataSize != 100<<20 {
		t.Errorf("limit %d", keyfile.MaxDataSize)
	}
	// zeros that nobody touches take no memory
	huge := make([]byte, keyfile.MaxDataSize+keyfile.DataOverhead+1)
	allocated := testing.AllocsPerRun(1, func() {
		_, err := s.Seal("l", huge[:keyfile.MaxDataSize+1])
		wantError(t, "Seal", err, fault.ErrTooLarge)
		_, err = s.Open("l", huge)
		wantError(t, "Open", err, fault.ErrTooLarge)
	})
	if allocated > 50 {
		t.Errorf("%v allocations", allocated)
	}
	_, err := s.Open("l", huge[:len(huge)-1])
	wantError(t, "Open of zeros", err, fault.ErrDecryption)
}

// What was sealed before opens after changes of the passphrase, after rotations, and in other
// processes.
func TestDataAtRestLasts(t *testing.T) {
	dir := storeDir(t)
	s, _ := createWeak(t, dir, nil)
	there := openWeak(t, dir, passphrase, nil)
	type blob struct{ label, text string }
	sealed := make(map[blob][]byte)
	keep := func(s *Store, b blob) {
		t.Helper()
		var err error
		if sealed[b], err = s.Seal(b.label, []byte(b.text)); err != nil {
			t.Fatal(err)
		}
	}
	opens := func(what string, s *Store) {
		t.Helper()
		for b, x := range sealed {
			if plain, err := s.Open(b.label, x); err != nil || string(plain) != b.text {
				t.Errorf("%s: %q: %q, %v", what, b.text, plain, err)
			}
		}
	}
	keep(s, blob{"a", "first"})
	opens("another process", there)
	if err := s.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	keep(s, blob{"b", "after a rotation"})
	keep(there, blob{"b", "there"})
	opens("after a rotation", s)
	old, changed := passphrase, passphrase2
	for i := range 3 {
		if err := s.ChangePassphrase(t.Context(), secret(t, old), secret(t, changed)); err != nil {
			t.Fatal(err)
		}
		old, changed = changed, old
		keep(s, blob{"c", strings.Repeat("x", i)})
	}
	opens("after changes of the passphrase", s)
	opens("opened anew", openWeak(t, dir, old, nil))
	_, err := there.Open("c", sealed[blob{"c", "xx"}])
	wantError(t, "a process that does not know the new data key", err, fault.ErrPassphrase)

	// In file order: the newest generation seals.
	body, _ := bodyOnDisk(t, dir, old)
	var generations []uint32
	for _, k := range body.DataKeys {
		generations = append(generations, k.Generation)
	}
	if !slices.Equal(generations, []uint32{1, 2, 3, 4}) ||
		binary.BigEndian.Uint32(sealed[blob{"c", "xx"}][5:]) != 4 {
		t.Errorf("generations %v", generations)
	}

	ephemeral, _ := weakStore(t, nil)
	_, err = ephemeral.Seal("l", nil)
	wantError(t, "Seal", err, fault.ErrInvalidRequest)
	_, err = ephemeral.Open("a", sealed[blob{"a", "first"}])
	wantError(t, "Open", err, fault.ErrInvalidRequest)
}
