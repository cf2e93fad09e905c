// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// This file is about the older files of an audit log: name.000001 and so on, in the order in which
// they were ended.

// olderFile is one of them.
type olderFile struct {
	name   string
	number uint64
}

// olderFiles lists them, oldest first.
func olderFiles(dir *fsafe.Dir, log string) ([]olderFile, error) {
	names, err := dir.Names()
	if err != nil {
		return nil, err
	}
	var files []olderFile
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, log+".")
		number, err := strconv.ParseUint(digits, 10, 64)
		if ok && err == nil && number > 0 && number <= mostNumber &&
			olderName(log, number) == name {
			files = append(files, olderFile{name, number})
		}
	}
	slices.SortFunc(files, func(a, b olderFile) int { return cmp.Compare(a.number, b.number) })
	return files, nil
}

const mostNumber = 1 << 53 // of an older file; others are not the log's

func olderName(log string, number uint64) string { return fmt.Sprintf("%s.%06d", log, number) }

// rotate ends the file and begins another one. Its first line will say where the log begins. The
// lock is held.
func (l *Log) rotate() error {
	files, err := olderFiles(l.dir, l.name)
	if err != nil {
		return err
	}
	// the event is not written yet: this is not ErrUnconfirmed
	if err := l.sync(l.file); err != nil {
		return err
	}
	number := uint64(1)
	if n := len(files); n > 0 {
		number = files[n-1].number + 1
	}
	if number > mostNumber {
		return fmt.Errorf("sealedchat: audit log: there is no number after %s",
			files[len(files)-1].name)
	}
	l.dropFile() // before the name changes: Windows would not let it
	if err := l.dir.Rename(l.name, olderName(l.name, number)); err != nil && !errors.Is(err,
		fsafe.ErrNotDurable) {
		return err
	}
	return l.catchUp()
}

// olderTail is the last line of the newest older file that has one.
func (l *Log) olderTail() (*Head, error) {
	files, err := olderFiles(l.dir, l.name)
	if err != nil {
		return nil, err
	}
	for _, file := range slices.Backward(files) {
		if _, last, err := l.ends(file.name, l.believes); last != nil || err != nil {
			return last, err
		}
	}
	return nil, nil
}

// kept says with which line the log begins when no more than MaxFiles are kept, and which files are
// in the way of that. The current one has no line yet.
//
// Only files count that lead from the log's last line to where it began so far without a gap, and
// whose ends have the codes that belong to them. Others were put there, or changed: they and what
// they hide are left for VerifyAuditLog to find, and nothing is dropped while something is missing.
// A file is checked line by line before the log begins after it.
func (l *Log) kept() (begins uint64, old []string, err error) {
	run, begins, err := l.genuine()
	if err != nil {
		return 0, nil, err
	}
	if len(run) == 0 || run[0].first.Seq > begins {
		l.opts.Logger.Warn("audit log: older files are gone or not as they were written, none " +
			"is deleted")
		return begins, nil, nil
	}
	for ; len(run) > 0; run = run[1:] {
		switch file := run[0]; {
		case file.last.Seq < begins: // a crash came before it was deleted
		case len(run) < l.opts.MaxFiles:
			return begins, old, nil
		default:
			whole, err := l.isWhole(file)
			if err != nil {
				return 0, nil, err
			}
			if !whole {
				l.opts.Logger.Warn(
					"audit log: an older file is not as it was written, none is deleted", "file",
					file.name)
				return begins, old, nil
			}
			begins = file.last.Seq + 1
		}
		old = append(old, run[0].name)
	}
	return begins, old, nil
}

// genuineFile is an older file whose ends were checked.
type genuineFile struct {
	name  string
	first *Line
	last  Head
}

