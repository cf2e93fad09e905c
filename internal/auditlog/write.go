// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// This file appends to an audit log, and finds out where others left it.

// write appends a line under the lock. The caller has the turn.
func (l *Log) write(ctx context.Context, event []byte) error {
	if err := l.useKey(); err != nil {
		return err
	}
	lock, err := l.dir.Lock(ctx, l.name+lockSuffix)
	if err != nil {
		// The lock is taken by the folder's path, so that a folder which is no longer there fails
		// here.
		if gone := l.dir.AtPath(); gone != nil {
			return fmt.Errorf("%w: its folder is no longer where it was: restore it: %w",
				fault.ErrAuditTampered, gone)
		}
		return err
	}
	err = l.append(lock, event)
	unlocked := lock.Unlock()
	if err == nil && l.opts.FlushEvery == 0 {
		err = l.confirm(l.file) // after the lock: other processes need not wait for the disk
	}
	if err == nil && l.opts.FlushEvery > 0 {
		l.flush.arm(l.opts.FlushEvery, l.flushNow)
	}
	if err == nil && unlocked != nil {
		// it is written, but perhaps beside another one
		return errors.Join(fault.ErrUnconfirmed, unlocked)
	}
	return err
}

// append is write while the lock is held.
func (l *Log) append(lock *fsafe.Lock, event []byte) error {
	if err := l.catchUp(); err != nil {
		return err
	}
	if l.size > 0 && l.size+int64(len(event))+1024 > l.opts.MaxFileBytes && len(l.fragment) == 0 {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	at := l.Head()
	if at != l.tail {
		l.opts.Logger.Warn("audit log: lines that were there are gone, VerifyAuditLog tells which",
			"had_reached", at.Seq, "ends_with", l.tail.Seq)
	}
	line := &Line{
		Seq: at.Seq + 1, Generation: l.generation, Prev: at.MAC, Lost: l.lost.Load(), Event: event,
	}
	l.line = l.line[:0]
	if len(l.fragment) > 0 {
		l.line = append(l.line, '\n')
		// A fragment that nobody has begun to write here stays for Verify to find.
		if len(l.fragment) <= MaxLine && Unfinished(l.fragment, l.tail) {
			line.Torn, line.TornSum = uint64(len(l.fragment)), sha256.Sum256(l.fragment)
		}
	}
	var old []string
	if l.unbegun && l.tail.Seq > 0 && at == l.tail {
		var err error
		if line.Begins, old, err = l.kept(); err != nil {
			return err
		}
	}
	l.line = l.key.Append(l.line, line)
	if err := lock.Check(); err != nil {
		return err
	}
	if err := l.put(l.line); err != nil {
		return err
	}
	l.lost.Add(-line.Lost) // those that came meanwhile stay counted
	l.fragment, l.unbegun = nil, false
	l.tail = line.Head()
	l.setSeen(l.tail)
	l.dropOld(old)
	return nil
}

// put writes to the end of the file: all of b, or, as far as that can be had, nothing.
func (l *Log) put(b []byte) error {
	n, err := l.file.Write(b)
	if err == nil {
		l.size += int64(n)
		return nil
	}
	if n > 0 && l.file.Truncate(l.size) != nil {
		l.dropFile() // the next one finds an unfinished line, and says so
	}
	return err
}

func (l *Log) setSeen(h Head) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen = h
}

func (l *Log) dropFile() {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}

// catchUp makes the file, its size and the tail what they are now. The lock is held.
func (l *Log) catchUp() error {
	if l.file != nil {
		named, err := l.dir.IsNamed(l.file, l.name)
		if err != nil {
			return err
		}
		if !named {
			l.dropFile()
		}
	}
	if err := l.openFile(); err != nil {
		return err
	}
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	if info.Size() == l.size {
		return nil
	}
	if err := l.readTail(info.Size()); err != nil {
		l.dropFile()
		return err
	}
	if l.Head().Seq < l.tail.Seq {
		l.setSeen(l.tail)
	}
	return nil
}

// openFile opens the file that is appended to, and makes it where there is none. Its lines are not
// read.
func (l *Log) openFile() error {
	if l.file != nil {
		return nil
	}
	f, err := l.dir.OpenAppend(l.name)
	if err != nil {
		return err
	}
	l.file, l.size = f, -1
	return nil
}

// readTail finds the last line, in this file or in the one before.
func (l *Log) readTail(size int64) error {
	l.size = size
	tail, fragment, err := lastLine(l.file, size, l.believes)
	if err != nil {
		return err
	}
	// a power cut left so many zeros: they say nothing
	if n := len(fragment); n >= MaxLine && fragment[n-1] == 0 {
		end, err := endOfText(l.file, size)
		if err != nil {
			return err
		}
		if l.file.Truncate(end) == nil { // not every system lets a file that is appended to be cut
			l.size = end
			if tail, fragment, err = lastLine(l.file, end, l.believes); err != nil {
				return err
			}
		}
	}
	l.fragment, l.unbegun = fragment, tail == nil
	if tail == nil {
		if tail, err = l.olderTail(); err != nil {
			return err
		}
	}
	l.tail = Head{}
	if tail != nil {
		l.tail = *tail
	}
	return nil
}

