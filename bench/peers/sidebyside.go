// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"

	"github.com/seed-017344ad/sealedchat"
)

// sideBySide measures what sealing costs with each implementation of Oblivious HTTP: client,
// gateway, TLS and upstream in one process.
type sideBySide struct {
	rounds, divisor int // the numbers of chats are divided by divisor
	streams         int // open at once, for their memory
	only            []string
	cpuProfile      string
	memProfile      string

	sides    []*side
	upstream *standIn
	base     string
	shapes   []*shape
	memory   map[string]float64 // KiB of one stream
}

// openStreams is how many streams are open at once.
const openStreams = 600

// shape is one kind of chat.
type shape struct {
	name    string
	text    int // bytes of the prompt, and of the answer unless there are events
	events  int
	chats   int // of one turn
	atATime int
	// bytes: the client sends and the upstream answers what was made before. Otherwise both make
	// JSON and read it, with encoding/json.
	bytes bool

	overOpenPCC float64 // the most CPU that is wanted, in parts of openpcc's
	overPlain   float64 // 0: nothing is wanted
	wantMB      float64

	prompt    string
	body      []byte
	answer    *answer
	cpu       map[string][]float64 // ms for one chat, of each round
	allocated map[string][]float64 // MB for one chat
}

func shapesOfChats() []*shape {
	shapes := []*shape{
		{name: "1 KiB", text: 1 << 10, chats: 200, atATime: 1, overOpenPCC: 1.0},
		{name: "64 KiB", text: 64 << 10, chats: 60, atATime: 1, overOpenPCC: 0.85},
		{name: "1 MiB", text: 1 << 20, chats: 20, atATime: 1, overOpenPCC: 0.85, overPlain: 1.45},
		{name: "1 MiB, 8 at a time", text: 1 << 20, chats: 32, atATime: 8, overOpenPCC: 0.9},
		{name: "500 events", text: 1 << 10, events: 500, chats: 40, atATime: 1, overOpenPCC: 0.9,
			overPlain: 1.3},
	}
	for _, sh := range slices.Clone(shapes) {
		raw := *sh
		raw.name, raw.bytes, raw.overOpenPCC, raw.overPlain = sh.name+", bytes alone", true, 0, 0
		if sh.text == 1<<20 && sh.atATime == 1 {
			raw.wantMB = 5
		}
		shapes = append(shapes, &raw)
	}
	return shapes
}

const wantStreamKiB = 200

// run measures. The sides take turns within each round, so that other work on the machine meets all
// of them, and another one begins each time.
func (s *sideBySide) run(dir string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	s.upstream, s.base = &standIn{}, "http://"+listener.Addr().String()
	go http.Serve(listener, s.upstream)
	defer listener.Close()
	for _, m := range sideMakers {
		if len(s.only) > 0 && !slices.Contains(s.only, m.name) {
			continue
		}
		one, err := m.make(dir, s.base)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		defer one.close()
		s.sides = append(s.sides, one)
	}
	stop, err := s.profile()
	if err != nil {
		return err
	}
	for _, sh := range s.shapes {
		if err := s.measure(sh); err != nil {
			return fmt.Errorf("%s: %w", sh.name, err)
		}
	}
	stop()
	return s.streamMemory() // last, since what so many streams leave makes collections rarer
}

// profile starts the profiles that are wanted. stop writes them.
func (s *sideBySide) profile() (stop func(), err error) {
	var files [2]*os.File
	for i, name := range []string{s.cpuProfile, s.memProfile} {
		if name == "" {
			continue
		}
		if files[i], err = os.Create(name); err != nil {
			return nil, err
		}
	}
	if files[0] != nil {
		if err := pprof.StartCPUProfile(files[0]); err != nil {
			return nil, err
		}
	}
	return func() {
		if files[0] != nil {
			pprof.StopCPUProfile()
		}
		if files[1] != nil {
			_ = pprof.Lookup("allocs").WriteTo(files[1], 0)
		}
		for _, f := range files {
			_ = f.Close()
		}
	}, nil
}

