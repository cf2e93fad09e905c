// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package replay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// FileName is the file's name in its folder.
const FileName = "replays"

const (
	lockWait   = 5 * time.Second // for a process that has the lock
	syncEvery  = time.Second
	retryAfter = time.Second // after the file could not be read, or written anew
	readChunk  = 1000        // records
)

// File remembers requests in a file, which all processes of one machine that open the same folder
// share. To the end of a process, however it comes, it loses nothing; to a power cut, the last
// second. Its methods may be called from several goroutines. Close it.
//
// Each process keeps what the file says in memory, and reads what others have added before it
// decides. Order of locks: turn, then the lock on the file, then mu or one of the tables'.
type File struct {
	clock     // age counts from when the process began
	dir       *fsafe.Dir
	name      string
	most      int
	spare     int64        // records beyond twice what is alive before the file is written anew
	base      atomic.Int64 // age of the file's records when the process began, in nanoseconds
	envelopes envelopeIDs
	exchanges exchangeIDs
	disk      disk
	flush     flusher

	mu      sync.Mutex
	waiting []*step // claims and releases of which nobody has taken care yet
	closed  bool

	turn    chan struct{} // holds a token while somebody takes care of them; what follows is his
	opened  bool          // what dead processes left was removed
	file    *os.File      // nil: to be opened
	fresh   bool          // its header was not read yet
	version [32]byte      // of the file that was read last; zero: all of it is to be read
	end     int64         // records of that version that were read or written
	synced  int64         // of them, that the disk has confirmed
	changes int64         // claims and releases since the first version of the file
	pending bool          // some of ours the disk has not confirmed
	rewrite error         // not nil: the file is to be written anew, and why
	failed  error         // why that, or reading the file, did not succeed
	retryAt time.Duration // the age before which it is not tried again
	buffer  []byte
}

// disk has the steps that tests make fail.
type disk struct {
	writeAt func(f *os.File, b []byte, off int64) (int, error)
	sync    func(f *os.File) error
	replace func(d *fsafe.Dir, name string, data []byte) error
}

// NewFile makes a File in dir, which stays the caller's, for at most entries requests of each
// protocol; entries below 1 are [Entries]. It touches nothing before the first claim.
func NewFile(dir *fsafe.Dir, entries int) *File {
	if entries < 1 {
		entries = Entries
	}
	f := &File{
		clock: systemClock(), dir: dir, name: FileName, most: entries, spare: 4096,
		turn: make(chan struct{}, 1),
	}
	f.disk = disk{(*os.File).WriteAt, (*os.File).Sync, (*fsafe.Dir).WriteFile}
	f.envelopes.init(entries)
	f.exchanges.init(entries)
	return f
}

// step is one claim, release or look. Its results are set by whoever had the turn.
type step struct {
	id, client [32]byte
	until      time.Time
	release    bool
	look       bool // neither: it asks whether the file answers

	done  bool
	fresh bool
	wrote bool // it has a record
	err   error
}

// Claim is [Memory.Claim]. An error says what to do: the request was not remembered.
func (f *File) Claim(ctx context.Context, id, client [32]byte, until time.Time) (bool, error) {
	if err := ctx.Err(); err != nil {
		return false, err
	}
	s := &step{id: id, client: client, until: time.Unix(0, nanoseconds(until))}
	f.do(s)
	return s.fresh && s.err == nil, s.err
}

// Release is [Memory.Release]. After an error the id stays claimed.
func (f *File) Release(_ context.Context, id [32]byte) error {
	s := &step{id: id, release: true}
	f.do(s)
	return s.err
}

// Ready reports whether the file can be locked and read: its errors are those of [File.Claim].
func (f *File) Ready(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s := &step{look: true}
	f.do(s)
	return s.err
}

// Len is how many requests are remembered, as far as this process has read.
func (f *File) Len() int { return f.envelopes.len() + f.exchanges.len() }

// Knows reports whether a request of the second protocol is remembered, as far as this process has
// read.
func (f *File) Knows(id [32]byte) bool {
	now, age := f.time()
	return f.exchanges.knows(id, now, age)
}

// Close has the disk confirm what was written, and closes the file. Claims then fail. A nil File
// has nothing to close.
func (f *File) Close() error {
	if f == nil {
		return nil
	}
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.flush.stop()
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	var err error
	if f.toConfirm() {
		err = f.disk.sync(f.file)
		f.pending = false
	}
	f.drop()
	return err
}

// time is the clock's time as the file writes it, and the time that has gone by in the life of the
// file.
func (f *File) time() (time.Time, time.Duration) {
	return time.Unix(0, nanoseconds(f.now())), time.Duration(f.base.Load()) + f.age()
}

