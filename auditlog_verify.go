// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/seed-017344ad/sealedchat/internal/auditfile"
	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/fsafe"
)

// AuditReport is what [VerifyAuditLog] found: of the lines up to the first that is wrong, if one is.
type AuditReport struct {
	Files []string // paths of those that were looked at, oldest first
	Lines uint64   // that are as they were written
	// First is the number of the first line: 1, or more when older files were dropped because there were more than
	// AuditLogOptions.MaxFiles. Nothing is known of what stood before it.
	First uint64
	Head  AuditHead // the last line; keep it for the next time
	// HeadChecked says that the expected head was found. It is false without one, and when its line was dropped.
	HeadChecked bool
	Torn        uint64 // lines that crashes left unfinished, and that the next lines say so of
	Lost        uint64 // events that could not be written, as the lines say
}

// AuditFinding says what is wrong with a line of an audit log.
type AuditFinding string

// The findings. All but AuditTorn are [ErrAuditTampered].
const (
	// AuditChanged: the line is not as it was written, or was not written by a holder of the key.
	AuditChanged AuditFinding = "changed, or written without the key"
	// AuditRemoved: lines are missing before this one.
	AuditRemoved AuditFinding = "lines before it are missing"
	// AuditReordered: the line does not stand where it was written.
	AuditReordered AuditFinding = "not in the order in which it was written"
	// AuditCutOff: the log ends before the expected head.
	AuditCutOff AuditFinding = "the log was cut off before the expected head"
	// AuditReplaced: the log has another line in the place of the expected head.
	AuditReplaced AuditFinding = "not the expected head"
	// AuditTorn: the last line is unfinished, as a crash leaves it, or somebody who cuts. It is [ErrAuditTorn]. The next
	// process that writes to the log ends the line and says so.
	AuditTorn AuditFinding = "unfinished"
)

// AuditLogError is the first thing that is wrong with an audit log. errors.Is finds [ErrAuditTampered] or [ErrAuditTorn].
type AuditLogError struct {
	File    string // path
	Line    int    // in the file, from 1; of AuditCutOff the one that would come next
	Seq     uint64 // number in the log of the line that was to stand there
	Missing uint64 // how many lines are missing, where that is known; else 0
	Finding AuditFinding
}

func (e *AuditLogError) Error() string {
	text := e.Unwrap().Error() + ": " + e.File + ", line " + strconv.Itoa(e.Line) + ": "
	if e.Missing > 0 {
		text += fmt.Sprintf("entries %d to %d are missing: ", e.Seq, e.Seq+e.Missing-1)
	}
	return text + string(e.Finding)
}

// Unwrap is [ErrAuditTampered] or [ErrAuditTorn].
func (e *AuditLogError) Unwrap() error {
	if e.Finding == AuditTorn {
		return ErrAuditTorn
	}
	return ErrAuditTampered
}

// VerifyAuditLog checks the log at path with its older files, while others may write to it, under the key of keys, which
// stays the caller's. Where the log is not as it was written, the report comes beside the error, and says how far it was.
//
// It finds every line that was changed, removed, put elsewhere or added by somebody without the key, and names the first:
// [*AuditLogError]. What it cannot find by itself is that whole lines were cut off the end, or that all of the log was
// replaced by another one of the same key store, an empty one for example. For that, give it head, a place that the log
// had reached once ([AuditLog.Head], or an earlier report's) and that was kept elsewhere; nil = none. Whoever has the
// key store and its passphrase can write whatever he likes, and an old passphrase with an old copy of the key store
// is enough for lines of that time's generation of data keys.
//
// Other errors: fs.ErrNotExist when there is no log, [ErrInvalidRequest] for an ephemeral key store, [ErrPassphrase] when
// the passphrase was changed since keys was opened, [ErrInsecurePermissions], [ErrLocked], the end of ctx.
func VerifyAuditLog(ctx context.Context, path string, keys *KeyStore, head *AuditHead) (*AuditReport, error) {
	if keys == nil {
		return nil, fmt.Errorf("%w: an audit log needs a key store", ErrInvalidRequest)
	}
	newest, _, err := auditKey(keys, 0)
	if err != nil { // whatever the log says
		return nil, err
	}
	newest.Wipe()
	dir, name, err := auditFolder(path, fsafe.OpenDir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	parts, err := openParts(ctx, dir, name)
	defer func() {
		for _, p := range parts {
			_ = p.Close()
		}
	}()
	if err != nil {
		return nil, auditFileError(err)
	}
	known, wipe := knownKeys(keys)
	defer wipe()
	chain := &auditfile.Chain{Key: known}
	if head != nil {
		chain.Want = auditfile.Head(*head)
	}
	err = checkParts(ctx, chain, parts)
	report := &AuditReport{
		Lines: chain.Lines, First: chain.First, Head: AuditHead(chain.Head), HeadChecked: chain.WantFound,
		Torn: chain.Torn, Lost: chain.Lost,
	}
	for _, p := range parts {
		report.Files = append(report.Files, filepath.Join(dir.Path(), p.name))
	}
	if problem, ok := errors.AsType[*auditfile.Problem](err); ok {
		return report, &AuditLogError{
			File: filepath.Join(dir.Path(), problem.File), Line: problem.Line, Seq: problem.Seq, Missing: problem.Missing,
			Finding: findings[problem.Finding],
		}
	}
	return report, err
}

// findings is never changed.
var findings = map[auditfile.Finding]AuditFinding{
	auditfile.Changed: AuditChanged, auditfile.Removed: AuditRemoved, auditfile.Reordered: AuditReordered,
	auditfile.CutOff: AuditCutOff, auditfile.Replaced: AuditReplaced, auditfile.Torn: AuditTorn,
}

// knownKeys finds keys once for each generation, until they are wiped.
func knownKeys(keys *KeyStore) (find func(uint32) (*auditfile.Key, error), wipe func()) {
	known := make(map[uint32]*auditfile.Key)
	wipe = func() {
		for _, key := range known {
			key.Wipe()
		}
	}
	find = func(generation uint32) (*auditfile.Key, error) {
		if key, ok := known[generation]; ok {
			return key, nil
		}
		key, _, err := auditKey(keys, generation)
		if errors.Is(err, ErrDecryption) { // there is no such generation
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

// openParts opens the files, oldest first, at a moment when nobody writes. Where the lock cannot be had because nothing
// can be written there, nobody does.
func openParts(ctx context.Context, dir *fsafe.Dir, name string) (parts []part, err error) {
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
	if len(files) > mostAuditFiles {
		return nil, fmt.Errorf("%w: %d files", ErrTooLarge, len(files))
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
func checkParts(ctx context.Context, chain *auditfile.Chain, parts []part) error {
	for i, p := range parts {
		number, rest, err := stepLines(ctx, chain, p)
		switch {
		case err != nil:
			return err
		case i == len(parts)-1:
			return chain.Finish(p.name, number, rest)
		case len(rest) > 0 || number == 1: // another file follows: this one was ended, and has a line
			if err := chain.Step(p.name, number, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// stepLines walks through the lines of a file. rest is what stands after the last line feed, and number its place.
func stepLines(ctx context.Context, chain *auditfile.Chain, p part) (number int, rest []byte, err error) {
	lines := bufio.NewReaderSize(p.text, auditfile.MaxLine+1)
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
