// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package chatjson

import (
	"io"
	"sync"
)

// EventText is the event stream of a complete answer, made while it is read. Close may be called at
// any time, from any goroutine.
type EventText struct {
	mu         sync.Mutex
	completion []byte // nil once it was wiped
	events     *Events
	line       []byte // of the present event
	from       int    // what of line was read
	done       bool   // line is the last one
}

// NewEventText makes the events of a complete and checked completion. The text owns the completion,
// and wipes it at its end and when it is closed; after an error it stays the caller's.
func NewEventText(completion []byte, includeUsage bool) (*EventText, error) {
	events, err := NewEvents(completion, includeUsage)
	if err != nil {
		return nil, err
	}
	return &EventText{completion: completion, events: events}, nil
}

// Read implements [io.Reader].
func (t *EventText) Read(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.completion == nil && !t.done {
		return 0, io.ErrClosedPipe
	}
	n := 0
	for n < len(p) {
		if t.from == len(t.line) {
			if t.done {
				return n, io.EOF
			}
			t.next()
		}
		m := copy(p[n:], t.line[t.from:])
		t.from += m
		n += m
	}
	return n, nil
}

func (t *EventText) next() {
	text, err := t.events.Next()
	if t.from = 0; err != nil {
		t.wipe()
		t.line, t.done = AppendEvent(t.line[:0], []byte("[DONE]")), true
		return
	}
	t.line = AppendEvent(t.line[:0], text)
}

// Close wipes what was not read. Its error is always nil.
func (t *EventText) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wipe()
	t.done, t.line, t.from = false, nil, 0
	return nil
}

func (t *EventText) wipe() {
	t.events.Wipe()
	clear(t.line[:cap(t.line)])
	clear(t.completion)
	t.completion = nil
}