// do takes care of s, and of all that wait: whoever comes while another has the lock on the file
// finds his step done, or does those of all.
func (f *File) do(s *step) {
	f.mu.Lock()
	f.waiting = append(f.waiting, s)
	f.mu.Unlock()
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if s.done {
		return
	}
	f.mu.Lock()
	steps, closed := f.waiting, f.closed
	f.waiting = nil
	f.mu.Unlock()
	err := error(fault.ErrClosed)
	if !closed {
		err = f.run(steps)
	}
	for _, s := range steps {
		s.done = true
		if err != nil {
			s.err = err
		}
	}
}

// run decides steps and writes them down, or fails them all.
func (f *File) run(steps []*step) error {
	if err := f.lockCurrent(); err != nil {
		return cannotKeep(err)
	}
	if err := f.write(steps); err != nil {
		f.drop()
		return cannotKeep(err)
	}
	if err := fsafe.UnlockFile(f.file); err != nil {
		f.drop() // which lets go of it, too
	}
	return nil
}

// cannotKeep begins with what to do, since a log line may cut the end.
func cannotKeep(err error) error {
	const advice = "cannot keep what was served beside the keys: set Replay, or fix this"
	return fmt.Errorf("sealedchat: %s: %w", advice, err)
}

// write decides steps in order, and writes those that change something. The lock is held.
func (f *File) write(steps []*step) error {
	now, age := f.time()
	b := f.buffer[:0]
	for _, s := range steps {
		r := record{
			kind: kindClaim, id: s.id, client: s.client, synced: uint32(f.synced),
			until: nanoseconds(s.until), now: now.UnixNano(), age: age,
		}
		switch {
		case s.look:
		case s.release:
			r.kind, r.until = kindRelease, 0
			s.wrote = f.envelopes.release(s.id)
		case r.exchange():
			s.fresh, s.err = f.exchanges.claim(s.id, s.until, now, age)
			s.wrote = s.fresh
		default:
			s.fresh = f.envelopes.claim(s.id, s.client, s.until, now, age)
			s.wrote = s.fresh
		}
		if s.wrote {
			b = r.appendTo(b)
		}
	}
	f.buffer = b[:0]
	if len(b) == 0 {
		return nil
	}
	if _, err := f.disk.writeAt(f.file, b, f.end*recordSize); err != nil {
		f.undo(steps)
		return err
	}
	f.end += int64(len(b) / recordSize)
	f.changes += int64(len(b) / recordSize)
	f.pending = true
	f.flush.arm(f.confirm)
	return nil
}

// undo takes back what was decided and could not be written. Of protocol v1 the client may try
// again, as after a release. What a partial write left in the file is found there by the next one,
// and holds.
func (f *File) undo(steps []*step) {
	for _, s := range slices.Backward(steps) {
		switch {
		case !s.wrote:
		case s.release:
			f.envelopes.hold(s.id)
		case s.client == [32]byte{}:
			f.exchanges.forget(s.id)
		default:
			f.envelopes.release(s.id)
		}
	}
}

// toConfirm reports whether the disk has something to confirm, of the file that is open then. An
// error may have closed it.
func (f *File) toConfirm() bool {
	return f.pending && (f.file != nil || f.open() == nil)
}

// confirm has the disk confirm what was written, while others go on writing.
func (f *File) confirm() {
	f.turn <- struct{}{}
	if !f.toConfirm() { // the next claim arms the flusher again
		<-f.turn
		return
	}
	file, version, end := f.file, f.version, f.end
	f.pending = false
	<-f.turn
	err := f.disk.sync(file)
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	switch {
	case f.version != version: // whoever replaced the file had all of it confirmed
	case err == nil:
		f.synced = max(f.synced, end)
	case errors.Is(err, os.ErrClosed): // an error closed it meanwhile
		f.pending = true
		f.flush.arm(f.confirm)
	default: // the system may have dropped what it could not write
		f.rewrite = err
	}
}

// flusher calls a function a second after the first time that it was armed.
type flusher struct {
	mu      sync.Mutex
	timer   *time.Timer // nil while there is nothing to confirm
	stopped bool
	running sync.WaitGroup
}

func (l *flusher) arm(confirm func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.timer != nil || l.stopped {
		return
	}
	l.running.Add(1)
	l.timer = time.AfterFunc(syncEvery, func() {
		defer l.running.Done()
		l.mu.Lock()
		l.timer = nil
		l.mu.Unlock()
		confirm()
	})
}

// stop ends the work in the background, and waits for it.
func (l *flusher) stop() {
	l.mu.Lock()
	l.stopped = true
	if l.timer != nil && l.timer.Stop() {
		l.running.Done()
	}
	l.mu.Unlock()
	l.running.Wait()
}
