// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

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
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// The auditor hears of requests, answers and refusals, without content. While it fails nothing goes
// upstream, and an answer gets no end.
func TestObliviousAudit(t *testing.T) {
	var events []Event
	var fail string
	keys := onlyKey("key-of-the-client")
	r := newRig(t, func(c *Config) {
		c.Authenticate = keys
		c.Tell = (func(_ context.Context, e Event) error {
			if e.Type == fail {
				return errors.New("disk full")
			}
			events = append(events, e)
			return nil
		})
	})
	events = nil
	types := func() (types []string) {
		for _, e := range events {
			types = append(types, e.Type)
			if strings.Contains(fmt.Sprintf("%+v", e), "completions") {
				t.Errorf("it holds content: %+v", e)
			}
		}
		events = nil
		return types
	}
	s := r.Seal(fakes.Inner{})
	r.Send(s)
	if len(events) != 2 || events[0].PayloadID == "" ||
		events[0].PayloadID != events[1].PayloadID ||
		events[0].Bytes != int64(len(fakes.FineRequest)) ||
		events[1].Bytes != int64(len(testkit.FineAnswer)) {
		t.Errorf("%+v", events)
	}
	if got := types(); fmt.Sprint(got) != fmt.Sprint([]string{RequestOpened, ResponseSealed}) {
		t.Errorf("%v", got)
	}
	r.Send(s)
	if got := types(); len(got) != 1 || got[0] != ReplayRefused {
		t.Errorf("replayed: %v", got)
	}
	r.Send(r.Seal(fakes.Inner{Header: []bhttp.Field{{Name: "x-security-tier", Value: "high"}}}))
	if got := types(); len(got) != 1 || got[0] != TierRefused {
		t.Errorf("too high a tier: %v", got)
	}
	for _, m := range []fakes.Inner{
		{Header: []bhttp.Field{{Name: "authorization"}}},
		{Header: []bhttp.Field{{Name: "authorization"}}, Path: "/other"},
	} {
		r.Send(r.Seal(m))
	}
	bad := r.Seal(fakes.Inner{})
	bad.Body[len(bad.Body)-1] ^= 1
	r.Send(bad)
	if got := types(); len(got) != 0 {
		t.Errorf("a stranger filled the log: %v", got)
	}
	served := len(r.Forwarded())
	fail = RequestOpened
	s = r.Seal(fakes.Inner{})
	if a := s.Open(r.Send(s)); a.Status != 503 || a.Err != nil || len(r.Forwarded()) != served {
		t.Errorf("no audit of the request: %+v", a)
	}
	fail = ResponseSealed
	s = r.Seal(fakes.Inner{})
	if a := s.Open(r.Send(s)); a.Status != 503 || a.Err != nil ||
		strings.Contains(a.Body, "chat.completion") {
		t.Errorf("no audit of the answer: %+v", a)
	}
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		return answerOf("text/event-stream", strings.NewReader(fineEvents)), nil
	}
	s = r.Seal(fakes.Inner{})
	if a := s.Open(r.Send(s)); a.Status != 200 || !errors.Is(a.Err, ohttp.ErrTruncated) {
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
	r := newRig(t, func(c *Config) {
		c.Tell = (func(_ context.Context, e Event) error {
			if e.Type == ResponseSealed {
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
			before := r.s.Stats()
			r.Answer = func(*http.Request, []byte) (*http.Response, error) {
				return answerOf("text/event-stream",
					io.MultiReader(strings.NewReader(first), c.then)), nil
			}
			r.s.ServeHTTP(
				&leaver{httptest.NewRecorder(), c.takes},
				fakes.OHTTPPost(t, strings.NewReader(string(r.Seal(fakes.Inner{}).Body))),
			)
			if len(events) != 1 || events[0].Reason != c.reason ||
				events[0].Bytes < int64(len(first)) ||
				events[0].PayloadID == "" {
				t.Errorf("told %+v", events)
			}
			after := r.s.Stats()
			failed := after.Failed - before.Failed
			if whole := c.reason == ""; after.Refused != before.Refused || whole == (failed == 1) ||
				whole != (after.Answered == before.Answered+1) {
				t.Errorf("counted %+v, before %+v", after, before)
			}
			if what == "a panic" && !strings.Contains(r.Logged(), "level=WARN msg=request") {
				t.Errorf("logged %s", r.Logged())
			}
		})
	}
}
