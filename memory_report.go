// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"fmt"
	"log/slog"
	"runtime"
	"strconv"

	"github.com/seed-017344ad/sealedchat/internal/erase"
	"github.com/seed-017344ad/sealedchat/internal/locked"
)

// MemoryLevel says how secrets are protected while they are in memory.
type MemoryLevel uint8

// The levels, lowest first.
const (
	MemoryWiped  MemoryLevel = iota // wiped after use, but until then it may be swapped out
	MemoryLocked                    // also locked into RAM
)

// String is "wiped only" or "locked".
func (l MemoryLevel) String() string {
	if l == MemoryLocked {
		return locked.Locked.String()
	}
	return locked.Wiped.String()
}

// MemoryStatus is what [MemoryReport] returns. It holds no secret and may be logged. Sizes are in bytes.
type MemoryStatus struct {
	// Level is MemoryLocked if all that is in use is locked; while nothing is in use, if a page could be locked.
	Level    MemoryLevel
	Platform string // "linux/amd64"
	PageSize int

	InUse    int64 // bytes of secrets, in their buffers
	Unlocked int64 // of these, the bytes that are not locked
	Peak     int64 // the most bytes that were in use at once
	Locked   int64 // bytes in locked pages, with what is free in them
	// Limit is what the process may lock, this package and others together: RLIMIT_MEMLOCK, or on Windows the minimum
	// working set. A process with CAP_IPC_LOCK, such as root's, may lock more. Negative: none, or not known.
	Limit int64
	// Misses counts the buffers that were to be locked and did not fit, since the process started.
	Misses int64

	Secrets int64 // how many there are that are not destroyed yet
	Leaked  int64 // how many nobody destroyed: the garbage collector found them and had them wiped

	// CoreDumpsOff reports that a crash writes no core: the process is not dumpable, or RLIMIT_CORE is 0 and cores are
	// files. (A core_pattern that pipes cores to a program does not obey RLIMIT_CORE.) Locked pages are in no core anyway.
	// False on Windows, where crash dumps are the system's matter.
	CoreDumpsOff bool
	// Dumpable reports that other processes of the same user may read this one's memory, as far as the system's other
	// rules let them. True wherever HardenProcess cannot change it.
	Dumpable bool
	// RuntimeSecret reports that the program was built with GOEXPERIMENT=runtimesecret.
	RuntimeSecret bool
}

// MemoryReport tells how the memory of this process's secrets is protected at the moment. It counts what this package
// has for all clients, key stores and Secrets together. It costs some system calls and, on Linux, the reading of a small
// file. Safe for concurrent use.
func MemoryReport() MemoryStatus {
	s := locked.Report()
	m := MemoryStatus{
		Platform: runtime.GOOS + "/" + runtime.GOARCH, PageSize: s.PageSize,
		InUse: s.InUse, Unlocked: s.Unlocked, Peak: s.Peak, Locked: s.Locked, Limit: s.Limit, Misses: s.Misses,
		Secrets: s.Watched, Leaked: s.Leaked,
		CoreDumpsOff: coreDumpsOff(), Dumpable: dumpable(), RuntimeSecret: erase.RuntimeSecret,
	}
	if s.Level == locked.Locked {
		m.Level = MemoryLocked
	}
	return m
}

// String is the report in a line.
func (m MemoryStatus) String() string {
	limit := "no limit known"
	if m.Limit >= 0 {
		limit = "limit " + strconv.FormatInt(m.Limit, 10)
	}
	return fmt.Sprintf("%v on %s: %d bytes in use, %d of them unlocked, peak %d; %d locked in pages of %d, %s, %d misses; "+
		"%d secrets, %d leaked; core dumps off: %t, dumpable: %t, runtime/secret: %t",
		m.Level, m.Platform, m.InUse, m.Unlocked, m.Peak, m.Locked, m.PageSize, limit, m.Misses,
		m.Secrets, m.Leaked, m.CoreDumpsOff, m.Dumpable, m.RuntimeSecret)
}

// LogValue is the report as a group.
func (m MemoryStatus) LogValue() slog.Value {
	return slog.GroupValue(
		slog.String("level", m.Level.String()), slog.String("platform", m.Platform), slog.Int("page_size", m.PageSize),
		slog.Int64("in_use", m.InUse), slog.Int64("unlocked", m.Unlocked), slog.Int64("peak", m.Peak),
		slog.Int64("locked", m.Locked), slog.Int64("limit", m.Limit), slog.Int64("misses", m.Misses),
		slog.Int64("secrets", m.Secrets), slog.Int64("leaked", m.Leaked),
		slog.Bool("core_dumps_off", m.CoreDumpsOff), slog.Bool("dumpable", m.Dumpable),
		slog.Bool("runtime_secret", m.RuntimeSecret),
	)
}
