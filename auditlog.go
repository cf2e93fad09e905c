// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/auditlog"
)

// AuditLogOptions shapes an audit log. The zero value, and a nil pointer, are the defaults.
// Processes that share a log have to agree on MaxFileBytes and MaxFiles.
type AuditLogOptions struct {
	// FlushEvery is when the disk confirms an event. 0: before Record returns, so that a power cut
	// loses nothing that was reported; a disk takes 0.1 to 10 ms. More, such as time.Second: at
	// most so much later, in the background. The event is with the operating system when Record
	// returns, so that the end of the process loses nothing; a power cut loses what was not
	// confirmed.
	FlushEvery time.Duration
	// KeepGoing has Record return nil when it cannot write, and tell Logger. Without it Record
	// returns the error, which stops the call that the event belongs to.
	KeepGoing bool
	// Head is a place that the log had reached, as [AuditLog.Head] or [AuditReport] gave it, and
	// that was kept elsewhere. OpenAuditLog then begins no new log: one that is gone, ends before
	// it or has another line in its place is [ErrAuditTampered]. A line that was dropped with an
	// older file is not missed, and only VerifyAuditLog looks at the lines after it. "" = the log
	// may be new.
	Head string
	// MaxFileBytes is the size that no file exceeds: before it does, it is renamed and a new one is
	// begun. At least 64 KiB; 0 = 16 MiB.
	MaxFileBytes int64
	// MaxFiles is how many files are kept, with the one that is written to. Beyond it the oldest is
	// deleted, after all of its lines were checked. Nothing is deleted while an older file is
	// missing or not as it was written, and files that do not belong to the log do not count:
	// Logger is told. 2 to 10,000; 0 = 16.
	MaxFiles int
	// Logger is told what could not be written, and of lines that are gone, without content. nil =
	// silent.
	Logger *slog.Logger
}

const (
	defaultAuditFile = 16 << 20
	defaultMaxFiles  = 16
	mostAuditFiles   = 10_000
)

// engine checks the options and gives them to internal/auditlog.
func (o *AuditLogOptions) engine() (e auditlog.Options, err error) {
	if o == nil {
		o = &AuditLogOptions{}
	}
	e = auditlog.Options{
		FlushEvery: o.FlushEvery, KeepGoing: o.KeepGoing, Logger: o.Logger,
		MaxFileBytes: cmp.Or(o.MaxFileBytes, defaultAuditFile), MaxFiles: cmp.Or(o.MaxFiles,
			defaultMaxFiles),
	}
	if e.Logger == nil {
		e.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case e.FlushEvery < 0:
		return e, configError("AuditLogOptions.FlushEvery", "want 0 or more")
	case e.MaxFileBytes < auditlog.MaxLine:
		return e, configError("AuditLogOptions.MaxFileBytes", "want %d or more", auditlog.MaxLine)
	case e.MaxFiles < 2 || e.MaxFiles > mostAuditFiles:
		return e, configError("AuditLogOptions.MaxFiles", "want 2 to %d", mostAuditFiles)
	}
	if o.Head != "" {
		if e.Head, err = auditlog.ParseHead(o.Head); err != nil {
			return e, &ConfigError{Field: "AuditLogOptions.Head", Err: err}
		}
	}
	return e, nil
}

// AuditLog keeps events in a file that cannot be changed unnoticed without the key store; its
// Record is an [Auditor]. Each line is a JSON object with an HMAC-SHA256 over itself and the line
// before, under a key that is derived from the key store's data key; [VerifyAuditLog] checks it.
// SPEC.md has the format.
//
// Several processes may write to one log. Its methods may be called from several goroutines.
type AuditLog struct{ log *auditlog.Log }

