// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// randomBytes are the same for the same seed.
func randomBytes(seed uint64, n int) []byte {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), 1})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return b
}

func reversed(b []byte) []byte {
	b = bytes.Clone(b)
	slices.Reverse(b)
	return b
}

// matches lists the matches as text, in the order of their places.
func matches(s *SecretSearch, b []byte) (all []string) {
	unordered := s.Find(b)
	slices.SortFunc(unordered, func(a, b MemoryMatch) int { return a.At - b.At })
	for _, m := range unordered {
		all = append(all, fmt.Sprintf("%d: %s", m.At, m))
	}
	return all
}

func TestFindAtEveryAddress(t *testing.T) {
	secret := randomBytes(1, 100)
	s := NewSecretSearch([]MemorySecret{{Row: "r", Name: "s", Bytes: secret, Integer: true}})
	for _, order := range []struct {
		name  string
		bytes []byte
	}{{"", secret}, {" reversed", reversed(secret)}} {
		for at := range 2 * window {
			for n := 1; n <= len(secret); n++ {
				for _, from := range []int{0, 1, len(secret) - n} {
					if from+n > len(secret) {
						continue
					}
					memory := make([]byte, at+n+3)
					copy(memory[at:], order.bytes[from:from+n])
					if from > 0 && at > 0 {
						memory[at-1] = ^order.bytes[from-1]
					}
					if from+n < len(secret) {
						memory[at+n] = ^order.bytes[from+n]
					}
					var want []string
					if n == len(secret) {
						want = []string{fmt.Sprintf("%d: r: s%s", at, order.name)}
					} else if n >= MinFragment {
						want = []string{fmt.Sprintf("%d: r: s%s, %d bytes from %d of 100", at,
							order.name, n, from)}
					}
					if got := matches(s, memory); !slices.Equal(got, want) {
						t.Fatalf("%d bytes from %d at %d%s: found %q, want %q", n, from, at,
							order.name, got, want)
					}
				}
			}
		}
	}
}

// Nothing but memory's own ends bounds a copy.
func TestFindAtTheEnds(t *testing.T) {
	secret := randomBytes(2, 64)
	s := NewSecretSearch([]MemorySecret{{Row: "r", Name: "s", Bytes: secret}})
	for name, c := range map[string]struct {
		memory []byte
		want   []string
	}{
		"empty":       {nil, nil},
		"all":         {secret, []string{"0: r: s"}},
		"twice":       {append(bytes.Clone(secret), secret...), []string{"0: r: s", "64: r: s"}},
		"second half": {secret[32:], []string{"0: r: s, 32 bytes from 32 of 64"}},
		"first half":  {secret[:32], []string{"0: r: s, 32 bytes from 0 of 64"}},
		"with a gap": {append(append(bytes.Clone(secret[:30]), 0, 0), secret[32:]...),
			[]string{"0: r: s, 30 bytes from 0 of 64", "32: r: s, 32 bytes from 32 of 64"}},
		"short pieces":    {append(append(bytes.Clone(secret[:15]), 0, 0), secret[49:]...), nil},
		"not as a number": {reversed(secret), nil},
	} {
		if got := matches(s, c.memory); !slices.Equal(got, c.want) {
			t.Errorf("%s: found %q, want %q", name, got, c.want)
		}
	}
}

func TestFindParts(t *testing.T) {
	file := randomBytes(3, 200)
	s := NewSecretSearch([]MemorySecret{{Row: "r", Name: "file", Bytes: file, Integer: true,
		Parts: [][2]int{{20, 60}, {64, 180}}}})
	for _, c := range []struct {
		from, to int
		counts   bool
	}{
		{0, 200, true}, {20, 60, false}, {64, 180, false}, {30, 50, false}, {10, 60, false},
		{0, 60, true}, {5, 60, false}, {4, 60, true},
		{20, 75, false}, {20, 76, true}, // of the second part too, but not only
		{70, 195, false}, {70, 196, true}, {180, 200, true}, {0, 16, true}, {0, 15, false},
	} {
		for _, piece := range [][]byte{file[c.from:c.to], reversed(file[c.from:c.to])} {
			if got := matches(s, piece); len(got) > 0 != c.counts {
				t.Errorf("bytes %d to %d: found %q, want something: %v", c.from, c.to, got,
					c.counts)
			}
		}
	}
}