// genuine are the older files that lead to the log's last line without a gap, oldest first, and
// where they say that the log begins.
func (l *Log) genuine() (run []genuineFile, begins uint64, err error) {
	files, err := olderFiles(l.dir, l.name)
	if err != nil {
		return nil, 0, err
	}
	begins = 1
	for want := l.tail; len(files) > 0; files = files[:len(files)-1] {
		file := files[len(files)-1]
		first, last, err := l.ends(file.name, l.proves)
		if err != nil {
			return nil, 0, err
		}
		// A file that a writer has begun says where the log begins: a part of one does not count as
		// a file.
		if first == nil || last == nil || *last != want || (first.Begins == 0) != (first.Seq == 1) {
			continue
		}
		// the newest says less if its writer had no key for those before
		begins = max(begins, first.Begins)
		run = append(run, genuineFile{file.name, first, *last})
		want = Head{Seq: first.Seq - 1, MAC: first.Prev}
	}
	slices.Reverse(run)
	return run, begins, nil
}

// isWhole checks all lines of a file.
func (l *Log) isWhole(file genuineFile) (bool, error) {
	f, err := l.dir.OpenRead(file.name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	chain := &Chain{Key: func(generation uint32) (*Key, error) { return l.keyOf(generation), nil }}
	p := part{f, file.name, io.NewSectionReader(f, 0, info.Size())}
	_, rest, err := stepLines(context.Background(), chain, p)
	if _, wrong := errors.AsType[*Problem](err); wrong {
		return false, nil
	}
	return chain.Settled() && len(rest) == 0 && chain.First == file.first.Seq &&
		chain.Head == file.last, err
}

// ends are a file's first line and its last one that pass the check; nil where it has none.
func (l *Log) ends(name string, check lineCheck) (first *Line, last *Head, err error) {
	f, err := l.dir.OpenRead(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if last, _, err = lastLine(f, info.Size(), check); err != nil || last == nil {
		return nil, nil, err
	}
	lines := bufio.NewReaderSize(f, MaxLine)
	next := func() (text []byte, line *Line) {
		text, _ = lines.ReadSlice('\n')
		text = bytes.TrimSuffix(text, []byte("\n"))
		if line, err := Parse(text); err == nil && check(text, line) {
			return text, line
		}
		return text, nil
	}
	text, first := next()
	if first != nil {
		return first, last, nil
	}
	size, sum := uint64(len(text)), sha256.Sum256(text)
	if _, first = next(); first != nil && first.Torn == size && first.TornSum == sum {
		return first, last, nil // a crash left the first one unfinished
	}
	return nil, last, nil
}

// dropOld deletes files, oldest first, after the line that says so is on the disk. What stays is
// deleted with the next file: with all that follows it, since nothing may be missing in between.
// (On Windows a file stays that somebody has open.)
func (l *Log) dropOld(names []string) {
	if len(names) == 0 {
		return
	}
	if err := l.sync(l.file); err != nil {
		l.opts.Logger.Warn("audit log: old files are not deleted yet", "error", err)
		return
	}
	for _, name := range names {
		err := l.remove(name)
		if _, there := l.dir.Stat(name); err == nil && !errors.Is(there, fs.ErrNotExist) {
			err = errors.New("it is there until others close it")
		}
		if err != nil {
			l.opts.Logger.Warn("audit log: an old file could not be deleted", "file", name, "error",
				err)
			return
		}
	}
}

// lineAt is the place of the line with a number; nil for 0, and where the line was dropped or is
// not as it was written.
func (l *Log) lineAt(seq uint64) (*Head, error) {
	if seq == 0 {
		return nil, nil
	}
	files, err := olderFiles(l.dir, l.name)
	if err != nil {
		return nil, err
	}
	for _, file := range slices.Backward(append(files, olderFile{name: l.name})) {
		head, older, err := l.findLine(file.name, seq)
		if head != nil || err != nil || !older {
			return head, err
		}
	}
	return nil, nil
}

// findLine looks for a line in one file. older says that the file has no line up to that number.
func (l *Log) findLine(name string, seq uint64) (head *Head, older bool, err error) {
	f, err := l.dir.OpenRead(name)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	older = true
	for lines := bufio.NewReaderSize(f, MaxLine); ; {
		text, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return nil, older, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return nil, false, err
		}
		text = bytes.TrimSuffix(text, []byte("\n"))
		line, err := Parse(text)
		switch {
		case err != nil:
		case line.Seq > seq:
			return nil, older, nil
		case line.Seq == seq && l.believes(text, line):
			at := line.Head()
			return &at, false, nil
		default:
			older = false
		}
	}
}
