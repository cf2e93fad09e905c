// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package auditlog

import (
	"crypto/sha256"
	"fmt"
)

// Finding says what is wrong with a log.
type Finding string

// The findings.
const (
	// a line is not as it was written, or was written by somebody without the key
	Changed   Finding = "changed"
	Removed   Finding = "removed"   // lines before this one are missing
	Reordered Finding = "reordered" // a line stands where it was not written, or twice
	CutOff    Finding = "cut off"   // the log ends before the head that was expected
	Replaced  Finding = "replaced"  // the log has another line in the place of the expected head
	Torn      Finding = "torn"      // the last line is unfinished, as a crash leaves it
)

// Problem is a finding and its place.
type Problem struct {
	Finding Finding
	File    string // as given to Step
	Line    int    // in the file, from 1; 0 for what is not there
	Seq     uint64 // of the line that was expected there
	Missing uint64 // how many lines are, where that is known
}

func (p *Problem) Error() string {
	return fmt.Sprintf("auditlog: %s, line %d: %s", p.File, p.Line, p.Finding)
}

// Chain checks the lines of a log, oldest first. The zero value, with Key set, is ready.
type Chain struct {
	// Key finds the key of a generation; nil and no error if there is none.
	Key func(generation uint32) (*Key, error)
	// Want is a head that the log must contain; zero for none.
	Want Head

	First      uint64 // number of the first line
	Lines      uint64
	Torn, Lost uint64 // as the lines say
	Head       Head   // of the last good line
	WantFound  bool

	begins uint64
	start  place // of the log
	before Head  // of the line before the last one
	last   piece // the last line as it stands in the file
	doubt  *Problem
	bad    piece // the line in doubt
}

type place struct {
	file string
	line int
}

// piece identifies a text without keeping it.
type piece struct {
	size uint64
	sum  [sha256.Size]byte
}

func pieceOf(text []byte) piece { return piece{uint64(len(text)), sha256.Sum256(text)} }

// Step checks one line, which is given without its line feed. It returns a *Problem, or the error
// of Key. A line that is wrong may turn out to be an unfinished one when the next line comes, so
// the problem may be told one step later, or by Finish.
func (c *Chain) Step(file string, number int, text []byte) error {
	here := place{file, number}
	if c.start.line == 0 {
		c.start = here
	}
	line, err := c.read(text)
	if err != nil {
		return err
	}
	this := pieceOf(text)
	if c.doubt != nil {
		return c.resolve(line, this, here)
	}
	if line == nil {
		c.doubt, c.bad = c.problem(Changed, here), this
		return nil
	}
	switch {
	// older files were dropped, or removed: Finish tells
	case c.Lines == 0 && line.Seq > 1 && line.Torn == 0:
		c.Head = Head{line.Seq - 1, line.Prev}
	case line.Torn > 0 && line.Prev == c.before.MAC && line.Seq == c.before.Seq+1 &&
		c.last.is(line):
		// The last line was whole except its line feed. The next writer took it for unfinished.
		c.Lines--
		c.Torn++
		c.Head = c.before
	case line.Prev != c.Head.MAC || line.Seq != c.Head.Seq+1 || line.Torn > 0:
		c.doubt = c.misplaced(line, here)
		if c.doubt.Finding != Removed || c.doubt.Missing == 0 {
			return c.doubt
		}
		return nil // what is missing may follow
	}
	return c.accept(line, this, here)
}

// read takes a line that is as it was written, or nil.
func (c *Chain) read(text []byte) (*Line, error) {
	line, err := Parse(text)
	if err != nil {
		return nil, nil
	}
	key, err := c.Key(line.Generation)
	if err != nil || key == nil || !key.Fits(text, line) {
		return nil, err
	}
	return line, nil
}

func (p piece) is(line *Line) bool { return p.size == line.Torn && p.sum == line.TornSum }

// resolve looks whether a line explains the one in doubt.
func (c *Chain) resolve(line *Line, this piece, here place) error {
	switch {
	case line == nil:
		if c.doubt.Finding == Changed {
			return c.doubt
		}
	case c.doubt.Finding == Changed:
		// the first line of the oldest file that is left
		if c.Lines == 0 && line.Seq > 1 && c.bad.is(line) {
			c.Head = Head{line.Seq - 1, line.Prev}
		}
		if !c.bad.is(line) || line.Prev != c.Head.MAC || line.Seq != c.Head.Seq+1 {
			return c.doubt
		}
		c.doubt = nil
		c.Torn++
		return c.accept(line, this, here)
	case line.Seq >= c.doubt.Seq && line.Seq < c.doubt.Seq+c.doubt.Missing:
		c.doubt.Finding, c.doubt.Missing = Reordered, 0
		return c.doubt
	}
	return nil
}

func (c *Chain) misplaced(line *Line, here place) *Problem {
	p := c.problem(Removed, here)
	switch {
	case line.Seq > c.Head.Seq+1:
		p.Missing = line.Seq - c.Head.Seq - 1
	case line.Seq <= c.Head.Seq:
		p.Finding = Reordered
	}
	return p
}

func (c *Chain) accept(line *Line, this piece, here place) error {
	c.before, c.Head, c.last = c.Head, line.Head(), this
	if c.Lines == 0 {
		c.First = line.Seq
	}
	c.Lines++
	c.Lost += line.Lost
	c.begins = max(c.begins, line.Begins)
	if line.Seq == c.Want.Seq {
		if line.MAC != c.Want.MAC {
			p := c.problem(Replaced, here)
			p.Seq = line.Seq
			return p
		}
		c.WantFound = true
	}
	return nil
}

func (c *Chain) problem(f Finding, at place) *Problem {
	return &Problem{Finding: f, File: at.file, Line: at.line, Seq: c.Head.Seq + 1}
}

// Settled reports whether nothing is in doubt: what was given to Step so far is a piece of a log,
// as it was written.
func (c *Chain) Settled() bool { return c.doubt == nil }

// Finish ends the check. rest is what stands after the last line feed of the last file, and its
// place.
func (c *Chain) Finish(file string, number int, rest []byte) error {
	here := place{file, number}
	if c.doubt != nil {
		return c.doubt
	}
	if c.Want.Seq > c.Head.Seq {
		p := c.problem(CutOff, here)
		p.Missing = c.Want.Seq - c.Head.Seq
		return p
	}
	if first := max(c.begins, 1); c.Lines > 0 && c.First > first {
		return &Problem{Finding: Removed, File: c.start.file, Line: c.start.line, Seq: first,
			Missing: c.First - first}
	}
	if len(rest) == 0 {
		return nil
	}
	if !Unfinished(rest, c.Head) {
		return c.problem(Changed, here)
	}
	return c.problem(Torn, here)
}
