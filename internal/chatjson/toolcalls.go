// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import "github.com/seed-017344ad/sealedchat/internal/sse"

// ToolCalls tells which pieces of a stream belong to one tool call. The zero value is ready; it is
// for the calls of one choice.
//
// Pieces belong together that have the same index, and the same id or none. Many servers get one of
// them wrong: they leave the index out, give all calls the same one, give each piece an id of its
// own, or give none. Then what the arguments say decides: behind a complete JSON text another call
// begins.
//
// Invariant: each call has a number of its own, which is its index where no other call has that.
type ToolCalls struct {
	groups  map[int64]*callGroup // by index
	numbers map[int64]bool       // that are taken
	next    int64                // more than each of them
}

// callGroup are the calls with one index.
type callGroup struct {
	last *toolCall // that a piece was for
	byID map[string]*toolCall
}

type toolCall struct {
	number    int64
	id, name  string
	arguments sse.JSON
}

// Of takes in a piece and returns the number of the call that it is for.
func (c *ToolCalls) Of(index int64, id, name string, arguments []byte) (number int64) {
	g := c.groups[index]
	if g == nil {
		if c.groups == nil {
			c.groups = make(map[int64]*callGroup)
		}
		g = &callGroup{}
		c.groups[index] = g
	}
	call := g.of(id, name, len(arguments) > 0)
	if call == nil {
		call = &toolCall{number: c.number(index)}
	}
	if call.id == "" {
		call.id = id
	}
	if call.name == "" {
		call.name = name
	}
	call.arguments.See(arguments)
	g.last = call
	if id != "" {
		if g.byID == nil {
			g.byID = make(map[string]*toolCall)
		}
		g.byID[id] = call
	}
	return call.number
}

// of finds the call that a piece is for, or nil if the piece begins one.
func (g *callGroup) of(id, name string, some bool) *toolCall {
	call, known := g.byID[id]
	if !known {
		call = g.last
	}
	if call == nil {
		return nil
	}
	complete := call.arguments.Ended()
	switch {
	case id != "" && !known && call.id != "":
		if name != "" || complete {
			return nil
		}
	case name == "" || !complete:
	case known && name == call.name && !some: // it says the same again
	default:
		return nil
	}
	return call
}

// number is index, or the next one that is free.
func (c *ToolCalls) number(index int64) int64 {
	if c.numbers == nil {
		c.numbers = make(map[int64]bool)
	}
	if c.numbers[index] {
		index = c.next
	}
	c.numbers[index] = true
	c.next = max(c.next, index+1)
	return index
}
