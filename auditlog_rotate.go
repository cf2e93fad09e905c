// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/seed-017344ad/sealedchat/internal/auditfile"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// This file is about the older files of an audit log: name.000001 and so on, in the order in which they were ended.

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
		if ok && err == nil && number > 0 && olderName(log, number) == name {
			files = append(files, olderFile{name, number})
		}
	}
	slices.SortFunc(files, func(a, b olderFile) int { return cmp.Compare(a.number, b.number) })
	return files, nil
}

func olderName(log string, number uint64) string { return fmt.Sprintf("%s.%06d", log, number) }

// rotate ends the file and begins another one. Its first line will say where the log begins. The lock is held.
func (l *AuditLog) rotate() error {
	files, err := olderFiles(l.dir, l.name)
	if err != nil {
		return err
	}
	if err := l.confirm(l.file); err != nil {
		return err
	}
	number := uint64(1)
	if n := len(files); n > 0 {
		number = files[n-1].number + 1
	}
	l.dropFile() // before the name changes: Windows would not let it
	if err := l.dir.Rename(l.name, olderName(l.name, number)); err != nil && !errors.Is(err, fsafe.ErrNotDurable) {
		return err
	}
	return l.catchUp()
}

// olderTail is the last line of the newest older file that has one.
func (l *AuditLog) olderTail() (*auditfile.Head, error) {
	files, err := olderFiles(l.dir, l.name)
	if err != nil {
		return nil, err
	}
	for _, file := range slices.Backward(files) {
		if _, last, err := l.ends(file.name); last != nil || err != nil {
			return last, err
		}
	}
	return nil, nil
}

// kept says with which line the log begins when no more than MaxFiles are kept, and which files are in the way of that.
// The current one is empty, and next is the line that it begins with.
//
// The log began so far where the newest file says. From there on the files in the way are gone through: what somebody
// else has removed must not count as dropped here.
func (l *AuditLog) kept() (begins uint64, old []string, err error) {
	files, err := olderFiles(l.dir, l.name)
	if err != nil {
		return 0, nil, err
	}
	begins = 1
	if n := len(files); n > 0 {
		first, _, err := l.ends(files[n-1].name)
		if err != nil {
			return 0, nil, err
		}
		if first != nil {
			begins = max(begins, first.Begins)
		}
	}
	whole := true
	for ; len(files) > l.opts.MaxFiles-1; files = files[1:] {
		old = append(old, files[0].name)
		first, last, err := l.ends(files[0].name)
		if err != nil {
			return 0, nil, err
		}
		whole = whole && first != nil && last != nil && first.Seq <= begins
		if whole {
			begins = max(begins, last.Seq+1)
		}
	}
	return begins, old, nil
}

// ends are a file's first line and its last good one; nil where it has none.
func (l *AuditLog) ends(name string) (first *auditfile.Line, last *auditfile.Head, err error) {
	f, err := l.dir.OpenRead(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if last, _, err = l.lastLine(f, info.Size()); err != nil {
		return nil, nil, err
	}
	text, _ := bufio.NewReaderSize(f, auditfile.MaxLine).ReadSlice('\n')
	text = bytes.TrimSuffix(text, []byte("\n"))
	if line, err := auditfile.Parse(text); err == nil && l.believes(text, line) {
		first = line
	}
	return first, last, nil
}

// dropOld deletes files, after the line that says so is written. What stays is deleted with the next file.
func (l *AuditLog) dropOld(names []string) {
	for _, name := range names {
		if err := l.dir.Remove(name); err != nil {
			l.opts.Logger.Warn("audit log: an old file could not be deleted", "error", err)
		}
	}
}
