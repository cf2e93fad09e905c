// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/auditfile"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// AuditFlush says when an [AuditLog] has the disk confirm what was written.
type AuditFlush int

// The times.
const (
	// FlushEachEvent: before Record returns. A power cut loses nothing that was reported. A disk takes 0.1 to 10 ms.
	FlushEachEvent AuditFlush = iota
	// FlushEachSecond: within a second, in the background. The event is with the operating system when Record returns, so
	// that the end of the process loses nothing; a power cut loses up to a second.
	FlushEachSecond
)

// AuditFailure says what an [AuditLog] does when it cannot write.
type AuditFailure int

// The reactions.
const (
	// AuditStop: Record returns the error, which stops the call that the event belongs to.
	AuditStop AuditFailure = iota
	// AuditGoOn: Record returns nil. AuditLogOptions.Logger is told.
	AuditGoOn
)

// AuditLogOptions shapes an audit log. The zero value, and a nil pointer, are the defaults. Processes that share a log
// have to agree on MaxFileBytes and MaxFiles.
type AuditLogOptions struct {
	Flush     AuditFlush   // zero: FlushEachEvent
	OnFailure AuditFailure // zero: AuditStop
	// MaxFileBytes is the size beyond which a file is not written on but renamed, and a new one begun. At least 64 KiB;
	// 0 = 16 MiB.
	MaxFileBytes int64
	// MaxFiles is how many files are kept, with the one that is written to; beyond it the oldest is deleted, after all of
	// its lines were checked. Nothing is deleted while an older file is missing or not as it was written, and files that do
	// not belong to the log do not count: Logger is told. 2 to 10,000; 0 = 16.
	MaxFiles int
	// Logger is told what could not be written, without content. nil = silent.
	Logger *slog.Logger
}

// AuditLog is an [Auditor] that keeps events in a file that nobody without the key store can change unnoticed. Each line
// is a JSON object with an HMAC-SHA256 over itself and the line before, under a key that is derived from the key store's
// data key; [VerifyAuditLog] checks it. SPEC.md has the format.
//
// Several processes may write to one log. Its methods may be called from several goroutines.
type AuditLog struct {
	dir   *fsafe.Dir
	name  string
	keys  *KeyStore
	opts  AuditLogOptions
	turn  chan struct{} // holds a token while somebody writes; what follows is his
	flush flusher

	sync   func(*os.File) error
	remove func(name string) error

	closed     bool
	file       *os.File // nil: to be opened
	size       int64    // of the file when this process wrote or read it last
	fragment   []byte   // what stands behind its last line feed
	unbegun    bool     // it has no good line
	tail       auditfile.Head
	own        auditfile.Head // of the last line that this process wrote
	key        *auditfile.Key
	generation uint32
	known      map[uint32]*auditfile.Key // of other generations
	line       []byte

	lost atomic.Uint64 // events since the last one that was written

	mu   sync.Mutex
	head AuditHead // of own or tail, whichever is later; for Head
}

const (
	lockSuffix       = ".lock"
	defaultAuditFile = 16 << 20
	defaultMaxFiles  = 16
	mostAuditFiles   = 10_000
	flushEvery       = time.Second
)

// OpenAuditLog opens the log at path, or begins one, with mode 0600. The folder is made where it does not exist; it must
// be the current user's and closed to others, like that of a key store ([ErrInsecurePermissions]). Beside the log lie its
// lock file, path.lock, and older files, path.000001 and so on. ctx bounds the wait for the lock, which is 10 s at most where
// it has no deadline.
//
// keys gives the log its key, and stays the caller's: it must be open when the log is opened, may be closed before the log,
// and cannot be an ephemeral one ([ErrInvalidRequest]). The key survives a change of the passphrase. With an open log,
// [KeyStore.SetAuditor] has the store tell it, too.
//
// A line that a crash left unfinished is ended, and noted in the next one. Errors: [*ConfigError] for o, [ErrInvalidRequest]
// for a path that names no file, [ErrLocked], [ErrClosed] for a closed key store, those of files. The caller closes the log
// with [AuditLog.Close].
func OpenAuditLog(ctx context.Context, path string, keys *KeyStore, o *AuditLogOptions) (*AuditLog, error) {
	l, err := newAuditLog(keys, o)
	if err != nil {
		return nil, err
	}
	if l.dir, l.name, err = auditFolder(path, fsafe.CreateDir); err != nil {
		l.wipeKeys()
		return nil, err
	}
	l.remove = l.dir.Remove
	lock, err := l.dir.Lock(ctx, l.name+lockSuffix)
	if err == nil {
		err = errors.Join(l.catchUp(), lock.Unlock())
	}
	if err != nil {
		l.dropFile()
		l.wipeKeys()
		_ = l.dir.Close()
		return nil, auditFileError(err)
	}
	return l, nil
}

