// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
)

// The auditor hears of requests, answers and refusals, without content. While it fails nothing goes upstream, and an answer gets
// no end.
func TestObliviousAudit(t *testing.T) {
	var events []Event
	var fail EventType
	keys, err := AuthenticateKeys(secret(t, "key-of-the-client"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *GatewayConfig) {
		c.Authenticate = keys
		c.Audit = Auditor(func(_ context.Context, e Event) error {
			if e.Type == fail {
				return errors.New("disk full")
			}
			events = append(events, e)
			return nil
		})
	})
	events = nil
	types := func() (types []EventType) {
		for _, e := range events {
			types = append(types, e.Type)
			if strings.Contains(fmt.Sprintf("%+v", e), "completions") {
				t.Errorf("it holds content: %+v", e)
			}
		}
		events = nil
		return types
	}
	s := r.seal(innerRequest{})
	r.send(s)
	if len(events) != 2 || events[0].PayloadID == "" || events[0].PayloadID != events[1].PayloadID || events[0].Bytes != int64(len(fineRequest)) ||
		events[1].Bytes != int64(len(fineAnswer)) {
		t.Errorf("%+v", events)
	}
	if got := types(); fmt.Sprint(got) != fmt.Sprint([]EventType{EventRequestOpened, EventResponseSealed}) {
		t.Errorf("%v", got)
	}
	r.send(s)
	if got := types(); len(got) != 1 || got[0] != EventReplayRefused {
		t.Errorf("replayed: %v", got)
	}
	r.send(r.seal(innerRequest{header: []bhttp.Field{{Name: "x-security-tier", Value: "high"}}}))
	if got := types(); len(got) != 1 || got[0] != EventTierRefused {
		t.Errorf("too high a tier: %v", got)
	}
	for _, m := range []innerRequest{{header: []bhttp.Field{{Name: "authorization"}}}, {header: []bhttp.Field{{Name: "authorization"}}, path: "/other"}} {
		r.send(r.seal(m))
	}
	bad := r.seal(innerRequest{})
	bad.body[len(bad.body)-1] ^= 1
	r.send(bad)
	if got := types(); len(got) != 0 {
		t.Errorf("a stranger filled the log: %v", got)
	}
	served := len(r.forwarded())
	fail = EventRequestOpened
	s = r.seal(innerRequest{})
	if a := s.open(r.send(s)); a.status != 503 || a.err != nil || len(r.forwarded()) != served {
		t.Errorf("no audit of the request: %+v", a)
	}
	fail = EventResponseSealed
	s = r.seal(innerRequest{})
	if a := s.open(r.send(s)); a.status != 503 || a.err != nil || strings.Contains(a.body, "chat.completion") {
		t.Errorf("no audit of the answer: %+v", a)
	}
	r.answer = func(*http.Request, []byte) (*http.Response, error) {
		return answerOf("text/event-stream", strings.NewReader(fineEvents)), nil
	}
	s = r.seal(innerRequest{})
	if a := s.open(r.send(s)); a.status != 200 || !errors.Is(a.err, ohttp.ErrTruncated) {
		t.Errorf("no audit of a stream: %+v", a)
	}
}

// leaver is a client that takes so many chunks and leaves.
type leaver struct {
	*httptest.ResponseRecorder
	left int
}

func (l *leaver) Write(p []byte) (int, error) {
	if l.left--; l.left < 0 {
		return 0, errors.New("connection reset")
	}
	return l.ResponseRecorder.Write(p)
}

// An answer that began is told of and counted however it ends.
func TestObliviousAuditOfCutAnswers(t *testing.T) {
	var events []Event
	r := newRig(t, func(c *GatewayConfig) {
		c.Audit = Auditor(func(_ context.Context, e Event) error {
			if e.Type == EventResponseSealed {
				events = append(events, e)
			}
			return nil
		})
	})
	const first = "data: 1\n\n"
	for what, c := range map[string]struct {
		then   io.Reader
		takes  int
		reason string
	}{
		"the upstream ends early": {strings.NewReader(""), 99, "cut short"},
		"the upstream breaks":     {&pieces{err: errors.New("reset")}, 99, "cut short"},
		"the client leaves":       {strings.NewReader(first + fineEvents), 2, "left early"},
		"a panic":                 {panicking{"boom"}, 99, "ended early"},
		"whole":                   {strings.NewReader(fineEvents), 99, ""},
	} {
		t.Run(what, func(t *testing.T) {
			events = nil
			before := r.g.Stats()
			r.answer = func(*http.Request, []byte) (*http.Response, error) {
				return answerOf("text/event-stream", io.MultiReader(strings.NewReader(first), c.then)), nil
			}
			r.g.ServeHTTP(&leaver{httptest.NewRecorder(), c.takes}, obliviousPost(t, strings.NewReader(string(r.seal(innerRequest{}).body))))
			if len(events) != 1 || events[0].Reason != c.reason || events[0].Bytes < int64(len(first)) || events[0].PayloadID == "" {
				t.Errorf("told %+v", events)
			}
			after := r.g.Stats()
			failed := after.Failed - before.Failed
			if whole := c.reason == ""; after.Refused != before.Refused || whole == (failed == 1) || whole != (after.Answered == before.Answered+1) {
				t.Errorf("counted %+v, before %+v", after, before)
			}
			if what == "a panic" && !strings.Contains(r.logged(), "level=WARN msg=request") {
				t.Errorf("logged %s", r.logged())
			}
		})
	}
}
