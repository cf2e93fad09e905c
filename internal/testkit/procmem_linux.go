// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// MemoryRegion is one line of /proc/PID/smaps.
type MemoryRegion struct {
	Start, End uint64
	Perms      string // "rw-p" and the like
	Path       string // of the file, or "[heap]", "[stack]"; "" for anonymous memory
	Locked     bool   // "lo" among the VmFlags
	DontDump   bool   // "dd"
	Resident   bool   // some of it is in RAM or in swap
}

// Size is its length in bytes.
func (r MemoryRegion) Size() int { return int(r.End - r.Start) }

// skipped reports whether a region cannot hold secrets of the process: files that it cannot change,
// and pages of the kernel.
func (r MemoryRegion) skipped() bool {
	switch r.Path {
	case "[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]":
		return true
	}
	return !r.Resident || strings.HasPrefix(r.Path, "/") && !strings.Contains(r.Perms, "w")
}

// MemoryHit is a match in a process.
type MemoryHit struct {
	MemoryMatch
	Addr   uint64
	Region MemoryRegion
	// Before and After are up to 64 bytes on either side.
	Before, After []byte
}

func (h MemoryHit) String() string {
	return fmt.Sprintf("%s at %#x in %s %s", h.MemoryMatch, h.Addr, h.Region.Perms, h.Region.Path)
}

// ProcessScan is the result of searching a process.
type ProcessScan struct {
	Hits    []MemoryHit
	Regions []MemoryRegion // of the whole process
	Read    int            // bytes that were searched
	Locked  int            // bytes of those that were locked
	Took    time.Duration
}

// ScanProcess stops the process, searches all memory that it can write to or that no file backs,
// locked or not, readable or not, and lets it continue. The caller needs the right to trace the
// process; the error is [fs.ErrPermission] without it.
func ScanProcess(pid int, s *SecretSearch) (*ProcessScan, error) {
	begin := time.Now()
	if err := stopProcess(pid); err != nil {
		return nil, err
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	regions, err := MemoryRegions(pid)
	if err != nil {
		return nil, err
	}
	scan := &ProcessScan{Regions: regions}
	err = readProcess(pid, regions, func(r MemoryRegion, addr uint64, b []byte) {
		scan.Read += len(b)
		if r.Locked {
			scan.Locked += len(b)
		}
		for _, m := range s.Find(b) {
			end := m.At + m.Len
			before, after := slices.Clone(b[max(0, m.At-64):m.At]),
				slices.Clone(b[end:min(len(b), end+64)])
			scan.Hits = append(scan.Hits, MemoryHit{m, addr + uint64(m.At), r, before, after})
		}
	})
	scan.Took = time.Since(begin)
	return scan, err
}

// stopTicks is how much processor time a process may use after it was told to stop: a second.
const stopTicks = 100

// stopProcess sends SIGSTOP and waits until every thread has stopped, even if a busy machine delays
// that. It gives up if the process continues to work.
func stopProcess(pid int) error {
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return fmt.Errorf("testkit: stopping process %d: %w", pid, err)
	}
	for start, first := 0, true; ; time.Sleep(time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			return fmt.Errorf("testkit: process %d is gone", pid)
		}
		if !slices.ContainsFunc(threads, isRunning) {
			return nil
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return fmt.Errorf("testkit: process %d: %w", pid, err)
		}
		used, err := usedTicks(string(text))
		if err != nil {
			return fmt.Errorf("testkit: process %d: %w", pid, err)
		}
		if first {
			start, first = used, false
		}
		if used-start > stopTicks {
			return fmt.Errorf("testkit: process %d does not stop", pid)
		}
	}
}

// usedTicks is the processor time of a process, in hundredths of a second: fields 14 and 15 of its
// stat.
func usedTicks(stat string) (int, error) {
	at := strings.LastIndex(stat, ") ") // the name before may hold anything
	fields := strings.Fields(stat[at+1:])
	if at < 0 || len(fields) < 13 {
		return 0, fmt.Errorf("%d fields in its stat", len(fields))
	}
	user, err := strconv.Atoi(fields[11])
	if err != nil {
		return 0, err
	}
	system, err := strconv.Atoi(fields[12])
	return user + system, err
}

