// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package gateway

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat/internal/fault"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
)

// The account that Authenticate returns is in the log line and in the events, of both protocols. It
// has no way to break a line or to fill a log.
func TestGatewayAccount(t *testing.T) {
	for _, c := range []struct{ account, named string }{
		{"team-a", "team-a"},
		{"", ""},
		{"a b", "a b"},
		{"line\nbreak \x1b[31m", "line break [31m"},
		{strings.Repeat("x", 1000), strings.Repeat("x", 128)},
	} {
		var events []Event
		r := newRig(t, func(g *Config) {
			g.Authenticate = func(*http.Request) (string, time.Duration, error) {
				return c.account, 0, nil
			}
			g.Tell = func(_ context.Context, e Event) error {
				events = append(events, e)
				return nil
			}
		})
		for _, p := range r.Parcels(10) {
			events = nil
			if status, _ := r.SendParcel(p, bytes.NewReader(p.Body), "192.0.2.1"); status != 200 {
				t.Fatalf("%s: %d", p.Protocol, status)
			}
			r.Do(p.Request(t, bytes.NewReader(p.Body), "192.0.2.1")) // a replay
			if len(events) != 3 || events[2].Type != ReplayRefused {
				t.Errorf("%s: %+v", p.Protocol, events)
			}
			for _, e := range events {
				if e.Account != c.named {
					t.Errorf("%s: %s of account %q, want %q", p.Protocol, e.Type, e.Account,
						c.named)
				}
			}
			n := strings.Count(r.Logged(), "account=")
			if c.named == "" && n != 0 || c.named != "" && n == 0 {
				t.Errorf("%s: logged %s", p.Protocol, r.Logged())
			}
			if c.named != "" && strings.Contains(r.Logged(), c.named+"x") {
				t.Errorf("%s: logged %s", p.Protocol, r.Logged())
			}
		}
	}
}

// What Authenticate returns beside an error is nobody's account.
func TestGatewayAccountOfARefusedRequest(t *testing.T) {
	told := 0
	r := newRig(t, func(g *Config) {
		g.Authenticate = func(*http.Request) (string, time.Duration, error) {
			return "MARKER", 0, fault.ErrPermission
		}
		g.Tell = func(_ context.Context, e Event) error {
			told++
			return nil
		}
	})
	told = 0
	for _, p := range r.Parcels(10) {
		if status, _ := r.SendParcel(p, bytes.NewReader(p.Body), "192.0.2.1"); status != 403 {
			t.Errorf("%s: %d", p.Protocol, status)
		}
	}
	if told != 0 || strings.Contains(r.Logged(), "MARKER") {
		t.Errorf("%d events, logged %s", told, r.Logged())
	}
}

// Over HTTP/1 a connection upstream that has served one account serves no other, in either
// protocol. What belongs to one account goes on over one connection.
func TestAccountsShareNoConnection(t *testing.T) {
	var mu sync.Mutex
	served := map[net.Conn]map[string]bool{} // by connection, whose prompts came over it
	type connKey struct{}
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter,
		r *http.Request) {
		var content bytes.Buffer
		_, _ = content.ReadFrom(r.Body)
		conn := r.Context().Value(connKey{}).(net.Conn)
		account := "a"
		if strings.Contains(content.String(), strings.Repeat("x", 20)) {
			account = "b"
		}
		mu.Lock()
		if served[conn] == nil {
			served[conn] = map[string]bool{}
		}
		served[conn][account] = true
		mu.Unlock()
		testkit.AnswerText("fine")(w, r)
	}))
	up.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, c)
	}
	up.Start()
	defer up.Close()
	account := ""
	r := newRig(t, func(c *Config) {
		c.Upstream, c.UpstreamTransport = up.URL+"/v1", nil
		c.Authenticate = func(*http.Request) (string, time.Duration, error) {
			return account, 0, nil
		}
	})
	for range 3 {
		for i, size := range []int{10, 20} {
			account = string(rune('a' + i))
			for _, p := range r.Parcels(size) {
				status, _ := r.SendParcel(p, bytes.NewReader(p.Body), "192.0.2.1")
				if status != 200 {
					t.Fatalf("%s: %d", p.Protocol, status)
				}
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if len(served) != 2 {
		t.Errorf("%d connections for two accounts", len(served))
	}
	for _, accounts := range served {
		if len(accounts) != 1 {
			t.Errorf("a connection served %v", accounts)
		}
	}
}