// OpenAuditLog opens the log at path, or begins one, with mode 0600. The folder is made where it
// does not exist; it must be the current user's and closed to others, like that of a key store
// ([ErrInsecurePermissions]). Beside the log lie its lock file, path.lock, and older files,
// path.000001 and so on. ctx bounds the wait for the lock, which is 10 s at most where it has no
// deadline.
//
// keys gives the log its key, and stays the caller's: it must be open when the log is opened, may
// be closed before the log, and cannot be an ephemeral one ([ErrInvalidRequest]). The key survives
// a change of the passphrase. With an open log, [KeyStore.SetAuditor] has the store tell it, too.
//
// A line that a crash left unfinished is ended, and noted in the next one. A log whose files are
// gone while its lock file is there is [ErrAuditTampered]: no new one is begun in its place. Where
// the whole folder may have been removed or replaced since the last time, only AuditLogOptions.Head
// tells.
//
// Errors: [*ConfigError] for o, [ErrInvalidRequest] for a path that names no file, [ErrLocked],
// [ErrClosed] for a closed key store, those of files. The caller closes the log with
// [AuditLog.Close].
func OpenAuditLog(ctx context.Context, path string, keys *KeyStore, o *AuditLogOptions) (*AuditLog,
	error) {
	if keys == nil {
		return nil, errNoAuditKeys()
	}
	options, err := o.engine()
	if err != nil {
		return nil, err
	}
	log, err := auditlog.Open(ctx, path, keys.store, options)
	if err != nil {
		return nil, err
	}
	return &AuditLog{log}, nil
}

func errNoAuditKeys() error {
	return fmt.Errorf("%w: an audit log needs a key store", ErrInvalidRequest)
}

// Record writes an event, of 63 KiB of JSON at most; it is an [Auditor]. What is zero of Time,
// Severity, User and PID is filled in. ctx bounds the wait for other writers, which is 10 s at most
// where it has no deadline.
//
// Errors: [ErrInvalidRequest] for an unknown type, or details that are no JSON; [ErrAudit] for a
// Time outside of the years 0 to 9999; [ErrTooLarge]; [ErrClosed]; and without KeepGoing those of
// writing: the event is then counted, and the next line that can be written says how many were
// lost. [ErrAuditTampered]: the folder was removed, moved or replaced since the log was opened.
// [ErrUnconfirmed]: the event is written, but the disk did not confirm it.
//
// Lines that were there and are gone, or a file that was removed, do not stop it: the next line
// follows the one that was last, Logger is told, and VerifyAuditLog finds the gap.
func (l *AuditLog) Record(ctx context.Context, e Event) error {
	if l == nil {
		return fmt.Errorf("%w: a nil *AuditLog records nothing; leave the Auditor nil for "+
			"no events", ErrInvalidRequest)
	}
	if !e.Type.valid() {
		return errEventType(e.Type)
	}
	e.fillIn()
	event, err := e.fields()
	if err != nil {
		return err
	}
	return l.log.Record(ctx, string(e.Type), event)
}

// Head is the place of the last line that this process wrote, or found when it wrote or opened the
// log: its number and its HMAC, as "SEQ-HEX". Keep it where those who can write to the log
// cannot change it: [VerifyAuditLog] and AuditLogOptions.Head need it to notice that lines were cut
// off the end. "" means that there is no line. After Close it is the last one.
func (l *AuditLog) Head() string { return l.log.Head().String() }

// Close waits for events that are being written, and has the disk confirm them. Later events are
// [ErrClosed]. Idempotent; its error is that of the disk, or says how many events were lost since
// the last line.
func (l *AuditLog) Close() error { return l.log.Close() }

// AuditReport is what [VerifyAuditLog] found: of the lines up to the first that is wrong, if one
// is.
type AuditReport struct {
	Files []string // paths of those that were looked at, oldest first
	Lines uint64   // that are as they were written
	// First is the number of the first line: 1, or more when older files were dropped because there
	// were more than AuditLogOptions.MaxFiles. Nothing is known of what stood before it.
	First uint64
	Head  string // the place of the last line, as "SEQ-HEX"; keep it for the next time
	// HeadChecked says that the expected head was found. It is false without one, and when its line
	// was dropped.
	HeadChecked bool
	Torn        uint64 // lines that crashes left unfinished, and that the next lines say so of
	Lost        uint64 // events that could not be written, as the lines say

	// Finding is the first thing that is wrong with the log, one of the constants; "" if nothing
	// is. The other fields are its place.
	Finding string
	File    string // path
	Line    int    // in the file, from 1; of AuditCutOff the one that would come next
	Seq     uint64 // number in the log of the line that was to stand there
	Missing uint64 // how many lines are missing, where that is known; else 0
}

