// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Package auditlog keeps events in files that nobody without the key can change unnoticed, and
// checks such files: line.go has the form of a line, chain.go the check of lines that follow each
// other, write.go and rotate.go append to a log that processes share, verify.go reads one.
//
// An event is JSON that the caller has made. The key is derived from a key store's data key, see
// [Keys].
package auditlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// Keys are the data keys of a key store, by generation. It is called from several goroutines.
type Keys interface {
	// UseDataKey lends f the data key of a generation, or the newest one for 0, and returns its
	// generation. ErrDecryption: there is no such generation.
	UseDataKey(generation uint32, f func(dataKey []byte) error) (uint32, error)
	// DataGeneration is the newest generation that is known; 0 if there is none.
	DataGeneration() uint32
}

// Options shape a log. The caller has checked them.
type Options struct {
	FlushEvery   time.Duration // 0: the disk confirms before Record returns
	KeepGoing    bool          // Record returns nil when it cannot write
	MaxFileBytes int64
	MaxFiles     int
	Head         Head // that the log has reached; the zero Head for none
	Logger       *slog.Logger
}

// MaxEvent is the size of the largest event: a line without what the log adds.
const MaxEvent = MaxLine - 1024

// Log appends to a log. Its methods may be called from several goroutines.
//
// The goroutine that has put a token into turn is the only one of this process that uses the fields
// below it. The lock file beside the log keeps other processes out while a line is appended. Locks
// are taken in this order: turn, the lock file, then mu or flush.mu, of which nobody holds both.
//
// seen never goes back: it is the last line that this process has written or found. Every line that
// it writes follows seen, also when the file no longer has seen's line, so that Verify finds the
// gap.
type Log struct {
	dir   *fsafe.Dir
	name  string
	keys  Keys
	opts  Options
	flush flusher
	lost  atomic.Uint64 // events since the last one that was written

	sync   func(*os.File) error
	remove func(name string) error

	turn       chan struct{}
	closed     bool
	file       *os.File // nil: to be opened
	size       int64    // of the file when this process wrote or read it last
	fragment   []byte   // what stands after its last line feed
	unbegun    bool     // it has no good line
	tail       Head     // of the last good line in the files
	key        *Key     // of the newest generation that is at hand
	generation uint32
	known      map[uint32]*Key // of other generations
	line       []byte

	mu   sync.Mutex
	seen Head // written by the goroutine that has the turn
}

const (
	lockSuffix = ".lock"
	mostFiles  = 10_000
)

// Open opens the log at path, or begins one. keys must be open, and may be closed before the log.
func Open(ctx context.Context, path string, keys Keys, o Options) (*Log, error) {
	l := &Log{keys: keys, opts: o, turn: make(chan struct{}, 1), sync: (*os.File).Sync}
	if err := l.useKey(); err != nil {
		return nil, err
	}
	if err := l.open(ctx, path); err != nil {
		l.dropFile()
		l.wipeKeys()
		if l.dir != nil {
			_ = l.dir.Close()
		}
		return nil, fileError(err)
	}
	return l, nil
}

// open finds or makes the folder, the log and its lock. A new log's file is made before its lock
// file: a lock file without a log tells that the log was removed.
func (l *Log) open(ctx context.Context, path string) (err error) {
	open := fsafe.CreateDir
	if l.opts.Head.Seq > 0 { // there has to be one
		open = fsafe.OpenDir
	}
	if l.dir, l.name, err = folder(path, open); err != nil {
		return l.gone(err)
	}
	l.remove = l.dir.Remove
	locked, err := l.dir.Exists(l.name + lockSuffix)
	if err != nil {
		return err
	}
	if !locked { // it is new, or no log of ours
		begin := l.openFile
		if l.opts.Head.Seq > 0 {
			begin = l.mustExist
		}
		if err := begin(); err != nil {
			return err
		}
	}
	lock, err := l.dir.Lock(ctx, l.name+lockSuffix)
	if err != nil {
		return err
	}
	err = l.mustExist()
	if err == nil {
		err = l.catchUp()
	}
	if err == nil {
		err = l.mustReach(l.opts.Head)
	}
	return errors.Join(err, lock.Unlock())
}

// mustExist refuses to begin a new log where another one was. The lock is held.
func (l *Log) mustExist() error {
	there, err := l.dir.Exists(l.name)
	if err != nil || there {
		return err
	}
	older, err := olderFiles(l.dir, l.name)
	if err != nil || len(older) > 0 { // a crash between two files
		return err
	}
	return l.gone(&fs.PathError{Op: "open", Path: filepath.Join(l.dir.Path(), l.name),
		Err: fs.ErrNotExist})
}

// gone gives err, a missing log or folder, its words.
func (l *Log) gone(err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return fmt.Errorf("%w: it was removed: "+restoreIt+": %w",
		fault.ErrAuditTampered, err)
}