// choose keeps the shapes of a name, or all of them.
func (s *sideBySide) choose(name string) error {
	s.shapes = slices.DeleteFunc(shapesOfChats(), func(sh *shape) bool {
		return name != "" && sh.name != name
	})
	if len(s.shapes) == 0 {
		return fmt.Errorf("there is no chat %q", name)
	}
	return nil
}

// measure has every side chat in turn.
func (s *sideBySide) measure(sh *shape) error {
	if err := sh.prepare(); err != nil {
		return err
	}
	s.upstream.answer, s.upstream.events = sh.answer, sh.events
	sh.cpu, sh.allocated = make(map[string][]float64), make(map[string][]float64)
	for _, one := range s.sides {
		if err := sh.warmUp(one); err != nil {
			return fmt.Errorf("%s: %w", one.name, err)
		}
	}
	chats := max(sh.chats/s.divisor, sh.atATime)
	for round := range s.rounds {
		for i := range s.sides {
			one := s.sides[(i+round)%len(s.sides)]
			runtime.GC() // what the side before left is not for this one to clear away
			allocated, before := allocatedBytes(), cpu()
			if err := sh.turn(one, chats); err != nil {
				return fmt.Errorf("%s: %w", one.name, err)
			}
			spent := cpu() - before
			sh.cpu[one.name] = append(sh.cpu[one.name], ms(spent)/float64(chats))
			sh.allocated[one.name] = append(sh.allocated[one.name],
				float64(allocatedBytes()-allocated)/1e6/float64(chats))
		}
	}
	return nil
}

func allocatedBytes() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// prepare makes what is asked, and in bytes what is answered.
func (sh *shape) prepare() (err error) {
	sh.prompt = prompt(sh.text)
	if sh.body, err = sh.request(); err != nil || !sh.bytes {
		return err
	}
	sh.answer = &answer{media: "application/json", pieces: [][]byte{completionOf(sh.prompt)}}
	if sh.events > 0 {
		sh.answer = &answer{media: "text/event-stream", pieces: events(sh.events)}
	}
	return nil
}

func (sh *shape) request() ([]byte, error) {
	return json.Marshal(chatRequest{Model: "model", Stream: sh.events > 0,
		Messages: []chatMessage{{Role: "user", Content: sh.prompt}}})
}

// warmUp makes connections and keys, and sees that the whole answer comes as it was sent.
func (sh *shape) warmUp(one *side) error {
	buffer := make([]byte, 32<<10)
	for range 4 {
		if !sh.bytes {
			if err := sh.chat(one, buffer); err != nil {
				return err
			}
			continue
		}
		resp, err := post(one, sh.body)
		if err != nil {
			return err
		}
		got, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			return err
		}
		if !bytes.Equal(got, bytes.Join(sh.answer.pieces, nil)) {
			return fmt.Errorf("the answer is another one, of %d bytes: %.200q", len(got), got)
		}
	}
	return nil
}

// post sends a request. The caller closes the body of the answer.
func post(one *side, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, one.url,
		bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := one.client.Do(req)
	if err == nil && resp.StatusCode != http.StatusOK {
		words, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
		_ = resp.Body.Close()
		err = fmt.Errorf("%s: %s", resp.Status, words)
	}
	return resp, err
}

