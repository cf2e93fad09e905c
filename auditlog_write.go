// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/auditfile"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// This file appends to an audit log, and finds out where others left it.

// write appends a line under the lock. The caller has the turn.
func (l *AuditLog) write(ctx context.Context, event []byte) error {
	if err := l.useKey(); err != nil {
		return err
	}
	lock, err := l.dir.Lock(ctx, l.name+lockSuffix)
	if err != nil {
		return err
	}
	err = l.append(lock, event)
	unlocked := lock.Unlock()
	if err == nil && l.opts.Flush == FlushEachEvent {
		err = l.confirm(l.file) // after the lock: other processes need not wait for the disk
	}
	if err == nil && l.opts.Flush == FlushEachSecond {
		l.flush.arm(l.flushNow)
	}
	if err == nil && unlocked != nil {
		return errors.Join(ErrUnconfirmed, unlocked) // it is written, but perhaps beside another one
	}
	return err
}

// append is write while the lock is held.
func (l *AuditLog) append(lock *fsafe.Lock, event []byte) error {
	if err := l.catchUp(); err != nil {
		return err
	}
	if l.size > 0 && l.size+int64(len(event))+1024 > l.opts.MaxFileBytes && len(l.fragment) == 0 {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	at := l.tail
	if l.own.Seq >= at.Seq { // what this process wrote last is gone: go on from there all the same, so that it shows
		at = l.own
	}
	line := &auditfile.Line{
		Seq: at.Seq + 1, Generation: l.generation, Prev: at.MAC, Lost: l.lost.Load(), Event: event,
	}
	l.line = l.line[:0]
	if len(l.fragment) > 0 {
		l.line = append(l.line, '\n')
		if len(l.fragment) <= auditfile.MaxLine && auditfile.Unfinished(l.fragment, l.tail) { // what nobody has begun to write here stays for VerifyAuditLog to find
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
	l.tail, l.own = line.Head(), line.Head()
	l.setHead(l.own)
	l.dropOld(old)
	return nil
}

// put writes to the end of the file: all of b, or, as far as that can be had, nothing.
func (l *AuditLog) put(b []byte) error {
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

func (l *AuditLog) setHead(h auditfile.Head) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.head = AuditHead(h)
}

func (l *AuditLog) dropFile() {
	if l.file != nil {
		_ = l.file.Close()
		l.file = nil
	}
}

// catchUp makes the file, its size and the tail what they are now. The lock is held.
func (l *AuditLog) catchUp() error {
	if l.file != nil {
		named, err := l.dir.IsNamed(l.file, l.name)
		if err != nil {
			return err
		}
		if !named {
			l.dropFile()
		}
	}
	fresh := l.file == nil
	if fresh {
		f, err := l.dir.OpenAppend(l.name)
		if err != nil {
			return err
		}
		l.file = f
	}
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	if !fresh && info.Size() == l.size {
		return nil
	}
	if err := l.readTail(info.Size()); err != nil {
		l.dropFile()
		return err
	}
	if l.own.Seq < l.tail.Seq {
		l.setHead(l.tail)
	}
	return nil
}

// readTail finds the last line, in this file or in the one before.
func (l *AuditLog) readTail(size int64) error {
	l.size = size
	tail, fragment, err := lastLine(l.file, size, l.believes)
	if err != nil {
		return err
	}
	if n := len(fragment); n >= auditfile.MaxLine && fragment[n-1] == 0 { // a power cut left so many zeros: they say nothing
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
	l.tail = auditfile.Head{}
	if tail != nil {
		l.tail = *tail
	}
	return nil
}

// endOfText is where the zero bytes begin at the end of a file.
func endOfText(f io.ReaderAt, size int64) (int64, error) {
	block := make([]byte, auditfile.MaxLine)
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
type lineCheck func(text []byte, line *auditfile.Line) bool

// lastLine finds the last good line of a file, nil if there is none in its last 256 KiB, and what stands behind the last
// line feed. What is wrong in between is left for VerifyAuditLog to find.
func lastLine(f *os.File, size int64, check lineCheck) (head *auditfile.Head, fragment []byte, err error) {
	for _, window := range []int64{4 << 10, 4 * auditfile.MaxLine} { // the small one does, nearly always
		head, fragment, err = lastWithin(f, max(size-window, 0), size, check)
		if head != nil || err != nil || size <= window {
			break
		}
	}
	return head, fragment, err
}

func lastWithin(f *os.File, from, size int64, check lineCheck) (*auditfile.Head, []byte, error) {
	text := make([]byte, size-from)
	if _, err := f.ReadAt(text, from); err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	end := bytes.LastIndexByte(text, '\n')
	fragment := text[end+1:]
	for text = text[:end+1]; len(text) > 0; {
		text = text[:len(text)-1] // its line feed
		start := bytes.LastIndexByte(text, '\n') + 1
		if line, err := auditfile.Parse(text[start:]); err == nil && check(text[start:], line) {
			head := line.Head()
			return &head, fragment, nil
		}
		text = text[:start]
	}
	return nil, fragment, nil
}

// believes checks a line where the key is at hand. Lines of a generation that this process does not have are taken: to go
// on after a wrong one hides nothing from VerifyAuditLog. What is written on behalf of a line needs proves.
func (l *AuditLog) believes(text []byte, line *auditfile.Line) bool {
	key := l.keyOf(line.Generation)
	return key == nil || key.Fits(text, line)
}

// proves reports whether a line has the code that belongs to it.
func (l *AuditLog) proves(text []byte, line *auditfile.Line) bool {
	key := l.keyOf(line.Generation)
	return key != nil && key.Fits(text, line)
}

// keyOf is the key of a generation, nil if it is not at hand.
func (l *AuditLog) keyOf(generation uint32) *auditfile.Key {
	if generation == l.generation {
		return l.key
	}
	if key := l.known[generation]; key != nil || generation > l.keys.store.DataGeneration() {
		return key
	}
	key, _, err := auditKey(l.keys, generation)
	if err != nil {
		return nil
	}
	if l.known == nil {
		l.known = make(map[uint32]*auditfile.Key)
	}
	l.known[generation] = key // the store may be closed before the log
	return key
}

// flusher has the disk confirm, a second after the first of the events that it has not confirmed.
type flusher struct {
	mu      sync.Mutex
	timer   *time.Timer // nil while there is nothing to confirm
	stopped bool
	running sync.WaitGroup
	err     error // of the last time, until somebody was told
}

// arm has f run in a second, unless it is about to.
func (f *flusher) arm(confirm func() error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.timer != nil || f.stopped {
		return
	}
	f.running.Add(1)
	f.timer = time.AfterFunc(flushEvery, func() {
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
func (l *AuditLog) flushNow() error {
	f, err := l.dir.OpenAppend(l.name)
	if err != nil {
		return err
	}
	defer f.Close()
	return l.confirm(f)
}

// auditKey derives the key of an audit log from the data key of a generation, or the newest for 0. The
// caller wipes it.
func auditKey(keys *KeyStore, generation uint32) (key *auditfile.Key, _ uint32, err error) {
	generation, err = keys.store.UseDataKey(generation, func(dataKey []byte) (err error) {
		key, err = auditfile.NewKey(dataKey)
		return err
	})
	return key, generation, err
}
