// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat_test

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
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// TestProcessCore looks at what a crash leaves on disk: the client's locked memory is marked as not to be dumped, no page
// of it is in a core file, and once the heap was scrubbed, or the build erases what it leaves, no secret at all.
// The core comes from SIGABRT where the kernel writes one into the working folder, or else from gcore.
func TestProcessCore(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes core files")
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
	lockedPages := 0
	for _, region := range scan.Regions {
		if !region.Locked {
			continue
		}
		lockedPages += region.Size() / os.Getpagesize()
		if !region.DontDump {
			t.Errorf("%d bytes of locked memory at %#x may be dumped", region.Size(), region.Start)
		}
	}
	if lockedPages < 2 {
		t.Errorf("%d pages are locked", lockedPages)
	}
	file, how := r.core(t)
	core, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	dumped := dumpedRanges(t, core)
	for _, region := range scan.Regions {
		if region.Locked && overlaps(dumped, region) {
			t.Errorf("locked memory at %#x is in the core", region.Start)
		}
	}
	if n := len(testkit.NewSecretSearch([]testkit.MemorySecret{canary}).Find(core)); n != 1 {
		t.Errorf("control: the core holds %d canaries, want the one on the heap", n)
	}
	counts, listing := make(map[string]int), ""
	for _, m := range search.Find(core) {
		row := rowOf(testkit.MemoryHit{MemoryMatch: m, Before: core[max(0, m.At-64):m.At]})
		counts[row]++
		if row != rowAPIKey && len(listing) < 2000 {
			listing += fmt.Sprintf("\n\t%s at %#x of the file", m, m.At)
		}
	}
	t.Logf("a core of %d KB from %s; %d pages of locked memory are not in it; of the secrets it holds: %v", len(core)>>10, how, lockedPages, counts)
	if memoryAsserted && listing != "" {
		t.Errorf("secrets are in the core:%s", listing)
	}
}

// core makes a core file of the client, and says how.
func (r *memoryRun) core(t *testing.T) (file, how string) {
	t.Helper()
	pattern, _ := os.ReadFile("/proc/sys/kernel/core_pattern")
	if len(pattern) > 0 && pattern[0] != '|' && pattern[0] != '/' && r.tell("allow cores") == "allowed" {
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
		t.Skipf("no core to look at: core_pattern is %q, and there is no gcore", bytes.TrimSpace(pattern))
	}
	prefix := filepath.Join(t.TempDir(), "core")
	pid := r.cmd.Process.Pid
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, gcore, "-o", prefix, fmt.Sprint(pid)).CombinedOutput(); err != nil {
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
