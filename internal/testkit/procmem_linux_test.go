// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package testkit

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

const scannedVar = "SEALEDCHAT_TEST_SCANNED" // a folder; set in the child

// Where the child puts its secret. Each place is a copy.
var scannedPlaces = []string{
	"heap", "locked", "no access", "read only", "two pages", "shared file", "not dumped",
	"untouched pages around it",
}

// TestScannedChild is the process that TestScanProcess reads.
func TestScannedChild(t *testing.T) {
	dir := os.Getenv(scannedVar)
	if dir == "" {
		t.Skip("it is for TestScanProcess")
	}
	page := os.Getpagesize()
	mapped := func(pages int) []byte {
		b, err := syscall.Mmap(-1, 0, pages*page, syscall.PROT_READ|syscall.PROT_WRITE,
			syscall.MAP_PRIVATE|syscall.MAP_ANON)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	scratch := mapped(1)[:256]
	if _, err := io.ReadFull(os.Stdin, scratch); err != nil {
		t.Fatal(err)
	}
	// of no constant size, or it were on the stack, which leaves copies when it grows
	heap := slices.Concat(make([]byte, 3), scratch)
	locked := mapped(1)
	copy(locked, scratch)
	noAccess, readOnly, notDumped := mapped(1), mapped(1), mapped(1)
	copy(noAccess, scratch)
	copy(readOnly, scratch)
	copy(notDumped[100:], scratch)
	copy(mapped(2)[page-128:], scratch)
	copy(mapped(1 << 12)[1000*page:], scratch) // the pages around it were never touched
	file, err := os.OpenFile(filepath.Join(dir, "shared"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := syscall.Mmap(int(file.Fd()), 0, page, syscall.PROT_READ|syscall.PROT_WRITE,
		syscall.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	copy(shared, scratch)
	clear(scratch)
	for _, err := range []error{
		syscall.Mlock(locked), syscall.Mprotect(noAccess, syscall.PROT_NONE),
		syscall.Mprotect(readOnly, syscall.PROT_READ),
		// MADV_DONTDUMP
		syscall.Madvise(notDumped, syscall.MADV_NOHUGEPAGE), syscall.Madvise(notDumped, 16),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("ready")
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil || line != "go on\n" || heap[3] == 0 {
		t.Fatal(line, err)
	}
	fmt.Println("still here")
}

func TestScanProcess(t *testing.T) {
	NeedLocked(t, 64<<10)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "shared"), make([]byte, os.Getpagesize()),
		0o600); err != nil {
		t.Fatal(err)
	}
	cmd := Child(t, []string{scannedVar + "=" + dir}, "-test.run=^TestScannedChild$")
	in, lines := StartChild(t, cmd)
	secret, absent := randomBytes(7, 256), randomBytes(8, 256)
	if _, err := in.Write(secret); err != nil {
		t.Fatal(err)
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("the child says %q, %v", line, err)
	}
	scan, err := ScanProcess(cmd.Process.Pid, NewSecretSearch([]MemorySecret{
		{Row: "r", Name: "secret", Bytes: secret}, {Row: "r", Name: "absent", Bytes: absent},
	}))
	if errors.Is(err, fs.ErrPermission) {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Skip("this process may not read the memory of its children:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	locked, notDumped, perms := 0, 0, []string{}
	for _, h := range scan.Hits {
		if h.Secret.Name != "secret" || !h.Full() {
			t.Errorf("unexpected: %s", h)
		}
		if h.Region.Locked {
			locked++
		}
		if h.Region.DontDump {
			notDumped++
		}
		perms = append(perms, h.Region.Perms)
		if h.Addr < h.Region.Start || h.Addr+256 > h.Region.End {
			t.Errorf("%s is not in %x-%x", h, h.Region.Start, h.Region.End)
		}
	}
	slices.Sort(perms)
	want := []string{"---p", "r--p", "rw-p", "rw-p", "rw-p", "rw-p", "rw-p", "rw-s"}
	if len(scan.Hits) != len(scannedPlaces) || !slices.Equal(perms, want) || locked != 1 ||
		notDumped != 1 {
		t.Errorf("%d hits in %v, %d locked, %d not dumped; want one each of %v", len(scan.Hits),
			perms, locked, notDumped, scannedPlaces)
	}
	if scan.Read < 100<<10 || scan.Read > 500<<20 || scan.Locked < os.Getpagesize() {
		t.Errorf("%d bytes were read, %d of them locked", scan.Read, scan.Locked)
	}
	if _, err := io.WriteString(in, "go on\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := lines.ReadString('\n'); err != nil || line != "still here\n" {
		t.Errorf("after the scan the child says %q, %v", line, err)
	}
	_, _ = io.Copy(io.Discard, lines)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := ScanProcess(cmd.Process.Pid, NewSecretSearch([]MemorySecret{{Row: "r",
		Name: "secret", Bytes: secret}})); err == nil {
		t.Error("a process that has ended was scanned")
	}
}

func TestParseSmaps(t *testing.T) {
	const text = `00400000-0040b000 r-xp 00000000 08:01 42                         /usr/bin/two words
Size:                 44 kB
Rss:                  40 kB
Swap:                  0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0000002000 rw-p 00000000 00:00 0
Rss:                   0 kB
Swap:                  8 kB
VmFlags: rd wr mr mw me lo dd ac
7ffc00000000-7ffc00001000 ---p 00000000 00:00 0
Rss:                   0 kB
Swap:                  0 kB
VmFlags: mr mw me
`
	got, err := parseSmaps(strings.NewReader(text))
	want := []MemoryRegion{
		{0x400000, 0x40b000, "r-xp", "/usr/bin/two words", false, false, true},
		{0x7f0000000000, 0x7f0000002000, "rw-p", "", true, true, true},
		{0x7ffc00000000, 0x7ffc00001000, "---p", "", false, false, false},
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
	for i, skipped := range []bool{true, false, true} {
		if want[i].skipped() != skipped {
			t.Errorf("region %d: skipped is %v", i, !skipped)
		}
	}
	for _, bad := range []string{"Rss: 4 kB\n", "x-y rw-p 0 0:0 0\n", "1000 rw-p 0 0:0 0\n",
		"1000-2000 rw-p\n"} {
		if got, err := parseSmaps(strings.NewReader(bad)); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

// The stack of a process has its environment.
func TestScanFindsEnvironment(t *testing.T) {
	secret := []byte(hex.EncodeToString(randomBytes(9, 32)))
	cmd := exec.CommandContext(t.Context(), "sleep", "60")
	cmd.Env = append(os.Environ(), "LEAK="+string(secret))
	if err := cmd.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	// until it has become sleep
	for until := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		scan, err := ScanProcess(cmd.Process.Pid, NewSecretSearch([]MemorySecret{{Row: "r",
			Name: "s", Bytes: secret}}))
		if errors.Is(err, fs.ErrPermission) {
			t.Skip(err)
		}
		if err == nil && len(scan.Hits) > 0 && scan.Hits[0].Region.Path == "[stack]" {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("a secret in the environment is not found: %v", err)
		}
	}
}

func TestUsedTicks(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 250 31 0 0 20 0 1 0 5"
	for stat, want := range map[string]int{
		"12 (go)" + rest:                       281,
		"12 (a ) S 1 b) (c)" + rest:            281,
		"":                                     -1,
		"12 (go)":                              -1,
		"12 (go) S 1 2 3":                      -1,
		"12 (go) S 1 2 3 4 5 6 7 8 9 10 x 31":  -1,
		"12 (go) S 1 2 3 4 5 6 7 8 9 10 250 x": -1,
	} {
		got, err := usedTicks(stat)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("%q: %d, %v, want %d", stat, got, err, want)
		}
	}
}
