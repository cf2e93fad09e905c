// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// memoryCount counts hits: full copies and fragments.
type memoryCount struct{ full, fragments int }

func (c memoryCount) String() string { return fmt.Sprintf("%d+%d", c.full, c.fragments) }

func (c memoryCount) total() int { return c.full + c.fragments }

// memoryCounts is a column of the table: what lay in a process's memory at one moment.
type memoryCounts struct {
	name             string
	unlocked, locked map[string]memoryCount // by row
	// hits in memory that is not locked, by the secret's name
	secrets map[string]int
	scan    *testkit.ProcessScan
	heap    string
}

func countMemory(name string, scan *testkit.ProcessScan) *memoryCounts {
	c := &memoryCounts{
		name: name, scan: scan,
		unlocked: make(map[string]memoryCount), locked: make(map[string]memoryCount),
		secrets: make(map[string]int),
	}
	for _, h := range scan.Hits {
		in := c.locked
		if !h.Region.Locked {
			in = c.unlocked
			c.secrets[h.Secret.Row+": "+h.Secret.Name]++
		}
		n := in[rowOf(h)]
		if h.Full() {
			n.full++
		} else {
			n.fragments++
		}
		in[rowOf(h)] = n
	}
	return c
}

// memoryTable prints columns side by side: copies+fragments in memory that is not locked, and in
// brackets in memory that is.
func memoryTable(columns []*memoryCounts) string {
	var b strings.Builder
	line := func(name string, cell func(c *memoryCounts) string) {
		fmt.Fprintf(&b, "\n| %-36s", name)
		for _, c := range columns {
			fmt.Fprintf(&b, " | %-16s", cell(c))
		}
		b.WriteString(" |")
	}
	line("not locked (locked)", func(c *memoryCounts) string { return c.name })
	line("---", func(*memoryCounts) string { return "---" })
	for _, row := range memoryRows {
		line(row, func(c *memoryCounts) string {
			return fmt.Sprintf("%s (%s)", c.unlocked[row], c.locked[row])
		})
	}
	line("KB searched, of these locked", func(c *memoryCounts) string {
		return fmt.Sprintf("%d, %d", c.scan.Read>>10, c.scan.Locked>>10)
	})
	line("KB of heap in use, collections", func(c *memoryCounts) string { return c.heap })
	return b.String()
}

// memoryLimit is how much of a row may be found outside locked memory.
type memoryLimit int

const (
	_       memoryLimit = iota // a row that nobody has thought of
	counted                    // any number
	none                       // nothing
	// one copy of each secret: crypto/pbkdf2 and crypto/hkdf leave one whenever the file is opened
	// or sealed
	oncePerUnlock
	stray // two copies
	// not more than at the moment before: what loading a key leaves does not grow with the rounds
	notMoreSoFar
)

// memoryTargets is what must hold: in the ordinary build when the client is idle, when the heap was
// scrubbed, and in the build with GOEXPERIMENT=runtimesecret after a garbage collection.
var memoryTargets = map[string]struct{ idle, scrubbed, secret memoryLimit }{
	rowPassphrase: {oncePerUnlock, none, none},
	rowKeyFile:    {none, none, none},
	rowKey:        {notMoreSoFar, none, none},
	rowSession:    {none, none, none},
	rowContent:    {none, none, none},
	rowWidened:    {counted, none, none},
	rowResidue:    {counted, none, none},
	rowOAEP:       {counted, none, none},
	rowAPIKey:     {counted, counted, counted}, // net/http takes headers as strings
}

// mustMeet fails the test for every row of c that is beyond its limit. before is the column of the
// moment before, unlocks how often the key store's file was opened or sealed.
func (c *memoryCounts) mustMeet(t testing.TB, before *memoryCounts, unlocks int,
	limit func(row string) memoryLimit) {
	t.Helper()
	for _, row := range memoryRows {
		n := c.unlocked[row]
		switch limit(row) {
		case none:
			if n.total() > 0 {
				t.Errorf("%s: %s of %q, want none%s", c.name, n, row, c.listing(row))
			}
		case stray:
			if n.total() > 2 {
				t.Errorf("%s: %s of %q, want two at most%s", c.name, n, row, c.listing(row))
			}
		case notMoreSoFar:
			if m := before.unlocked[row]; n.total() > m.total() {
				t.Errorf("%s: %s of %q, %q had %s%s", c.name, n, row, before.name, m,
					c.listing(row))
			}
		case counted:
		case oncePerUnlock:
			for name, n := range c.secrets {
				if strings.HasPrefix(name, row+": ") && n > unlocks {
					t.Errorf("%s: %d of %q, want at most %d", c.name, n, name, unlocks)
				}
			}
		default:
			t.Errorf("nothing is said of the row %q", row)
		}
	}
}

const listed = 8 // hits that a failure shows

func (c *memoryCounts) listing(row string) string {
	var b strings.Builder
	n := 0
	for _, h := range c.scan.Hits {
		if rowOf(h) != row || h.Region.Locked {
			continue
		}
		if n++; n > listed {
			b.WriteString("\n\t…")
			break
		}
		fmt.Fprintf(&b, "\n\t%s", h)
	}
	return b.String()
}

// saveHits writes all hits into the folder that SEALEDCHAT_MEMORY_HITS names.
func saveHits(t testing.TB, columns []*memoryCounts) {
	t.Helper()
	dir := os.Getenv("SEALEDCHAT_MEMORY_HITS")
	if dir == "" {
		return
	}
	var b strings.Builder
	for _, c := range columns {
		for _, h := range c.scan.Hits {
			fmt.Fprintf(&b, "%s\tlocked=%v\t%s\n", c.name, h.Region.Locked, h)
		}
	}
	name := strings.NewReplacer("/", "-", " ", "-").Replace(t.Name()) + ".txt"
	if err := os.WriteFile(filepath.Join(dir, name), []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// hasNew reports whether there is a copy or a fragment of row where before had none. There may be
// more than one: a register that was saved in the middle of copying holds pieces too, for a while.
func (c *memoryCounts) hasNew(before *memoryCounts, row string, full, locked bool) bool {
	return slices.ContainsFunc(c.scan.Hits, func(h testkit.MemoryHit) bool {
		return rowOf(h) == row && h.Full() == full && h.Region.Locked == locked &&
			!slices.ContainsFunc(before.scan.Hits, func(old testkit.MemoryHit) bool {
				return old.Addr == h.Addr && old.Secret.Name == h.Secret.Name && old.Len == h.Len
			})
	})
}
