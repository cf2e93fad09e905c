// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// Report is what Verify found: of the lines up to the first that is wrong, if one is.
type Report struct {
	Files       []string // paths, oldest first
	Lines       uint64
	First       uint64
	Head        Head
	HeadChecked bool // the expected head was found
	Torn, Lost  uint64
}

// Verify checks the log at path with its older files, while others may write to it. want is a head
// that it must contain; the zero Head for none. A log that is not as it was written is a
// [*Problem], whose File is a path, and the report comes beside it.
func Verify(ctx context.Context, path string, keys Keys, want Head) (*Report, error) {
	newest, _, err := newKey(keys, 0)
	if err != nil { // whatever the log says
		return nil, err
	}
	newest.Wipe()
	dir, name, err := folder(path, func(dir string) (*fsafe.Dir, error) {
		d, err := fsafe.OpenDir(dir)
		return d, fsafe.MissingFirst(path, err)
	})
	if err != nil {
		return nil, fileError(err)
	}
	defer dir.Close()
	parts, err := openParts(ctx, dir, name)
	defer func() {
		for _, p := range parts {
			_ = p.Close()
		}
	}()
	if err != nil {
		return nil, fileError(err)
	}
	known, wipe := knownKeys(keys)
	defer wipe()
	chain := &Chain{Key: known, Want: want}
	err = checkParts(ctx, chain, parts)
	report := &Report{
		Lines: chain.Lines, First: chain.First, Head: chain.Head, HeadChecked: chain.WantFound,
		Torn: chain.Torn, Lost: chain.Lost,
	}
	for _, p := range parts {
		report.Files = append(report.Files, filepath.Join(dir.Path(), p.name))
	}
	if problem, ok := errors.AsType[*Problem](err); ok {
		problem.File = filepath.Join(dir.Path(), problem.File)
	}
	return report, err
}

// knownKeys finds keys once for each generation, until they are wiped.
func knownKeys(keys Keys) (find func(uint32) (*Key, error), wipe func()) {
	known := make(map[uint32]*Key)
	wipe = func() {
		for _, key := range known {
			key.Wipe()
		}
	}
	find = func(generation uint32) (*Key, error) {
		if key, ok := known[generation]; ok {
			return key, nil
		}
		key, _, err := newKey(keys, generation)
		if errors.Is(err, fault.ErrDecryption) { // there is no such generation
			key, err = nil, nil
		}
		if err == nil && len(known) < 1000 {
			known[generation] = key
		}
		return key, err
	}
	return find, wipe
}

// part is a file of the log as it is when the check begins.
type part struct {
	io.Closer
	name string
	text *io.SectionReader
}

// openParts opens the files, oldest first, at a moment when nobody writes. Where the lock cannot be
// had because nothing can be written there, nobody does.
func openParts(ctx context.Context, dir *fsafe.Dir, name string) (parts []part, err error) {
	// a lock file would tell of a log that there never was
	if there, err := dir.Exists(name); err == nil && !there {
		if older, err := olderFiles(dir, name); err == nil && len(older) == 0 {
			return nil, &fs.PathError{Op: "open", Path: filepath.Join(dir.Path(), name),
				Err: fs.ErrNotExist}
		}
	}
	lock, err := dir.Lock(ctx, name+lockSuffix)
	switch {
	case err == nil:
		defer lock.Unlock()
	case !errors.Is(err, fs.ErrPermission) && !errors.Is(err, syscall.EROFS):
		return nil, err
	}
	files, err := olderFiles(dir, name)
	if err != nil {
		return nil, err
	}
	if len(files) > mostFiles {
		return nil, fmt.Errorf("%w: %d files", fault.ErrTooLarge, len(files))
	}
	for _, file := range append(files, olderFile{name: name}) {
		f, err := dir.OpenRead(file.name)
		if errors.Is(err, fs.ErrNotExist) && file.name == name && len(parts) > 0 {
			break // a crash between two files
		}
		if err != nil {
			return parts, err
		}
		info, err := f.Stat()
		if err != nil {
			_ = f.Close()
			return parts, err
		}
		size := info.Size()
		if file.name == name { // of the zeros that a power cut can leave, one is enough
			end, err := endOfText(f, size)
			if err != nil {
				_ = f.Close()
				return parts, err
			}
			size = min(size, end+1)
		}
		parts = append(parts, part{f, file.name, io.NewSectionReader(f, 0, size)})
	}
	return parts, nil
}

// checkParts walks through the files.
func checkParts(ctx context.Context, chain *Chain, parts []part) error {
	for i, p := range parts {
		number, rest, err := stepLines(ctx, chain, p)
		switch {
		case err != nil:
			return err
		case i == len(parts)-1:
			return chain.Finish(p.name, number, rest)
		// another file follows: this one was ended, and has a line
		case len(rest) > 0 || number == 1:
			if err := chain.Step(p.name, number, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// stepLines walks through the lines of a file. rest is what stands after the last line feed, and
// number its place.
func stepLines(ctx context.Context, chain *Chain, p part) (number int, rest []byte, err error) {
	lines := bufio.NewReaderSize(p.text, MaxLine+1)
	for number = 1; ; number++ {
		if number%1024 == 0 && ctx.Err() != nil {
			return number, nil, fault.Ended(ctx)
		}
		text, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return number, text, nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return number, nil, fmt.Errorf("sealedchat: audit log: %w", err)
		}
		text, whole := bytes.CutSuffix(text, []byte("\n"))
		if !whole { // too long
			text = nil
		}
		if err := chain.Step(p.name, number, text); err != nil {
			return number, nil, err
		}
	}
}
