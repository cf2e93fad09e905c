// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package locked

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// "root 65536": user, and lock limit in bytes or "most"
const usersVariable = "SEALEDCHAT_TEST_USERS"

const enough = 8 << 20 // bytes; the users take half of it at most

// TestUsersUnderLimits has 16 concurrent users take memory of every kind in a child process, as
// root and without privileges, under each lock limit: no panic (memguard's would end the child), no
// deadlock, and the level is right.
func TestUsersUnderLimits(t *testing.T) {
	if how := os.Getenv(usersVariable); how != "" {
		usersUnderLimit(t, how)
		return
	}
	for _, user := range []string{"root", "nobody"} {
		for _, limit := range []string{"0", "8192", "65536", "most"} {
			t.Run(user+" "+limit, func(t *testing.T) {
				if os.Getuid() != 0 && user == "root" {
					t.Skip("only root can be root")
				}
				needHardLimit(t, limit)
				ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
				defer cancel()
				cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestUsersUnderLimits$",
					"-test.v")
				cmd.Env = append(os.Environ(), usersVariable+"="+user+" "+limit,
					"GORACE=atexit_sleep_ms=0")
				if out, err := cmd.CombinedOutput(); err != nil ||
					!strings.Contains(string(out), "all users are done") {
					t.Fatalf("%v\n%s", err, out)
				}
			})
		}
	}
}

// needHardLimit skips a test that lowers the lock limit to some bytes where nobody may have as
// many.
func needHardLimit(t *testing.T, bytes string) {
	t.Helper()
	want, err := strconv.ParseUint(bytes, 10, 64)
	if err != nil || os.Getuid() == 0 {
		return
	}
	var present syscall.Rlimit
	if err := syscall.Getrlimit(rlimitMemlock, &present); err != nil {
		t.Fatal(err)
	}
	if present.Max < want {
		t.Skipf("the hard limit of locked memory (ulimit -H -l) is %d bytes, less than %d",
			present.Max, want)
	}
}

func usersUnderLimit(t *testing.T, how string) {
	user, text, _ := strings.Cut(how, " ")
	var present syscall.Rlimit
	if err := syscall.Getrlimit(rlimitMemlock, &present); err != nil {
		t.Fatal(err)
	}
	allowed, unlimited := present.Max, ^uint64(0)
	if text != "most" {
		allowed, _ = strconv.ParseUint(text, 10, 64)
	} else if syscall.Setrlimit(rlimitMemlock, &syscall.Rlimit{Cur: unlimited,
		Max: unlimited}) == nil {
		allowed = unlimited
	}
	if err := syscall.Setrlimit(rlimitMemlock, &syscall.Rlimit{Cur: allowed,
		Max: allowed}); err != nil {
		t.Fatal(err)
	}
	privileged := os.Getuid() == 0
	if user == "nobody" && privileged {
		becomeNobody(t)
		privileged = false
	}
	want := int64(allowed)
	if allowed == unlimited {
		want = -1
	}
	if got := Report().Limit; got != want {
		t.Errorf("the limit is %d, reported %d", want, got)
	}
	free := privileged || want < 0 || want >= enough
	if got := Report().Level; (got == Locked) != (free || want >= int64(os.Getpagesize())) {
		t.Errorf("with nothing in use: %v", got)
	}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() { oneUser(t, free, want) })
	}
	wg.Wait()
	s := Report()
	if s.InUse != 0 || s.Unlocked != 0 || s.Locked != 0 || process.guarded != 0 ||
		(s.Misses == 0) != free {
		t.Errorf("at the end: %+v", s)
	}
	if lockedNow := lockedKB(t); lockedNow != 0 {
		t.Errorf("%d KB stay locked", lockedNow)
	}
	fmt.Println("all users are done")
}

// oneUser takes, under either policy, more than the finite limits of the test allow.
func oneUser(t *testing.T, free bool, most int64) {
	for _, policy := range []Policy{BestEffort, Required} {
		arena := NewArena(policy)
		refused, unlocked := 0, 0
		var all []*Buffer
		for range 10 {
			for _, take := range []func() (*Buffer, error){
				func() (*Buffer, error) {
					return NewWith(policy, 100)
				}, func() (*Buffer, error) { return NewResting(policy, 32) },
				func() (*Buffer, error) {
					return arena.Alloc(700)
				}, func() (*Buffer, error) { return arena.Alloc(chunkSize) },
			} {
				b, err := take()
				var limit *LimitError
				switch {
				case err == nil:
					b.Bytes()[0] = 1
					all = append(all, b)
					if !b.Locked() {
						unlocked++
					}
				case policy != Required || !errors.As(err, &limit):
					t.Errorf("%v: %v", policy, err)
				default:
					refused++
					if limit.Limit != most || limit.Needed < int64(os.Getpagesize()) ||
						limit.Err == nil {
						t.Errorf("the error says %+v", limit)
					}
				}
			}
		}
		switch {
		case free && (refused > 0 || unlocked > 0):
			t.Errorf("policy %d: %d refused, %d unlocked, without a limit", policy, refused,
				unlocked)
		case !free && policy == Required && (refused == 0 || unlocked > 0):
			t.Errorf("required: %d refused, %d unlocked", refused, unlocked)
		case !free && policy == BestEffort && unlocked == 0:
			t.Error("best effort: every buffer is locked beyond the limit")
		}
		for _, b := range all {
			b.Destroy()
		}
		arena.Close()
	}
}