// A stretch that two secrets share belongs to both; the same secret twice is one.
func TestFindSharedBytes(t *testing.T) {
	long := randomBytes(4, 64)
	s := NewSecretSearch([]MemorySecret{
		{Row: "a", Name: "long", Bytes: long}, {Row: "b", Name: "inner", Bytes: long[16:48]},
		{Row: "c", Name: "again", Bytes: long},
	})
	want := []string{"0: a: long", "16: b: inner"}
	if got := matches(s, long); !slices.Equal(got, want) {
		t.Errorf("found %q, want %q", got, want)
	}
}

func TestFindUniform(t *testing.T) {
	secret := append(make([]byte, 100), randomBytes(5, 8)...)
	s := NewSecretSearch([]MemorySecret{{Row: "r", Name: "s", Bytes: secret}})
	if got := matches(s, make([]byte, 4096)); len(got) > 0 {
		t.Errorf("zeros: %q", got)
	}
	if got := matches(s, secret); !slices.Equal(got, []string{"0: r: s"}) {
		t.Errorf("%q", got)
	}
	for name, bad := range map[string][]byte{"only 15": randomBytes(6, 15),
		"too uniform": bytes.Repeat([]byte{1, 2, 3}, 20), "only 0": nil} {
		func() {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, name) {
					t.Errorf("%s: panic %q", name, said)
				}
			}()
			NewSecretSearch([]MemorySecret{{Row: "r", Name: "s", Bytes: bad}})
		}()
	}
}

// slowFind is Find without an index.
func slowFind(secrets []MemorySecret, memory []byte) (all []string) {
	for _, s := range secrets {
		for _, backwards := range []bool{false, true} {
			b := s.Bytes
			if backwards {
				b = reversed(b)
			}
			for start := -len(b) + 1; start < len(memory); start++ {
				run := 0
				for i := range len(b) + 1 {
					if at := start + i; i < len(b) && at >= 0 && at < len(memory) &&
						memory[at] == b[i] {
						run++
						continue
					}
					if run >= MinFragment {
						m := MemoryMatch{&s, i - run, run, backwards, start + i - run}
						all = append(all, fmt.Sprintf("%d: %s", m.At, m))
					}
					run = 0
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// Memory made of pieces of secrets, in both orders, is taken apart again.
func TestFindAgainstSlowFind(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		var secrets []MemorySecret
		for i := range 3 {
			secrets = append(secrets, MemorySecret{Row: "r", Name: fmt.Sprint(i),
				Bytes: randomBytes(r.Uint64()|uint64(i), 40+r.IntN(100)), Integer: true})
		}
		var memory []byte
		for len(memory) < 2000 {
			b := secrets[r.IntN(len(secrets))].Bytes
			if r.IntN(2) == 0 {
				b = reversed(b)
			}
			from := r.IntN(len(b))
			memory = append(memory, b[from:from+r.IntN(len(b)-from+1)]...)
			memory = append(memory, make([]byte, r.IntN(3))...)
		}
		got, want := matches(NewSecretSearch(secrets), memory), slowFind(secrets, memory)
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: found\n%s\nwant\n%s", seed, strings.Join(got, "\n"),
				strings.Join(want, "\n"))
		}
	}
}

// BenchmarkFind searches for as much as 20 rounds leave in memory without any of it.
func BenchmarkFind(b *testing.B) {
	var secrets []MemorySecret
	for i := range 1000 {
		secrets = append(secrets, MemorySecret{Row: "r", Name: fmt.Sprint(i),
			Bytes: randomBytes(uint64(i), 256), Integer: true})
	}
	s := NewSecretSearch(secrets)
	memory := randomBytes(1<<15, 16<<20)
	b.SetBytes(int64(len(memory)))
	for b.Loop() {
		if len(s.Find(memory)) > 0 {
			b.Fatal("found something")
		}
	}
}
