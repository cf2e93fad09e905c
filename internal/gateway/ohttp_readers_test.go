// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/bhttp"
	"github.com/seed-017344ad/sealedchat/internal/ohttp"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

// Whoever sends a header and no more holds no place that a client of either protocol needs, and is
// soon told to go.
func TestObliviousStrangersHoldNoPlace(t *testing.T) {
	testkit.NoLeaks(t)
	g := startGateway(t, testkit.AnswerText("fine"), func(c *Config) {
		c.MaxConcurrent = 1
		c.AddressHeader = "X-From"
	})
	g.limits.headTimeout = 300 * time.Millisecond
	const stranger = "192.0.2.1"
	server := httptest.NewServer(g)
	defer server.Close()
	r := &rig{Rig: &fakes.Rig{T: t, Handler: g}, s: g}
	post := func(from string, body io.Reader) *http.Response {
		req, err := http.NewRequest(http.MethodPost, server.URL+ohttp.Path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header = fakes.OHTTPPost(t, nil).Header
		req.Header.Set("X-From", from)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return &http.Response{Body: http.NoBody}
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return resp
	}
	body, hold := io.Pipe()
	defer hold.Close()
	told := make(chan int)
	start := time.Now()
	go func() { told <- post(stranger, body).StatusCode }()
	_, _ = hold.Write([]byte{1, 2, 3}) // the gateway's server has the header
	for g.limits.heads.Taken() == 0 && time.Since(start) < time.Minute {
		time.Sleep(time.Millisecond)
	}
	if n := len(g.places); n != 0 {
		t.Errorf("%d places are taken", n)
	}
	s := r.Seal(fakes.Inner{})
	if resp := post(stranger, bytes.NewReader(s.Body)); resp.StatusCode != 503 {
		t.Errorf("a second one of the stranger's: %d", resp.StatusCode)
	}
	if resp := post("192.0.2.2", bytes.NewReader(s.Body)); resp.StatusCode != 200 {
		t.Errorf("a client: %d", resp.StatusCode)
	} else if a := s.Read(resp.Body); a.Status != 200 {
		t.Errorf("a client: %+v", a)
	}
	if resp, err := http.DefaultClient.Do(fakes.SealedPost(t, server.URL)); err != nil ||
		resp.StatusCode != 200 {
		t.Errorf("a client of protocol v1: %v, %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	if status := <-told; status != 408 {
		t.Errorf("the stranger: %d", status)
	}
	if n := g.limits.heads.Taken(); n != 0 {
		t.Errorf("%d readers are left", n)
	}
}

// Who has no key is refused after the header: nothing of the content is taken in.
func TestObliviousStrangersContent(t *testing.T) {
	keys := onlyKey("key-of-the-client")
	r := newRig(t, func(c *Config) { c.Authenticate = keys })
	m := fakes.Inner{Header: []bhttp.Field{{Name: "authorization", Value: "Bearer other"}}}
	message := m.Encode(t)
	// cut short: reading on would find it out
	s := fakes.SealChunks(t, r.KeyConfig(), false, message[:len(message)-10])
	if a := s.Open(r.Send(s)); a.Status != 401 || a.Err != nil {
		t.Errorf("%+v", a)
	}
	if n := len(r.s.places); n != 0 {
		t.Errorf("%d places are taken", n)
	}
}

// The time that a header has is not Authenticate's: over HTTP/2 a deadline that passes meanwhile
// would end the body.
func TestObliviousSlowAuthenticate(t *testing.T) {
	t.Parallel()
	g := startGateway(t, testkit.AnswerText("fine"), func(c *Config) {
		c.Authenticate = allow(func(r *http.Request) error {
			select {
			case <-time.After(700 * time.Millisecond):
				return nil
			case <-r.Context().Done():
				return r.Context().Err()
			}
		})
	})
	g.limits.headTimeout = 500 * time.Millisecond
	server := testkit.TLSServer(t, g)
	message := fakes.Inner{}.Encode(t)
	s := fakes.SealChunks(
		t,
		(&rig{Rig: &fakes.Rig{T: t, Handler: g}, s: g}).KeyConfig(),
		true,
		message[:len(message)-10],
		message[len(message)-10:],
	)
	body, in := io.Pipe()
	go func() {
		_, _ = in.Write(s.Body[:len(s.Body)-27]) // all but the final chunk
		time.Sleep(600 * time.Millisecond)
		_, _ = in.Write(s.Body[len(s.Body)-27:])
		_ = in.Close()
	}()
	client := &http.Client{Transport: testkit.ClientTransport(server)}
	defer client.CloseIdleConnections()
	resp, err := client.Post(server.URL+ohttp.Path, ohttp.TypeRequest, body)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if a := s.Read(resp.Body); a.Status != 200 || a.Err != nil {
		t.Errorf("%+v", a)
	}
}
