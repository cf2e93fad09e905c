// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestProcessCore looks at what a crash leaves on disk: no page of locked memory is in a core file,
// and once the heap was scrubbed, or in the build that erases what is left there, no secret at all,
// nor in the registers that the file shows. The core comes from SIGABRT where the kernel writes one
// into the working folder, and memguard's limit of 0 can be undone, or else from gcore, which
// writes more than a gigabyte.
func TestProcessCore(t *testing.T) {
	if underRace || os.Getenv(memoryVar) != "full" {
		t.Skip("it writes a large core file; with " + memoryVar + "=full it does")
	}
	r, _, search := memoryScenario{protocol: "v1"}.play(t)
	if runtimeSecret {
		r.tell("gc")
	} else {
		r.tell("scrub")
	}
	canary := testkit.MemorySecret{Row: "canary", Name: "canary", Bytes: randomText(64)}
	r.tell("plant heap", canary.Bytes)
	r.tell("plant locked and not dumped", canary.Bytes)
	scan := r.scan(testkit.NewSecretSearch([]testkit.MemorySecret{canary}))
	if len(scan.Hits) != 2 {
		t.Fatalf("control: %d canaries are in the process, want 2", len(scan.Hits))
	}
	lockedPages := mustNotBeDumped(t, scan)
	file, how := r.core(t)
	core := mapFile(t, file)
	dumped := dumpedRanges(t, core)
	for _, region := range scan.Regions {
		if region.Locked && overlaps(dumped, region) {
			t.Errorf("locked memory at %#x is in the core", region.Start)
		}
	}
	canaries := 0
	for _, m := range testkit.NewSecretSearch([]testkit.MemorySecret{canary}).Find(core) {
		if m.Full() { // pieces are in the registers that it was copied with
			canaries++
		}
	}
	if canaries != 1 {
		t.Errorf("control: the core holds %d canaries, want the one on the heap", canaries)
	}
	counts, listing := make(map[string]int), ""
	for _, m := range search.Find(core) {
		row := rowOf(testkit.MemoryHit{MemoryMatch: m, Before: core[max(0, m.At-64):m.At]})
		counts[row]++
		if row != rowAPIKey && len(listing) < 2000 {
			listing += fmt.Sprintf("\n\t%s at %#x of the file", m, m.At)
		}
	}
	t.Logf("a core of %d KB from %s; %d pages of locked memory are not in it; of the secrets it "+
		"holds: %v%s",
		len(core)>>10, how, lockedPages, counts, listing)
	if listing != "" {
		t.Error("secrets are in the core")
	}
}

// mustNotBeDumped fails the test unless all locked memory is marked as not to be dumped. It returns
// how many pages that is.
func mustNotBeDumped(t testing.TB, scan *testkit.ProcessScan) (pages int) {
	t.Helper()
	for _, region := range scan.Regions {
		if !region.Locked {
			continue
		}
		pages += region.Size() / os.Getpagesize()
		if !region.DontDump {
			t.Errorf("%d bytes of locked memory at %#x may be dumped", region.Size(), region.Start)
		}
	}
	if pages < 2 {
		t.Errorf("%d pages are locked", pages)
	}
	return pages
}

func mapFile(t *testing.T, name string) []byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b, err := syscall.Mmap(int(f.Fd()), 0, int(info.Size()), syscall.PROT_READ, syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Munmap(b) })
	return b
}

// core makes a core file of the client, and says how.
func (r *memoryRun) core(t *testing.T) (file, how string) {
	t.Helper()
	pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	if len(pattern) > 0 && pattern[0] != '|' && pattern[0] != '/' &&
		r.tell("allow cores") == "allowed" {
		r.send([]byte("abort\n"))
		_ = r.cmd.Wait()
		files, err := filepath.Glob(filepath.Join(r.cmd.Dir, "*"))
		if err == nil && len(files) == 1 {
			return files[0], "SIGABRT"
		}
		t.Fatalf("SIGABRT left %v: %s", files, r.cmd.ProcessState)
	}
	gcore, err := exec.LookPath("gcore")
	if err != nil {
		t.Skipf("no core to look at: core_pattern is %q, and there is no gcore",
			bytes.TrimSpace(pattern))
	}
	prefix := filepath.Join(t.TempDir(), "core")
	pid := r.cmd.Process.Pid
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, gcore, "-o", prefix,
		fmt.Sprint(pid)).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "not permitted") {
			t.Skipf("gcore may not trace the client: %s", out)
		}
		t.Fatalf("gcore: %v: %s", err, out)
	}
	return fmt.Sprintf("%s.%d", prefix, pid), "gcore"
}

type addressRange struct{ start, end uint64 }

// dumpedRanges are the addresses that a core file has the content of.
func dumpedRanges(t *testing.T, core []byte) (all []addressRange) {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(core))
	if err != nil || f.Type != elf.ET_CORE {
		t.Fatal("not a core file:", errors.Join(err))
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && p.Filesz > 0 {
			all = append(all, addressRange{p.Vaddr, p.Vaddr + p.Filesz})
		}
	}
	if len(all) < 3 {
		t.Fatalf("the core has %d ranges of memory", len(all))
	}
	return all
}

func overlaps(all []addressRange, r testkit.MemoryRegion) bool {
	for _, a := range all {
		if a.start < r.End && r.Start < a.end {
			return true
		}
	}
	return false
}
