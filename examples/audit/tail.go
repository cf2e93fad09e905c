// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/examples/internal/program"
)

const maxLine = 64 << 10 // bytes, as SPEC.md says

func (p *audit) tail(ctx context.Context, args []string) error {
	f := flag.NewFlagSet("audit tail", flag.ContinueOnError)
	n := f.Int("n", 20, "`number` of events to begin with, of the newest file")
	follow := f.Bool("f", false, "go on as events come, until interrupted")
	path, err := p.parse(f, args)
	if err != nil {
		return err
	}
	if *n < 0 {
		return program.WrongInput("tail: -n is negative")
	}
	log, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	lines := bufio.NewReaderSize(log, maxLine)
	var last []string
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			// a line that is being written is read again later
			if _, err := log.Seek(-int64(len(line)), io.SeekCurrent); err != nil {
				return err
			}
			break
		}
		if last = append(last, line); len(last) > *n {
			last = last[1:]
		}
	}
	for _, line := range last {
		if err := p.print(line); err != nil {
			return err
		}
	}
	if !*follow {
		return nil
	}
	return p.follow(ctx, path, &log)
}

// follow prints lines that are added to the log, and goes on with the file that takes its place.
func (p *audit) follow(ctx context.Context, path string, log **os.File) error {
	var part []byte // of a line
	buf := make([]byte, maxLine)
	for {
		// this comes before reading: a file that was replaced gets no more lines
		replaced := isReplaced(path, *log)
		for {
			n, err := (*log).Read(buf)
			part = append(part, buf[:n]...)
			for {
				line, rest, whole := bytes.Cut(part, []byte("\n"))
				if !whole {
					break
				}
				if err := p.print(string(line)); err != nil {
					return err
				}
				part = rest
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return err
			}
			if len(part) > 2*maxLine {
				return fmt.Errorf("%s: a line of more than %d bytes", path, maxLine)
			}
		}
		if replaced {
			next, err := os.Open(path)
			if err == nil {
				_ = (*log).Close()
				*log, part = next, nil
				continue
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(p.wait):
		}
	}
}

func isReplaced(path string, log *os.File) bool {
	mine, err := log.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && !os.SameFile(mine, named)
}

// print prints one line of the log: time, severity, type, and the other members as they stand.
func (p *audit) print(line string) error {
	var e sealedchat.Event
	var members map[string]json.RawMessage
	if json.Unmarshal([]byte(line), &e) != nil || json.Unmarshal([]byte(line), &members) != nil {
		_, err := fmt.Fprintf(p.stdout, "?  %s\n", program.OneLine(strings.TrimSpace(line)))
		return err
	}
	var seq uint64
	if json.Unmarshal(members["seq"], &seq) == nil {
		if p.seq > 0 && seq > p.seq+1 {
			if _, err := fmt.Fprintf(p.stdout,
				"?  events %d to %d are not shown: older files may have them\n", p.seq+1,
				seq-1); err != nil {
				return err
			}
		}
		p.seq = seq
	}
	var severity string // as it stands in the file
	_ = json.Unmarshal(members["severity"], &severity)
	for _, name := range []string{"time", "severity", "type", "prev", "mac", "key"} {
		delete(members, name)
	}
	rest, err := json.Marshal(members)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(p.stdout, "%s  %-8s  %-21s  %s\n", e.Time.Format(time.RFC3339),
		program.OneLine(severity), program.OneLine(string(e.Type)), program.OneLine(string(rest)))
	return err
}
