// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command audit reads the audit log that a service keeps with sealedchat.OpenAuditLog.
//
//	audit tail [-n N] [-f] LOG                  # the last events, one per line; -f: and new ones
//	audit verify [-dir DIR] [-head HEAD] LOG    # check the log and its older files; print its head
//
// verify needs the key store with which the log was opened: the folder -dir, or NOMYO_KEY_DIR, or
// else the folder sealedchat in the user's configuration folder. Its passphrase is in
// NOMYO_KEY_PASSWORD, or in the file that -passphrase-file names, which no other user may read. Run
// the command as the user of the service.
//
// Keep the head that verify prints in a place that nobody who can write to the log can change, and
// give it to the next verify. Without it nobody can notice that lines were cut off the end.
//
//	new=$(audit verify -head "$head" /var/lib/myservice/log/audit.log) && head=$new || page somebody
//
// Keep the old head if something is wrong: only a good verify prints a new one. The first run has
// no head, and omits -head; an empty -head is wrong input.
//
// tail checks nothing, but it reports where events are missing, for example if two files have ended
// since it last looked. Events and heads go to standard output, all other text goes to standard
// error. The exit status is
//
//   - 0 for success;
//   - 1 if something failed;
//   - 2 for wrong input;
//   - 3 if somebody tampered with the log;
//   - 4 if the last line is unfinished, as after a crash: the service ends it when it writes again;
//   - 5 if the log is good but does not have the line of -head any more: its file was dropped,
//     because verify did not run for longer than the log reaches back. Look into it, and then begin
//     again without -head.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/seed-017344ad/sealedchat"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once
	p := &program{env: os.Getenv, stdout: os.Stdout, stderr: os.Stderr, wait: time.Second}
	os.Exit(p.run(ctx, os.Args[1:]))
}

// program has the surroundings of a run, which tests replace.
type program struct {
	env            func(string) string
	stdout, stderr io.Writer
	wait           time.Duration // between two looks at a log that tail follows
	seq            uint64        // of the event that tail showed last
}

// usageError is wrong input: exit status 2.
type usageError struct{ error }

func wrongInput(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func (p *program) run(ctx context.Context, args []string) int {
	command := ""
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	var err error
	switch command {
	case "tail":
		err = p.tail(ctx, args)
	case "verify":
		err = p.verify(ctx, args)
	default:
		err = wrongInput("want: audit tail [-n N] [-f] LOG, or: audit verify [-dir DIR] [-head " +
			"HEAD] LOG")
	}
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return 0
	}
	fmt.Fprintln(p.stderr, "audit: "+oneLine(strings.ReplaceAll(err.Error(), "sealedchat: ", "")))
	_, usage := errors.AsType[usageError](err)
	switch {
	case usage:
		return 2
	case errors.Is(err, sealedchat.ErrAuditTampered):
		return 3
	case errors.Is(err, sealedchat.ErrAuditTorn):
		return 4
	case errors.Is(err, errHeadNotFound):
		return 5
	}
	return 1
}

// parse reads the flags of a command, and the path of the log after them.
func (p *program) parse(f *flag.FlagSet, args []string) (path string, err error) {
	f.SetOutput(io.Discard) // errors are printed in one place
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(p.stderr, "usage: audit %s [flags] LOG\n", f.Name())
		f.SetOutput(p.stderr)
		f.PrintDefaults()
		return "", err
	} else if err != nil {
		return "", wrongInput("%s: %w (see -help)", f.Name(), err)
	}
	if f.NArg() != 1 {
		return "", wrongInput("%s: which log? flags come before it (see -help)", f.Name())
	}
	return f.Arg(0), nil
}

// oneLine replaces characters that could end a line or control a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
