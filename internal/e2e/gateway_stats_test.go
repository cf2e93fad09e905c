// Copyright The sealedchat Authors
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/seed-017344ad/sealedchat"
	"github.com/seed-017344ad/sealedchat/internal/hybrid"
	"github.com/seed-017344ad/sealedchat/internal/testkit"
	"github.com/seed-017344ad/sealedchat/internal/testkit/fakes"
)

func TestGatewayStats(t *testing.T) {
	keys := memoryStore(t, &sealedchat.KeyStoreOptions{Bits: 2048}) // the next key is made soon
	importKey(t, keys, storedKey(t, "rsa-2048"))
	r := newRig(t, func(c *sealedchat.GatewayConfig) { c.Keys = keys })
	if s := r.g.Stats(); s.Memory == "" || s != (sealedchat.GatewayStats{Memory: s.Memory}) {
		t.Fatalf("at first: %+v", s)
	}
	inFlight := int64(-1)
	r.Answer = func(*http.Request, []byte) (*http.Response, error) {
		inFlight = r.g.Stats().InFlight
		return testkit.Respond(http.StatusBadGateway, ""), nil
	}
	client := startClient(
		t,
		"http://127.0.0.1",
		func(c *sealedchat.Config) { c.Transport = fakes.Direct(r.g) },
	)
	if _, err := client.Chat(t.Context(), ask("x")); err == nil { // 502
		t.Fatal("no error")
	}
	r.Answer = nil
	if _, err := client.Chat(t.Context(), ask("x")); err != nil {
		t.Fatal(err)
	}
	// the first is refused: no headers
	for _, path := range []string{
		hybrid.PathCompletion, hybrid.PathPublicKey, "/healthz", "/nothing",
	} {
		r.g.ServeHTTP(
			httptest.NewRecorder(),
			httptest.NewRequest(http.MethodPost, path, strings.NewReader("{}")),
		)
	}
	if err := r.keys.Rotate(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := r.g.Stats()
	mine := client.Stats()
	want := sealedchat.GatewayStats{
		Requests: 3, Answered: 1, Refused: 1, Failed: 1, BytesOpened: mine.BytesSealed,
		BytesSealed:  mine.BytesOpened,
		KeyRotations: 1, Memory: got.Memory,
		Remembered: 2, // the one that failed was released, and may come again
	}
	if got != want || inFlight != 1 {
		t.Errorf("got  %+v, %d in flight meanwhile\nwant %+v", got, inFlight, want)
	}
}