// chat asks once, and reads the answer to its end.
func (sh *shape) chat(one *side, buffer []byte) error {
	body := sh.body
	if !sh.bytes {
		var err error
		if body, err = sh.request(); err != nil {
			return err
		}
	}
	resp, err := post(one, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	switch {
	case sh.bytes:
		return sh.count(resp.Body, buffer)
	case sh.events > 0:
		return sh.readEvents(resp.Body)
	}
	var completion struct {
		Choices []struct {
			Message chatMessage `json:"message"`
		} `json:"choices"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&completion); err != nil {
		return err
	}
	if len(completion.Choices) != 1 || completion.Choices[0].Message.Content != sh.prompt {
		return errors.New("another answer")
	}
	return nil
}

// count reads an answer without looking at it.
func (sh *shape) count(body io.Reader, buffer []byte) error {
	n, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{body}, buffer)
	for _, p := range sh.answer.pieces {
		n -= int64(len(p))
	}
	if err == nil && n != 0 {
		err = fmt.Errorf("%d bytes more than were sent", n)
	}
	return err
}

// readEvents reads every event as an SDK does.
func (sh *shape) readEvents(body io.Reader) error {
	lines := bufio.NewScanner(body)
	seen := 0
	for lines.Scan() {
		data, found := bytes.CutPrefix(lines.Bytes(), []byte("data: "))
		if !found || string(data) == "[DONE]" {
			continue
		}
		var chunk streamChunk
		if err := json.Unmarshal(data, &chunk); err != nil {
			return err
		}
		if len(chunk.Choices) == 1 && chunk.Choices[0].Delta.Content == eventText {
			seen++
		}
	}
	if err := lines.Err(); err != nil || seen != sh.events {
		return fmt.Errorf("%d events of %d: %w", seen, sh.events, err)
	}
	return nil
}

// turn chats so often.
func (sh *shape) turn(one *side, chats int) error {
	places := make(chan struct{}, chats)
	for range chats {
		places <- struct{}{}
	}
	close(places)
	errs := make([]error, sh.atATime)
	var wg sync.WaitGroup
	for i := range sh.atATime {
		wg.Go(func() {
			buffer := make([]byte, 32<<10)
			for range places {
				if errs[i] = sh.chat(one, buffer); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// streamMemory measures what a stream keeps in memory that is open, at both ends together: each has
// brought its first event and waits for the second.
func (s *sideBySide) streamMemory() error {
	s.memory = make(map[string]float64)
	if s.streams == 0 {
		return nil
	}
	for _, one := range s.sides {
		sh := &shape{text: 1 << 10, events: 2, bytes: true}
		if err := sh.prepare(); err != nil {
			return err
		}
		s.upstream.answer = sh.answer
		if err := sh.warmUp(one); err != nil {
			return fmt.Errorf("%s: %w", one.name, err)
		}
		sh.answer.hold = make(chan struct{})
		before := liveBytes()
		bodies, err := sh.open(one, s.streams)
		live := liveBytes() - before
		close(sh.answer.hold)
		for _, b := range bodies {
			rest, readErr := io.ReadAll(b)
			_ = b.Close()
			if err == nil && !strings.HasSuffix(string(rest), endOfEvents) {
				err = fmt.Errorf("a stream ends early: %w", readErr)
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", one.name, err)
		}
		s.memory[one.name] = float64(live) / 1024 / float64(s.streams)
	}
	return nil
}

// open opens n streams and reads the first event of each. It returns those that it could open.
func (sh *shape) open(one *side, n int) ([]io.ReadCloser, error) {
	bodies, errs := make([]io.ReadCloser, n), make([]error, n)
	first := len(sh.answer.pieces[0])
	places := make(chan struct{}, 32) // as many are on the way at once
	var wg sync.WaitGroup
	for i := range n {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			resp, err := post(one, sh.body)
			if err != nil {
				errs[i] = err
				return
			}
			bodies[i] = resp.Body
			_, errs[i] = io.ReadFull(resp.Body, make([]byte, first))
		})
	}
	wg.Wait()
	return slices.DeleteFunc(bodies, func(b io.ReadCloser) bool { return b == nil }),
		errors.Join(errs...)
}

// liveBytes is what heap, stacks and locked memory hold once the garbage is gone. A stack that has
// grown halves with each collection.
func liveBytes() int64 {
	for range 4 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc+m.StackInuse) + sealedchat.MemoryReport().InUse
}