func isRunning(stat string) bool {
	text, err := os.ReadFile(stat)
	if err != nil {
		return false // the thread has ended
	}
	_, rest, _ := strings.Cut(string(text), ") ") // the name before may hold anything
	return !strings.HasPrefix(rest, "T") && !strings.HasPrefix(rest, "t")
}

// MemoryRegions reads /proc/PID/smaps.
func MemoryRegions(pid int) ([]MemoryRegion, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, fmt.Errorf("testkit: %w", err)
	}
	defer f.Close()
	return parseSmaps(f)
}

func parseSmaps(f io.Reader) ([]MemoryRegion, error) {
	var all []MemoryRegion
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		name, isField := strings.CutSuffix(fields[0], ":")
		switch {
		case !isField:
			r, err := parseRegion(fields)
			if err != nil {
				return nil, err
			}
			all = append(all, r)
		case len(all) == 0:
			return nil, errors.New("testkit: smaps begins with a field")
		case name == "Rss" || name == "Swap":
			r := &all[len(all)-1]
			r.Resident = r.Resident || fields[1] != "0"
		case name == "VmFlags":
			r := &all[len(all)-1]
			r.Locked = slices.Contains(fields, "lo")
			r.DontDump = slices.Contains(fields, "dd")
		}
	}
	return all, lines.Err()
}

// parseRegion reads "start-end perms offset device inode path".
func parseRegion(fields []string) (r MemoryRegion, err error) {
	bad := fmt.Errorf("testkit: not a region: %q", strings.Join(fields, " "))
	if len(fields) < 5 {
		return r, bad
	}
	start, end, _ := strings.Cut(fields[0], "-")
	if r.Start, err = strconv.ParseUint(start, 16, 64); err != nil {
		return r, bad
	}
	if r.End, err = strconv.ParseUint(end, 16, 64); err != nil {
		return r, bad
	}
	r.Perms, r.Path = fields[1], strings.Join(fields[5:], " ")
	return r, nil
}

// readProcess calls found with each stretch of present pages.
func readProcess(pid int, regions []MemoryRegion, found func(r MemoryRegion, addr uint64,
	b []byte)) error {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return fmt.Errorf("testkit: %w", err)
	}
	defer mem.Close()
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return fmt.Errorf("testkit: %w", err)
	}
	defer pagemap.Close()
	var buf []byte
	for _, r := range regions {
		if r.skipped() {
			continue
		}
		stretches, err := presentPages(pagemap, r)
		if err != nil {
			return err
		}
		for _, s := range stretches {
			buf = slices.Grow(buf[:0], s.Size())[:s.Size()]
			if _, err := mem.ReadAt(buf, int64(s.Start)); err != nil {
				return fmt.Errorf("testkit: reading %x-%x %s of process %d: %w", s.Start, s.End,
					r.Path, pid, err)
			}
			found(r, s.Start, buf)
		}
	}
	clear(buf)
	return nil
}

// presentPages are the parts of r that are in RAM or in swap. The others are zeros, or as in the
// file.
func presentPages(pagemap io.ReaderAt, r MemoryRegion) ([]MemoryRegion, error) {
	const present, swapped = 1 << 63, 1 << 62
	page := uint64(os.Getpagesize())
	entries := make([]byte, (r.End-r.Start)/page*8)
	if _, err := pagemap.ReadAt(entries, int64(r.Start/page*8)); err != nil {
		return nil, fmt.Errorf("testkit: pagemap of %x-%x %s: %w", r.Start, r.End, r.Path, err)
	}
	var all []MemoryRegion
	for i := uint64(0); i < uint64(len(entries)/8); i++ {
		if binary.NativeEndian.Uint64(entries[8*i:])&(present|swapped) == 0 {
			continue
		}
		at := r.Start + i*page
		if n := len(all); n > 0 && all[n-1].End == at {
			all[n-1].End += page
			continue
		}
		s := r
		s.Start, s.End = at, at+page
		all = append(all, s)
	}
	return all, nil
}