func newAuditLog(keys *KeyStore, o *AuditLogOptions) (*AuditLog, error) {
	if keys == nil {
		return nil, fmt.Errorf("%w: an audit log needs a key store", ErrInvalidRequest)
	}
	l := &AuditLog{keys: keys, turn: make(chan struct{}, 1), sync: (*os.File).Sync}
	if o != nil {
		l.opts = *o
	}
	if l.opts.MaxFileBytes == 0 {
		l.opts.MaxFileBytes = defaultAuditFile
	}
	if l.opts.MaxFiles == 0 {
		l.opts.MaxFiles = defaultMaxFiles
	}
	if l.opts.Logger == nil {
		l.opts.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case l.opts.Flush != FlushEachEvent && l.opts.Flush != FlushEachSecond:
		return nil, configError("AuditLogOptions.Flush", "want FlushEachEvent or FlushEachSecond")
	case l.opts.OnFailure != AuditStop && l.opts.OnFailure != AuditGoOn:
		return nil, configError("AuditLogOptions.OnFailure", "want AuditStop or AuditGoOn")
	case l.opts.MaxFileBytes < auditfile.MaxLine:
		return nil, configError("AuditLogOptions.MaxFileBytes", "want %d or more", auditfile.MaxLine)
	case l.opts.MaxFiles < 2 || l.opts.MaxFiles > mostAuditFiles:
		return nil, configError("AuditLogOptions.MaxFiles", "want 2 to %d", mostAuditFiles)
	}
	return l, l.useKey()
}

// useKey takes the key of the newest generation. A store that is closed, or whose passphrase was changed elsewhere,
// leaves the one at hand.
func (l *AuditLog) useKey() error {
	if l.key != nil && l.generation >= l.keys.store.DataGeneration() {
		return nil
	}
	key, generation, err := auditKey(l.keys, 0)
	if err == nil {
		l.key.Wipe()
		l.key, l.generation = key, generation
	}
	if l.key != nil {
		return nil
	}
	return err
}

// auditFolder opens the folder of a log.
func auditFolder(path string, open func(string) (*fsafe.Dir, error)) (*fsafe.Dir, string, error) {
	name := filepath.Base(path)
	if path == "" || !filepath.IsLocal(name) || name == "." || os.IsPathSeparator(path[len(path)-1]) {
		return nil, "", fmt.Errorf("%w: %q does not name a file", ErrInvalidRequest, path)
	}
	dir, err := open(filepath.Dir(path))
	if err != nil {
		return nil, "", auditFileError(err)
	}
	return dir, name, nil
}

// Record writes an event, of 63 KiB of JSON at most; see [Auditor]. What is zero of Time, Severity, User and PID is filled
// in. ctx bounds the wait for other writers, which is 10 s at most where it has no deadline. Errors:
// [ErrInvalidRequest] for an unknown type, or details that are no JSON; [ErrTooLarge]; [ErrClosed]; and with
// AuditStop those of writing: the event is then counted, and the next line that can be written says how many were lost.
// [ErrUnconfirmed] means that an event is written but that the disk did not confirm it.
func (l *AuditLog) Record(ctx context.Context, e Event) error {
	if !e.Type.valid() {
		return errEventType(e.Type)
	}
	e.complete()
	event, err := e.fields()
	if err != nil {
		return err
	}
	if len(event) > auditfile.MaxLine-1024 { // room for the rest of the line
		return fmt.Errorf("%w: an audit event of %d bytes, limit %d", ErrTooLarge, len(event), auditfile.MaxLine-1024)
	}
	leave, err := l.enter(ctx)
	if errors.Is(err, ErrClosed) {
		return err
	}
	if err == nil {
		defer leave()
		err = l.write(ctx, event)
	}
	return l.judge(ctx, e.Type, err)
}