const restoreIt = "restore it, or begin another one under another name"

// mustReach refuses a log that ends before a line that it had, or has another one in its place.
// What is between that line and the end is for Verify to check.
func (l *Log) mustReach(head Head) error {
	if l.tail.Seq < head.Seq {
		return fmt.Errorf("%w: it ends with line %d, and had reached %d: "+restoreIt,
			fault.ErrAuditTampered, l.tail.Seq, head.Seq)
	}
	found, err := l.lineAt(head.Seq)
	if err == nil && found != nil && *found != head {
		return fmt.Errorf("%w: line %d is not the one that it had: "+restoreIt,
			fault.ErrAuditTampered, head.Seq)
	}
	return err
}

// newKey derives the key of a generation, or of the newest for 0. The caller wipes it.
func newKey(keys Keys, generation uint32) (key *Key, _ uint32, err error) {
	generation, err = keys.UseDataKey(generation, func(dataKey []byte) (err error) {
		key, err = NewKey(dataKey)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	return key, generation, nil
}

// useKey takes the key of the newest generation. A store that is closed, or whose passphrase was
// changed elsewhere, leaves the one at hand.
func (l *Log) useKey() error {
	if l.key != nil && l.generation >= l.keys.DataGeneration() {
		return nil
	}
	key, generation, err := newKey(l.keys, 0)
	if err == nil {
		l.key.Wipe()
		l.key, l.generation = key, generation
	}
	if l.key != nil {
		return nil
	}
	return err
}

// folder opens the folder of a log.
func folder(path string, open func(string) (*fsafe.Dir, error)) (*fsafe.Dir, string, error) {
	name := filepath.Base(path)
	if path == "" || !filepath.IsLocal(name) || name == "." ||
		os.IsPathSeparator(path[len(path)-1]) {
		return nil, "", fmt.Errorf("%w: %q does not name a file", fault.ErrInvalidRequest, path)
	}
	dir, err := open(filepath.Dir(path))
	if err != nil {
		return nil, "", err
	}
	return dir, name, nil
}

// Record writes an event: the members of a JSON object, without braces. kind names it for the
// Logger.
func (l *Log) Record(ctx context.Context, kind string, event []byte) error {
	if len(event) > MaxEvent {
		return fmt.Errorf("%w: an audit event of %d bytes, limit %d", fault.ErrTooLarge, len(event),
			MaxEvent)
	}
	leave, err := l.enter(ctx)
	if errors.Is(err, fault.ErrClosed) {
		return err
	}
	if err == nil {
		defer leave()
		err = l.write(ctx, event)
	}
	return l.outcome(ctx, kind, err)
}

// enter makes the caller the only one who writes.
func (l *Log) enter(ctx context.Context) (leave func(), err error) {
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fault.Ended(ctx)
	}
	if l.closed {
		<-l.turn
		return nil, fmt.Errorf("%w: audit log", fault.ErrClosed)
	}
	return func() { <-l.turn }, nil
}

// outcome counts an event that could not be written, and decides whether that stops the caller.
func (l *Log) outcome(ctx context.Context, kind string, err error) error {
	if err == nil {
		err = l.flush.failure()
	} else if !errors.Is(err, fault.ErrUnconfirmed) {
		l.lost.Add(1)
	}
	if err == nil {
		return nil
	}
	err = fileError(err)
	l.opts.Logger.WarnContext(ctx, "audit log: an event could not be written", "type", kind,
		"lost", l.lost.Load(), "error", err)
	if l.opts.KeepGoing {
		return nil
	}
	return err
}

// Head is the last line that this process wrote or found; the zero Head if there is none.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seen
}

// Close waits for events that are being written, and has the disk confirm them. Idempotent.
func (l *Log) Close() error {
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
		err = fault.Join(err, fmt.Errorf("sealedchat: audit log: %d events could not be written",
			lost))
	}
	_ = l.dir.Close()
	l.wipeKeys()
	return err
}

func (l *Log) wipeKeys() {
	l.key.Wipe()
	for _, key := range l.known {
		key.Wipe()
	}
}

// confirm has the disk confirm what was written.
func (l *Log) confirm(f *os.File) error {
	if err := l.sync(f); err != nil {
		return fmt.Errorf("%w: audit log: %w", fault.ErrUnconfirmed, err)
	}
	return nil
}

// fileError gives errors of files the module's sentinels. Those that have one already keep it.
func fileError(err error) error {
	for _, mine := range []error{
		fault.ErrUnconfirmed, fault.ErrClosed, fault.ErrTooLarge, fault.ErrInvalidRequest,
		fault.ErrPassphrase, fault.ErrAuditTampered,
	} {
		if errors.Is(err, mine) {
			return err
		}
	}
	return fmt.Errorf("sealedchat: audit log: %w", fsafe.Fault(err))
}
