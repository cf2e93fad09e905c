// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestGatewayAuthenticatesFirst(t *testing.T) {
	auth, err := sealedchat.AuthenticateKeys(
		secret(t, "key-one"),
		secret(t, "key-two"),
		secret(t, "key-two"),
	)
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(c *sealedchat.GatewayConfig) {
		c.Authenticate, c.AllowUnauthenticated = auth, true // the latter opens nothing
		c.Replay = failingReplay{t}
	})
	for _, header := range []string{
		"", "key-one", "Bearer", "Bearer ", "Bearer  key-on", "Bearer \tkey-one",
		"Bearer  key-one ",
		"Bearer  ", "Basic key-one", "Bearer key-on", "Bearer key-one ", "Bearer key-onee",
		"Bearer KEY-ONE", "Bearer key-one key-two",
		"Bearer key-one,key-two", "Bearer\tkey-one", " Bearer key-one",
		"Bearer " + strings.Repeat("k", 1<<20), "Bearer \x00", "Bearerkey-one", "Token key-one",
	} {
		w := r.Do(
			fakes.PostBody(
				t,
				fakes.Untouchable{T: t},
				"Authorization",
				header,
				"X-Payload-ID",
				"\x00bad",
				"X-Public-Key",
				"bad",
			),
		)
		fakes.Refused(t, fmt.Sprintf("%.30q", header), w, 401)
		if w.Header().Get("WWW-Authenticate") != "Bearer" {
			t.Errorf("%.30q: no WWW-Authenticate", header)
		}
	}
	r = newRig(t, func(c *sealedchat.GatewayConfig) { c.Authenticate = auth })
	for _, header := range []string{
		"Bearer key-one", "Bearer  key-one", "bearer   key-two", "Bearer key-two", "bearer key-one",
		"BEARER key-two",
	} {
		fakes.OpenedAnswer(t, header, r.Do(fakes.Post(t, fakes.FineRequest, "Authorization",
			header)))
	}
	if w := r.Do(
		httptest.NewRequestWithContext(t.Context(), "GET", "/pki/public_key", nil),
	); w.Code != 200 {
		t.Error("the public key needs authentication")
	}
}

// failingReplay is a cache that must not be asked.
type failingReplay struct{ t *testing.T }

func (f failingReplay) Claim(context.Context, [32]byte, [32]byte, time.Time) (bool, error) {
	f.t.Error("the replay cache was asked")
	return false, sealedchat.ErrServer
}

func (f failingReplay) Release(context.Context, [32]byte) error { return nil }

func TestGatewayAuthenticateErrors(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		retry  string
	}{
		{sealedchat.ErrAuthentication, 401, ""}, {errors.New("MARKER"), 401, ""},
		{fmt.Errorf("MARKER: %w", sealedchat.ErrPermission), 403, ""},
		{sealedchat.ErrRateLimited, 429, ""},
		{
			&sealedchat.APIError{StatusCode: 429, Detail: "MARKER",
				RetryAfter: 1500 * time.Millisecond},
			429, "2",
		},
		{fmt.Errorf("MARKER %w", sealedchat.ErrUnavailable), 503, ""},
		{sealedchat.ErrServer, 401, ""},
	} {
		r := newRig(t, func(k *sealedchat.GatewayConfig) {
			k.Authenticate = func(*http.Request) (string, error) { return "MARKER", c.err }
		})
		w := r.Do(fakes.PostBody(t, fakes.Untouchable{T: t}))
		fakes.Refused(t, c.err.Error(), w, c.status)
		if w.Header().Get("Retry-After") != c.retry || strings.Contains(w.Body.String(), "MARKER") {
			t.Errorf("%v: %s, %v", c.err, w.Body, w.Header())
		}
	}
}

// With the answers of two clients in turn each still gets its own.
func TestGatewayKeepsClientKeysApart(t *testing.T) {
	g := startGateway(t, testkit.AnswerText("fine"), nil)
	srv := testkit.TLSServer(t, g)
	for range 2 {
		for _, name := range []string{"client-4096", "other-4096"} {
			client := startClient(t, srv.URL, func(c *sealedchat.Config) {
				c.Transport, c.Keys = testkit.ClientTransport(srv), storedKeys(t, name)
			})
			if answer, err := client.Chat(t.Context(), ask("?")); err != nil ||
				answer.Text() != "fine" {
				t.Errorf("%s: %v, %v", name, answer, err)
			}
		}
	}
}

// The account of AuthenticateKeys is a key's number, and tells nothing of the key.
func TestAuthenticateKeysAccounts(t *testing.T) {
	auth, err := sealedchat.AuthenticateKeys(
		secret(t, "one"), secret(t, "two"), secret(t, "one"), secret(t, "four"))
	if err != nil {
		t.Fatal(err)
	}
	for header, want := range map[string]string{
		"Bearer one": "key-1", "bearer  two": "key-2", "BEARER four": "key-4",
		"Bearer three": "", "Bearer key-1": "", "Bearer ": "", "one": "", "Basic one": "", "": "",
		"Bearer on": "", "Bearer onee": "", "Bearer one one": "",
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		r.Header.Set("Authorization", header)
		account, err := auth(r)
		if account != want || (err == nil) != (want != "") ||
			err != nil && !errors.Is(err, sealedchat.ErrAuthentication) {
			t.Errorf("%q: %q, %v, want %q", header, account, err, want)
		}
	}
}
