// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package sealedchat

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// A gateway that is busy remembers some of what it refuses, says of these alone that they were not processed, and has room
// for requests when it is idle again.
func TestObliviousBusyFillsNoReplays(t *testing.T) {
	keys, err := AuthenticateKeys(secret(t, "key-of-the-client"))
	if err != nil {
		t.Fatal(err)
	}
	began, release := make(chan struct{}, 100), make(chan struct{})
	r := newRig(t, func(c *GatewayConfig) {
		c.MaxConcurrent, c.Authenticate, c.Replay = 1, keys, NewReplayCache(70)
	})
	r.answer = func(*http.Request, []byte) (*http.Response, error) {
		began <- struct{}{}
		<-release
		return respond(200, fineAnswer), nil
	}
	s := r.seal(innerRequest{})
	done := make(chan *httptest.ResponseRecorder)
	go func() { done <- r.send(s) }()
	<-began
	var said, silent []*sealedTest
	for range 100 {
		s := r.seal(innerRequest{})
		a := s.open(r.send(s))
		if a.err != nil || a.status != 503 || a.header.Get("Retry-After") != "1" {
			t.Fatalf("%+v", a)
		}
		if a.header.Get(headerProcessed) == "no" {
			said = append(said, s)
		} else {
			silent = append(silent, s)
		}
	}
	close(release)
	if a := s.open(<-done); a.status != 200 {
		t.Errorf("the first: %+v", a)
	}
	if len(said) < 4 || len(said) > 50 || len(silent) < 50 {
		t.Fatalf("of %d it was said, of %d not", len(said), len(silent))
	}
	for _, s := range said {
		if r.send(s); len(r.forwarded()) != 1 {
			t.Fatal("one that is said not to have been processed was served later on")
		}
	}
	if r.send(silent[0]); len(r.forwarded()) != 2 { // or else it would be remembered, too
		t.Error("another one was not served")
	}
	s = r.seal(innerRequest{})
	if a := s.open(r.send(s)); a.status != 200 {
		t.Errorf("when it is idle again: %+v", a)
	}
}