// endOfText is where the zero bytes begin at the end of a file.
func endOfText(f io.ReaderAt, size int64) (int64, error) {
	block := make([]byte, MaxLine)
	for size > 0 {
		b := block[:min(size, int64(len(block)))]
		if _, err := f.ReadAt(b, size-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		text := bytes.TrimRight(b, "\x00")
		if size -= int64(len(b) - len(text)); len(text) > 0 {
			break
		}
	}
	return size, nil
}

// lineCheck says whether a line that was parsed is a good one.
type lineCheck func(text []byte, line *Line) bool

// lastLine finds the last good line of a file, nil if there is none in its last 256 KiB, and what
// stands behind the last line feed. What is wrong in between is left for VerifyAuditLog to find.
func lastLine(f *os.File, size int64, check lineCheck) (head *Head, fragment []byte, err error) {
	for _, window := range []int64{4 << 10, 4 * MaxLine} { // the small one does, nearly always
		head, fragment, err = lastWithin(f, max(size-window, 0), size, check)
		if head != nil || err != nil || size <= window {
			break
		}
	}
	return head, fragment, err
}

func lastWithin(f *os.File, from, size int64, check lineCheck) (*Head, []byte, error) {
	text := make([]byte, size-from)
	if _, err := f.ReadAt(text, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	end := bytes.LastIndexByte(text, '\n')
	fragment := text[end+1:]
	for text = text[:end+1]; len(text) > 0; {
		text = text[:len(text)-1] // its line feed
		start := bytes.LastIndexByte(text, '\n') + 1
		if line, err := Parse(text[start:]); err == nil && check(text[start:], line) {
			head := line.Head()
			return &head, fragment, nil
		}
		text = text[:start]
	}
	return nil, fragment, nil
}

// believes checks a line where the key is at hand. Lines of a generation that this process does not
// have are taken: to go on after a wrong one hides nothing from VerifyAuditLog. What is written on
// behalf of a line needs proves.
func (l *Log) believes(text []byte, line *Line) bool {
	key := l.keyOf(line.Generation)
	return key == nil || key.Fits(text, line)
}

// proves reports whether a line has the code that belongs to it.
func (l *Log) proves(text []byte, line *Line) bool {
	key := l.keyOf(line.Generation)
	return key != nil && key.Fits(text, line)
}

// keyOf is the key of a generation, nil if it is not at hand.
func (l *Log) keyOf(generation uint32) *Key {
	if generation == l.generation {
		return l.key
	}
	if key := l.known[generation]; key != nil || generation > l.keys.DataGeneration() {
		return key
	}
	key, _, err := newKey(l.keys, generation)
	if err != nil {
		return nil
	}
	if l.known == nil {
		l.known = make(map[uint32]*Key)
	}
	l.known[generation] = key // the store may be closed before the log
	return key
}

// flusher has the disk confirm, some time after the first of the events that it has not confirmed.
// mu guards all of it except running, which counts timers that are set or at work.
type flusher struct {
	mu      sync.Mutex
	timer   *time.Timer // nil while there is nothing to confirm
	stopped bool
	running sync.WaitGroup
	err     error // of the last time, until somebody was told
}

// arm has confirm run after a while, unless it is about to.
func (f *flusher) arm(after time.Duration, confirm func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil || f.stopped {
		return
	}
	f.running.Add(1)
	f.timer = time.AfterFunc(after, func() {
		defer f.running.Done()
		f.mu.Lock()
		f.timer = nil
		f.mu.Unlock()
		if err := confirm(); err != nil {
			f.mu.Lock()
			f.err = err
			f.mu.Unlock()
		}
	})
}

// failure is what the disk said in the background; it is told once.
func (f *flusher) failure() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.err
	f.err = nil
	return err
}

// stop ends the work in the background, and waits for it.
func (f *flusher) stop() error {
	f.mu.Lock()
	f.stopped = true
	if f.timer != nil && f.timer.Stop() {
		f.running.Done()
	}
	f.mu.Unlock()
	f.running.Wait()
	return f.failure()
}

// flushNow confirms through a handle of its own, so that nobody who writes waits for the disk.
func (l *Log) flushNow() error {
	if there, err := l.dir.Exists(l.name); err != nil || !there { // OpenAppend would make one
		return fault.Join(err, &fs.PathError{Op: "sync", Path: filepath.Join(l.dir.Path(), l.name),
			Err: fs.ErrNotExist})
	}
	f, err := l.dir.OpenAppend(l.name)
	if err != nil {
		return err
	}
	defer f.Close()
	return l.confirm(f)
}