const (
	racersVariable = "SEALEDCHAT_TEST_RACERS" // how long they race
	raceLimit      = 128 << 10                // bytes that they may lock
)

// TestGuardsAgainstPages has some users fill the lock limit with pages again and again while
// another asks for memguard's buffers: memguard must not be asked when the limit is reached. It
// would end the child.
func TestGuardsAgainstPages(t *testing.T) {
	if last, err := time.ParseDuration(os.Getenv(racersVariable)); err == nil {
		raceAtTheLimit(t, last)
		return
	}
	needHardLimit(t, strconv.Itoa(raceLimit))
	last := "2s"
	if os.Getenv("SEALEDCHAT_LONG") == "1" {
		last = "20s"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestGuardsAgainstPages$", "-test.v")
	cmd.Env = append(os.Environ(), racersVariable+"="+last, "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil ||
		!strings.Contains(string(out), "all racers are done") {
		t.Fatalf("%v\n%.3000s", err, out)
	}
}

func raceAtTheLimit(t *testing.T, last time.Duration) {
	const limit = raceLimit
	if err := syscall.Setrlimit(rlimitMemlock, &syscall.Rlimit{Cur: limit,
		Max: limit}); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		becomeNobody(t)
	}
	end := time.Now().Add(last)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			for time.Now().Before(end) {
				a, b := makeBuffer(limit/2), makeBuffer(limit/2)
				a.Destroy()
				b.Destroy()
			}
		})
	}
	guards := 0
	for time.Now().Before(end) {
		b, err := NewResting(BestEffort, 32)
		if err != nil {
			t.Fatal(err)
		}
		if b.m.guard != nil {
			guards++
		}
		b.Destroy()
	}
	wg.Wait()
	if s := Report(); s.InUse != 0 || guards == 0 {
		t.Errorf("%d of memguard's buffers, %+v", guards, s)
	}
	fmt.Println("all racers are done")
}

func becomeNobody(t *testing.T) {
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(nobody),
		syscall.Setuid(nobody)); err != nil {
		t.Fatal(err)
	}
}

func lockedKB(t *testing.T) int {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmLck:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// What the kernel says of a buffer's pages: locked, not dumped, empty after a fork.
func TestPagesSeenFromOutside(t *testing.T) {
	arena := NewArena(BestEffort)
	defer arena.Close()
	inArena, _ := arena.Alloc(100)
	resting, _ := NewResting(BestEffort, 32)
	for name, b := range map[string]*Buffer{"pages": makeBuffer(10000), "arena": inArena,
		"resting": resting} {
		b.Bytes()[0] = 1
		first, last := uintptr(unsafe.Pointer(&b.Bytes()[0])),
			uintptr(unsafe.Pointer(&b.Bytes()[len(b.Bytes())-1]))
		for _, at := range []uintptr{first, last} {
			flags := vmFlags(t, at)
			if strings.Contains(flags, " lo ") != b.Locked() || !strings.Contains(flags, " dd ") ||
				!strings.Contains(flags, " wf ") {
				t.Errorf("%s: locked %v, the kernel says%s", name, b.Locked(), flags)
			}
		}
		b.Destroy()
	}
}

var smapsHead = regexp.MustCompile(`(?m)^([0-9a-f]+)-([0-9a-f]+) `)

func vmFlags(t *testing.T, at uintptr) string {
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range smapsHead.FindAllSubmatchIndex(smaps, -1) {
		from, _ := strconv.ParseUint(string(smaps[m[2]:m[3]]), 16, 64)
		to, _ := strconv.ParseUint(string(smaps[m[4]:m[5]]), 16, 64)
		if uint64(at) < from || uint64(at) >= to {
			continue
		}
		_, rest, _ := strings.Cut(string(smaps[m[1]:]), "VmFlags:")
		line, _, _ := strings.Cut(rest, "\n")
		return line + " "
	}
	t.Fatalf("no mapping at %x", at)
	return ""
}
