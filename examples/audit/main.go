// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

// Command audit reads the audit log that a service keeps with sealedchat.OpenAuditLog.
//
//	audit tail [-n N] [-f] LOG                  # the last events, one per line; -f: and new ones
//	audit verify [-keys DIR] [-head HEAD] LOG    # check the log and its older files; print its head
//
// verify needs the key store with which the log was opened: the folder -keys, or NOMYO_KEY_DIR, or
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
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

func main() {
	p := &audit{env: os.Getenv, stdout: os.Stdout, stderr: os.Stderr, wait: time.Second}
	os.Exit(p.run(program.Signals(), os.Args[1:]))
}

// audit has the surroundings of a run, which tests replace.
type audit struct {
	env            func(string) string
	stdout, stderr io.Writer
	wait           time.Duration // between two looks at a log that tail follows
	seq            uint64        // of the event that tail showed last
}

// commands are the commands of the program, with their arguments.
func commands() []string {
	return []string{"audit tail [-n N] [-f] LOG", "audit verify [-keys DIR] [-head HEAD] LOG"}
}

// usage is what -h prints, besides the flags.
func usage(lines ...string) program.Usage {
	return program.Usage{Lines: lines, Variables: []program.Variable{
		{Name: "NOMYO_KEY_DIR", Text: "replaces -keys of verify"},
		{Name: "NOMYO_KEY_PASSWORD", Text: "the passphrase of the key store, of verify; with " +
			"_FILE behind its name, a file with it"},
	}}
}

func (p *audit) run(ctx context.Context, args []string) int {
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
	case "-h", "-help", "--help", "help":
		usage(commands()...).Print(p.stderr, nil)
	case "-version", "--version", "version":
		_, err = fmt.Fprintln(p.stdout, program.Version("audit"))
	default:
		err = program.WrongInput("want: %s (see audit -h)", strings.Join(commands(), ", or: "))
	}
	return program.Exit(p.stderr, "audit", err, explain)
}

// explain turns an error into one line for the user, and an exit status.
func explain(err error) (text string, status int) {
	text, status = program.Explain(err, nil)
	switch {
	case program.IsWrongInput(err):
		return text, status
	case errors.Is(err, sealedchat.ErrAuditTampered):
		return text, 3
	case errors.Is(err, sealedchat.ErrAuditTorn):
		return text, 4
	case errors.Is(err, errHeadNotFound):
		return text, 5
	}
	return text, status
}

// parse reads the flags of a command, and the path of the log after them.
func (p *audit) parse(f *flag.FlagSet, args []string) (path string, err error) {
	if err := program.Parse(f, args, usage(f.Name()+" [flags] LOG"), p.stdout,
		p.stderr); err != nil {
		return "", err
	}
	if f.NArg() != 1 {
		return "", program.WrongInput("%s: which log? flags come before it (see %[1]s -h)", f.Name())
	}
	return f.Arg(0), nil
}