// enter makes the caller the only one who writes.
func (l *AuditLog) enter(ctx context.Context) (leave func(), err error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fault.Ended(ctx)
	}
	if l.closed {
		<-l.turn
		return nil, fmt.Errorf("%w: audit log", ErrClosed)
	}
	return func() { <-l.turn }, nil
}

// judge counts what could not be written, and decides whether that stops the caller.
func (l *AuditLog) judge(ctx context.Context, t EventType, err error) error {
	if err == nil {
		err = l.flush.failure()
	} else if !errors.Is(err, ErrUnconfirmed) {
		l.lost.Add(1)
	}
	if err == nil {
		return nil
	}
	err = auditFileError(err)
	l.opts.Logger.WarnContext(ctx, "audit log: an event could not be written", "type", string(t), "lost", l.lost.Load(), "error", err)
	if l.opts.OnFailure == AuditGoOn {
		return nil
	}
	return err
}

// Head is the last line that this process wrote, or found when it wrote or opened the log. Keep it where whoever can
// write to the log cannot, as the text that String gives: it is what [VerifyAuditLog] needs to notice that lines were cut
// off the end. The zero head means that there is no line. After Close it is the last one.
func (l *AuditLog) Head() AuditHead {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Close waits for events that are being written, and has the disk confirm them. Later events are [ErrClosed]. Idempotent;
// its error is that of the disk, or says how many events were lost since the last line.
func (l *AuditLog) Close() error {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if l.closed {
		return nil
	}
	l.closed = true
	err := l.flush.stop()
	if l.file != nil {
		err = fault.Join(err, l.confirm(l.file))
	}
	l.dropFile()
	if lost := l.lost.Load(); lost > 0 {
		err = fault.Join(err, fmt.Errorf("sealedchat: audit log: %d events could not be written", lost))
	}
	_ = l.dir.Close()
	l.wipeKeys()
	return err
}

func (l *AuditLog) wipeKeys() {
	l.key.Wipe()
	for _, key := range l.known {
		key.Wipe()
	}
}

// confirm has the disk confirm what was written.
func (l *AuditLog) confirm(f *os.File) error {
	if err := l.sync(f); err != nil {
		return fmt.Errorf("%w: audit log: %w", ErrUnconfirmed, err)
	}
	return nil
}

// AuditHead is a line's place in an audit log: its number, and its HMAC. The zero value is no line.
type AuditHead struct {
	Seq uint64   // from 1
	MAC [32]byte // HMAC-SHA256
}

// String is "Seq-MAC", the number in decimal and the HMAC in lower-case hex; [ParseAuditHead] reads it.
func (h AuditHead) String() string {
	return strconv.FormatUint(h.Seq, 10) + "-" + hex.EncodeToString(h.MAC[:])
}

// ParseAuditHead reads what [AuditHead.String] gives, with white space around it or not. Its error is [ErrInvalidRequest],
// also for the zero head.
func ParseAuditHead(text string) (h AuditHead, err error) {
	seq, mac, _ := strings.Cut(strings.TrimSpace(text), "-")
	h.Seq, err = strconv.ParseUint(seq, 10, 64)
	b, hexErr := hex.DecodeString(mac)
	if err != nil || hexErr != nil || h.Seq == 0 || len(b) != len(h.MAC) {
		return AuditHead{}, fmt.Errorf("%w: the head of an audit log is NUMBER-HEX, with 64 hex digits", ErrInvalidRequest)
	}
	copy(h.MAC[:], b)
	return h, nil
}

// auditFileError gives errors of files this package's sentinels. Those that have one already keep it.
func auditFileError(err error) error {
	for _, mine := range []error{ErrUnconfirmed, ErrClosed, ErrTooLarge, ErrInvalidRequest, ErrPassphrase} {
		if errors.Is(err, mine) {
			return err
		}
	}
	return fmt.Errorf("sealedchat: audit log: %w", fsafe.Fault(err))
}