// The findings of an [AuditReport]. All except AuditTorn are [ErrAuditTampered].
const (
	// AuditChanged: the line is not as it was written, or was not written by a holder of the key.
	AuditChanged = "changed, or written without the key"
	// AuditRemoved: lines are missing before this one.
	AuditRemoved = "lines before it are missing"
	// AuditReordered: the line does not stand where it was written.
	AuditReordered = "not in the order in which it was written"
	// AuditCutOff: the log ends before the expected head.
	AuditCutOff = "the log was cut off before the expected head"
	// AuditReplaced: the log has another line in the place of the expected head.
	AuditReplaced = "not the expected head"
	// AuditTorn: the last line is unfinished, as a crash leaves it, or somebody who cuts. It is
	// [ErrAuditTorn]. The next process that writes to the log ends the line and says so.
	AuditTorn = "unfinished"
)

// findings is never changed.
var findings = map[auditlog.Finding]string{
	auditlog.Changed: AuditChanged, auditlog.Removed: AuditRemoved,
	auditlog.Reordered: AuditReordered,
	auditlog.CutOff:    AuditCutOff, auditlog.Replaced: AuditReplaced, auditlog.Torn: AuditTorn,
}

// err is the error of what was found, nil if nothing was.
func (r *AuditReport) err() error {
	if r.Finding == "" {
		return nil
	}
	sentinel := ErrAuditTampered
	if r.Finding == AuditTorn {
		sentinel = ErrAuditTorn
	}
	missing := ""
	if r.Missing > 0 {
		missing = fmt.Sprintf("entries %d to %d are missing: ", r.Seq, r.Seq+r.Missing-1)
	}
	return fmt.Errorf("%w: %s, line %s: %s%s", sentinel, r.File, strconv.Itoa(r.Line), missing,
		r.Finding)
}

// VerifyAuditLog checks the log at path with its older files, while others may write to it, under
// the key of keys, which stays the caller's. Where the log is not as it was written, the error is
// [ErrAuditTampered] or [ErrAuditTorn], and the report comes beside it: what was found first, and
// how far the log was as it was written.
//
// It finds every line that was changed, removed, put elsewhere or added by somebody without the
// key. It cannot find by itself that whole lines were cut off the end, or that all of the log was
// replaced by another one of the same key store, an empty one for example. For that, give it head,
// a place that the log had reached once ([AuditLog.Head], or an earlier report's) and that was kept
// elsewhere; "" = none; white space around it does not matter. Holders of the key store and its
// passphrase can write whatever they like, and an old passphrase with an old copy of the key store
// is enough for lines of that time's generation of data keys.
//
// Other errors: fs.ErrNotExist when there is no log, [ErrInvalidRequest] for an ephemeral key store
// or what is no head, [ErrPassphrase] when the passphrase was changed since keys was opened,
// [ErrInsecurePermissions], [ErrLocked], the end of ctx.
func VerifyAuditLog(ctx context.Context, path string, keys *KeyStore, head string) (*AuditReport,
	error) {
	if keys == nil {
		return nil, errNoAuditKeys()
	}
	var want auditlog.Head
	if head != "" {
		var err error
		if want, err = auditlog.ParseHead(head); err != nil {
			return nil, err
		}
	}
	found, err := auditlog.Verify(ctx, path, keys.store, want)
	if found == nil {
		return nil, err
	}
	report := &AuditReport{
		Files: found.Files, Lines: found.Lines, First: found.First, Head: found.Head.String(),
		HeadChecked: found.HeadChecked, Torn: found.Torn, Lost: found.Lost,
	}
	if p, ok := errors.AsType[*auditlog.Problem](err); ok {
		report.Finding = findings[p.Finding]
		report.File, report.Line, report.Seq, report.Missing = p.File, p.Line, p.Seq, p.Missing
		err = report.err()
	}
	return report, err
}
